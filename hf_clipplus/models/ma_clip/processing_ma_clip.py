"""Processor of MA-CLIP: videos and class names."""

from ..processing_few_shot_video import FewShotVideoTextProcessor


class MACLIPProcessor(FewShotVideoTextProcessor):
    """Frames of videos to pixel values, class names to token ids, see `FewShotVideoTextProcessor`."""


__all__ = ["MACLIPProcessor"]
