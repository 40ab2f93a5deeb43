"""The two evaluators on the embedded Open Clip Art drawings, so that every evaluation runs without a download.

Example::

    for evaluator in clipart_evaluators("test", image_size=64):
        evaluator(model, processor)
"""

from typing import Any

import torch

from hf_clipplus.data.clipart import CLASS_NAMES, CaptionWorld, load_drawings, query_captions
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification

CLIPART_TEMPLATES = ("a drawing of a {}", "clip art of a {}", "a picture of a {}", "{}")


def clipart_evaluators(
    split: str = "test", *, image_size: int = 64, **options: Any
) -> tuple[ZeroShotClassification, RetrievalEvaluator]:
    """Zero-shot classification of the drawings that have a class, and retrieval of all drawings by clean captions.

    Args:
        split: see `load_drawings`; "test" is never trained on.
        image_size: side of the pictures in pixels.
        options: `batch_size`, `autocast_dtype`, `progress` of the evaluators.
    """
    drawings = load_drawings(split)
    world = CaptionWorld(drawings, image_size=image_size, train=False)
    rows = [
        {"image": row["image"], "label": row["class_name"], "captions": query_captions(drawing)}
        for row, drawing in zip((world[index] for index in range(len(world))), drawings, strict=True)
    ]
    labelled = [row for row in rows if row["label"] is not None]
    return (
        ZeroShotClassification(labelled, CLASS_NAMES, CLIPART_TEMPLATES, name="clipart_zero_shot", **options),
        RetrievalEvaluator(rows, name="clipart_retrieval", **options),
    )


def clipart_scores(model: torch.nn.Module, processor: Any, split: str = "test") -> dict[str, float]:
    """What both evaluators say of a model, with the chance levels, at the image size that it was made for."""
    found = {}
    for evaluator in clipart_evaluators(split, image_size=model.config.vision_config.image_size):
        found |= evaluator(model, processor)
    return found
