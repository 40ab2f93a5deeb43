"""Processor of Long-CLIP: images, long and short captions, and texts in segments."""

from hf_clipplus.models.processing_dual_encoder import DualEncoderProcessor, DualEncoderProcessorKwargs

LongCLIPProcessorKwargs = DualEncoderProcessorKwargs  # the name of transformers' convention


class LongCLIPProcessor(DualEncoderProcessor):
    """CLIP's image processor and tokenizer, with three ways to take a long text; see `DualEncoderProcessor`."""


__all__ = ["LongCLIPProcessor"]
