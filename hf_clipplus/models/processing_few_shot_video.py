"""What the processors of the few-shot video models share: videos through `VideoFrameProcessor`, texts through CLIP."""

import re
from collections.abc import Sequence
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

DEFAULT_TEMPLATE = "a photo of {}"


class FewShotVideoTextProcessor(ProcessorMixin):
    """A processor of frames and CLIP's tokenizer.

    Args:
        image_processor: a `VideoFrameProcessor`.
        tokenizer: CLIP's.
        template: text of a class, `{}` stands for its name.
        clean_names: whether class names lose underscores and the brackets of placeholders ("Pouring [something]"),
            which the published texts keep.

    Example:

    ```python
    >>> processor(videos=["a.mp4", "b.mp4"], text=processor.class_texts(["pour", "fold"]), return_tensors="pt")
    ```
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        template: str = DEFAULT_TEMPLATE,
        clean_names: bool = False,
        **kwargs: Any,
    ):
        self.template, self.clean_names = template, clean_names
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, videos: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Prepare videos, texts or both.

        Args:
            videos: see `VideoFrameProcessor.preprocess`.
            text: one text or a list; padded to the longest and cut at the context length.
            kwargs: `return_tensors`; `num_frames` and `do_sample_frames` for the videos; all others for the
                tokenizer.

        Returns:
            `pixel_values [V, T, 3, H, W]`; `input_ids`, `attention_mask [C, L]`.
        """
        if videos is None and text is None:
            raise ValueError(f"{type(self).__name__}: give videos, text or both.")
        return_tensors = kwargs.pop("return_tensors", None)
        of_videos = {name: kwargs.pop(name) for name in ("num_frames", "do_sample_frames") if name in kwargs}
        batch = {}
        if videos is not None:
            batch.update(self.image_processor(videos, return_tensors=return_tensors, **of_videos))
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            options = {"padding": True, "truncation": True} | kwargs
            batch.update(self.tokenizer(text, return_tensors=return_tensors, **options))
        return BatchFeature(batch)

    def class_texts(self, class_names: Sequence[str]) -> list[str]:
        """The text of each class."""
        names = [clean_class_name(name) for name in class_names] if self.clean_names else class_names
        return [self.template.replace("{}", name) for name in names]

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]


def clean_class_name(name: str) -> str:
    """A class name without underscores and brackets, words of camel case apart: "YoYo" -> "Yo Yo"."""
    name = re.sub(r"[\[\]]", "", name.replace("_", " "))
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).strip()


__all__ = ["FewShotVideoTextProcessor"]
