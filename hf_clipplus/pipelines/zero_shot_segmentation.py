"""The pipeline `clipplus-zero-shot-segmentation`: pictures of any size and class names to label maps."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.image_utils import load_image as fetch_image

from hf_clipplus.data.images import load_image
from hf_clipplus.evaluation.patch_segmenter import PatchSegmenter
from hf_clipplus.models.groupvit.presets_groupvit import (
    BACKGROUND_THRESHOLDS,
    CLASS_NAMES,
    LONG_SIDE,
    SEGMENTATION_TEMPLATES,
    SHORT_SIDE,
    background_threshold,
)
from hf_clipplus.models.groupvit.processing_groupvit import GroupViTPlusProcessor

TASK = "clipplus-zero-shot-segmentation"
BACKGROUND = "background"
PICTURES_AT_A_TIME = 8


class ZeroShotSegmentationPipeline(Pipeline):
    """Segments pictures by class names with a GroupViT model, or patch by patch with a model that has patch features
    (DreamLIP; training-free, see `evaluation.patch_segmenter`).

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import pipeline

    >>> segment = pipeline("clipplus-zero-shot-segmentation", model="org/groupvit-plus")
    >>> found = segment(["street.jpg", "kitchen.png"], class_names=["car", "person", "table"], background=0.95)
    >>> found[0]["labels"]  # [h, w] numpy; an index into found[0]["class_names"], which begins with "background"
    >>> segment("street.jpg", class_names="voc")  # names and background threshold of a benchmark
    ```
    """

    _load_processor = True
    _load_image_processor = _load_feature_extractor = _load_tokenizer = False

    def __call__(self, images, class_names: str | Sequence[str] | None = None, **kwargs: Any):
        """Segment one picture, or each of a list or another iterable.

        Args:
            images: PIL image, path, address or array, or an iterable of them; mixed sizes are fine.
            class_names: foreground classes, or "voc", "context" or "coco".
            templates: prompts of a class with `{}`; several are averaged. `("{}",)` takes the names as prompts.
            background: a threshold in [0, 1], "voc", "context" or "coco"; None (without one, for names that are a
                preset, the preset's): every pixel gets a class.
            mode: "slide" or "whole".
            short_side, long_side: what a picture is resized to fit, pixels; the result has the picture's own size.
            output_scores, output_groups: return `scores [classes, h, w]`; `groups`, one `[h, w]` per stage.
            crop_size, stride, top_classes, crops_per_batch: see `segmentation_groupvit.segment`; they, `mode` and
                `output_groups` are GroupViT's alone.
            batch_size: pictures read at a time (8); the crops of all of them share batches.

        Returns:
            A dict, or a list of them: `labels` (int64 `[h, w]`), `class_names` (with "background" first if there is a
            threshold), `segments` (as transformers' image segmentation: `label`, `score`, `mask`, largest first), and
            what was asked for.

        Raises:
            ValueError: no class names, repeated ones, an unknown preset, or a picture that cannot be used.
        """
        if class_names is not None:
            kwargs["class_names"] = class_names
        size = kwargs.pop("batch_size", None) or PICTURES_AT_A_TIME
        if isinstance(images, str | Image.Image | np.ndarray | torch.Tensor | dict):
            return super().__call__((images,), **kwargs)[0]
        if not isinstance(images, Iterable):
            raise ValueError(f"expected a picture or an iterable of pictures, got {type(images).__name__}.")
        stream, found = iter(images), []
        while bundle := tuple(islice(stream, size)):
            found += super().__call__(bundle, **kwargs)
        return found

    def _sanitize_parameters(
        self,
        class_names=None,
        templates=None,
        background=None,
        short_side=None,
        long_side=None,
        output_scores=None,
        output_groups=None,
        **options,
    ):
        known = {"mode", "crop_size", "stride", "top_classes", "crops_per_batch"}
        if unknown := options.keys() - known:
            raise ValueError(
                f"unknown options {sorted(unknown)}; there are {sorted(known)} and those in the docstring."
            )
        preprocess = {"class_names": class_names, "templates": templates, "background": background}
        preprocess |= {"short_side": short_side, "long_side": long_side}
        forward = options | {"output_scores": output_scores, "output_groups": output_groups}
        given = ({k: v for k, v in each.items() if v is not None} for each in (preprocess, forward))
        return *given, {}

    def preprocess(
        self,
        images: tuple,
        class_names=None,
        templates=SEGMENTATION_TEMPLATES,
        background=None,
        short_side: int = SHORT_SIDE,
        long_side: int = LONG_SIDE,
    ) -> dict[str, Any]:
        if class_names is None:
            raise ValueError(f"class_names is missing: give a list of names or one of {sorted(CLASS_NAMES)}.")
        if isinstance(class_names, str):
            if class_names not in CLASS_NAMES:
                raise ValueError(f"class_names={class_names!r}: give a list of names or one of {sorted(CLASS_NAMES)}.")
            background = BACKGROUND_THRESHOLDS[class_names] if background is None else background
            class_names = CLASS_NAMES[class_names]
        pictures = [_read(image, number) for number, image in enumerate(images)]
        processor = self.processor
        if not hasattr(processor, "segmentation_inputs"):
            processor = GroupViTPlusProcessor(processor.image_processor, processor.tokenizer)
        inputs = processor.segmentation_inputs(pictures, short_side=short_side, long_side=long_side)
        return {
            "class_names": list(class_names),
            "background_threshold": background_threshold(background),
            "classes": processor.class_inputs(class_names, templates),
            **inputs,
        }

    def _forward(self, inputs: dict[str, Any], output_scores: bool = False, **options) -> dict[str, Any]:
        names, threshold = inputs.pop("class_names"), inputs.pop("background_threshold")
        model = self.model if hasattr(self.model, "segment") else PatchSegmenter(self.model)
        class_embeds = model.class_embeddings(**inputs.pop("classes"))
        results = model.segment(
            **inputs, class_embeds=class_embeds, background_threshold=threshold, output_scores=True, **options
        )
        shown = names if threshold is None else [BACKGROUND, *names]
        return {"results": results, "class_names": shown, "output_scores": output_scores}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        for result in outputs["results"]:
            labels, names = result.labels.cpu(), outputs["class_names"]
            entry = {"labels": labels.numpy(), "class_names": names, "segments": _segments(result, labels, names)}
            if outputs["output_scores"]:
                entry["scores"] = result.scores.float().cpu().numpy()
            if result.groups is not None:
                entry["groups"] = [groups.cpu().numpy() for groups in result.groups]
                entry["group_classes"] = result.group_classes.cpu().numpy()
            found.append(entry)
        return found


def _read(image, number: int) -> Image.Image:
    if isinstance(image, np.ndarray | torch.Tensor):
        image = Image.fromarray(np.asarray(image))
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        image = fetch_image(image)
    return load_image(image, name=f"picture {number}" if isinstance(image, Image.Image) else None)


def _segments(result, labels: torch.Tensor, names: list[str]) -> list[dict[str, Any]]:
    """One entry per class that owns a pixel: its name, its mean score there and its mask."""
    found = []
    for label, pixels in zip(*labels.unique(return_counts=True), strict=True):
        mask = labels == label
        score = result.scores[label].cpu()[mask].mean().item()
        picture = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
        found.append((int(pixels), {"label": names[label], "score": score, "mask": picture}))
    return [entry for _, entry in sorted(found, key=lambda each: -each[0])]
