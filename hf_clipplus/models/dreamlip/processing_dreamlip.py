"""Processor of DreamLIP: images, and K captions per image."""

from hf_clipplus.models.processing_dual_encoder import DualEncoderProcessor, DualEncoderProcessorKwargs

DreamLIPProcessorKwargs = DualEncoderProcessorKwargs  # the name of transformers' convention


class DreamLIPProcessor(DualEncoderProcessor):
    """CLIP's image processor and tokenizer; see `DualEncoderProcessor`."""


__all__ = ["DreamLIPProcessor"]
