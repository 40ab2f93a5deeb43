"""Processor of DreamLIP: images, and K captions per image."""

from transformers.processing_utils import ProcessingKwargs

from hf_clipplus.models.processing_dual_encoder import TEXT_DEFAULTS, DualEncoderProcessor, LongTextKwargs


class DreamLIPProcessorKwargs(ProcessingKwargs, total=False):
    """What `DreamLIPProcessor` takes beside images and text, and its defaults."""

    text_kwargs: LongTextKwargs
    _defaults = TEXT_DEFAULTS


class DreamLIPProcessor(DualEncoderProcessor):
    """CLIP's image processor and tokenizer; see `DualEncoderProcessor`."""

    valid_processor_kwargs = DreamLIPProcessorKwargs


__all__ = ["DreamLIPProcessor"]
