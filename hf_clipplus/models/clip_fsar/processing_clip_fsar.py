"""Processor of CLIP-FSAR: videos and class names."""

from ..processing_few_shot_video import FewShotVideoTextProcessor


class CLIPFSARProcessor(FewShotVideoTextProcessor):
    """Frames of videos to pixel values, class names to token ids, see `FewShotVideoTextProcessor`."""


__all__ = ["CLIPFSARProcessor"]
