"""The pipeline `clipplus-few-shot-video-classification`: videos and a few labelled ones to class probabilities."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import Pipeline

from hf_clipplus.models.few_shot_video import SupportSet
from hf_clipplus.models.video_frames import is_single_video

TASK = "clipplus-few-shot-video-classification"


class FewShotVideoClassificationPipeline(Pipeline):
    """Classifies videos by labelled videos, given once or carried by the model.

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import pipeline

    >>> classify = pipeline("clipplus-few-shot-video-classification", model="org/clip-fsar-plus")
    >>> classify("new.mp4", support={"pour": ["a.mp4", "b.mp4"], "fold": ["c.mp4"]})
    >>> classify(["d.mp4", "frames_of_e/"])  # the support is kept
    >>> classify.model.push_to_hub("org/pour-or-fold")  # and goes along
    ```
    """

    _load_processor = True
    _load_image_processor = _load_video_processor = _load_feature_extractor = _load_tokenizer = False

    def __call__(
        self,
        videos: Any,
        support: Mapping[str, Sequence[Any]] | SupportSet | None = None,
        *,
        mode: str | None = None,
        top_k: int | None = None,
        **kwargs: Any,
    ):
        """Classify one video, or each of a list.

        Args:
            videos: a path, a folder of frames, a list of pictures, an array, or a list of these.
            support: class name -> its labelled videos, encoded once and kept; or a `SupportSet`; None takes the one
                that the model carries.
            mode: of inference ("visual", "text", "combined" for CLIP-FSAR); None takes the model's.
            top_k: best classes given; None gives all.

        Returns:
            A list of `{"label", "score"}`, best first, or a list of such lists.

        Raises:
            ValueError: no support, a class without videos, or no video.
        """
        if isinstance(support, Mapping):
            self.set_support(support)
        elif support is not None:
            self.model.set_support(support)
        options = {"mode": mode, "top_k": top_k, **kwargs}
        if is_single_video(videos):
            return super().__call__([videos], **options)[0]
        if not isinstance(videos, Iterable):
            raise ValueError(f"expected a video or a list of videos, got {type(videos).__name__}.")
        return super().__call__(list(videos), **options)

    def set_support(self, support: Mapping[str, Sequence[Any]]) -> SupportSet:
        """Encode labelled videos, and keep them in the model.

        Args:
            support: class name -> its videos, in any form.
        """
        videos, names = [], []
        for name, own in support.items():
            own = [own] if is_single_video(own) else list(own)
            if not own:
                raise ValueError(f"class {name!r} has no support video.")
            videos += own
            names += [name] * len(own)
        return self.model.encode_support(videos, names, processor=self.processor)

    def _sanitize_parameters(self, mode=None, top_k=None, **unknown):
        if unknown:
            raise ValueError(f"unknown options {sorted(unknown)}; there are support, mode and top_k.")
        return {}, {"mode": mode}, {"top_k": top_k}

    def preprocess(self, video: Any) -> dict[str, Any]:
        return dict(self.processor(videos=[video], return_tensors="pt"))

    def _forward(self, inputs: dict[str, Any], mode: str | None = None) -> dict[str, Any]:
        support = self.model.stored_support()
        scores = self.model.classify(inputs["pixel_values"], support, mode=mode)
        return {"scores": scores, "class_names": support.class_names}

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = None) -> list[dict[str, Any]]:
        scores = outputs["scores"][0].float()
        best, places = scores.topk(min(top_k or len(scores), len(scores)))
        names = outputs["class_names"]
        return [{"label": names[p], "score": s} for s, p in zip(best.tolist(), places.tolist(), strict=True)]
