"""Processor of Long-CLIP: images, long and short captions, and texts in segments."""

from transformers.processing_utils import ProcessingKwargs

from hf_clipplus.models.processing_dual_encoder import TEXT_DEFAULTS, DualEncoderProcessor, LongTextKwargs


class LongCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """What `LongCLIPProcessor` takes beside images and text, and its defaults."""

    text_kwargs: LongTextKwargs
    _defaults = TEXT_DEFAULTS


class LongCLIPProcessor(DualEncoderProcessor):
    """CLIP's image processor and tokenizer, with three ways to take a long text; see `DualEncoderProcessor`."""

    valid_processor_kwargs = LongCLIPProcessorKwargs


__all__ = ["LongCLIPProcessor"]
