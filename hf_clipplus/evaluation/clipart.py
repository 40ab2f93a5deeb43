"""The evaluators on the embedded Open Clip Art drawings, so that every evaluation runs without a download.

Example::

    for evaluator in clipart_evaluators("test", image_size=64):
        evaluator(model, processor)
"""

from typing import Any

import torch

from hf_clipplus.data.clipart import CLASS_NAMES, CaptionWorld, load_drawings, query_captions
from hf_clipplus.data.clipart_facts import FactPictures, look_alike_pairs
from hf_clipplus.data.sources import iterate
from hf_clipplus.evaluation.attacked import PixelAttack
from hf_clipplus.evaluation.linear_probe import LinearProbe
from hf_clipplus.evaluation.mmvp import PairEvaluator
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification
from hf_clipplus.models.configuration_finer_vision import picture_side

CLIPART_TEMPLATES = ("a drawing of a {}", "clip art of a {}", "a picture of a {}", "{}")


def clipart_evaluators(
    split: str = "test", *, image_size: int = 64, attack: PixelAttack | None = None, **options: Any
) -> tuple[ZeroShotClassification, RetrievalEvaluator, RetrievalEvaluator]:
    """Zero-shot classification of the drawings that have a class, and retrieval of all drawings by clean captions.

    The captions of the first retrieval say all that is known of a drawing, those of the second only its name (half of
    the test drawings' names hold no word that the train drawings know). See `query_captions`.

    Args:
        split: see `load_drawings`; "test" is never trained on.
        image_size: side of the pictures in pixels.
        attack: see `ZeroShotClassification`.
        options: `batch_size`, `autocast_dtype`, `progress` of the evaluators.
    """
    drawings = load_drawings(split)
    world = CaptionWorld(drawings, image_size=image_size, train=False)
    rows = [
        {"image": row["image"], "label": row["class_name"]}
        | dict(zip(("name", "caption"), query_captions(drawing), strict=True))
        for row, drawing in zip(iterate(world), drawings, strict=True)
    ]
    labelled = [row for row in rows if row["label"] is not None]
    return (
        ZeroShotClassification(
            labelled, CLASS_NAMES, CLIPART_TEMPLATES, name="clipart_zero_shot", attack=attack, **options
        ),
        RetrievalEvaluator(rows, "caption", name="clipart_retrieval", **options),
        RetrievalEvaluator(rows, "name", name="clipart_retrieval_by_name", **options),
    )


def clipart_scores(model: torch.nn.Module, processor: Any, split: str = "test") -> dict[str, float]:
    """What the evaluators say of a model, with the chance levels, at the image size that it was made for.

    The metrics of the retrieval by name begin with `name_`.
    """
    zero_shot, retrieval, by_name = clipart_evaluators(split, image_size=picture_side(model.config))
    found = zero_shot(model, processor) | retrieval(model, processor)
    for key, value in by_name(model, processor).items():
        prefix, metric = ("chance_", key[7:]) if key.startswith("chance_") else ("", key)
        found[f"{prefix}name_{metric}"] = value
    return found


def clipart_pairs(split: str = "test", *, image_size: int, pairs_per_fact: int = 60) -> PairEvaluator:
    """The embedded look-alike pairs, in the manner of MMVP-VLM; the texts need no prefix."""
    pairs = look_alike_pairs(split, image_size=image_size, pairs_per_fact=pairs_per_fact)
    return PairEvaluator(pairs, prefix="", name="clipart_pairs")


def clipart_probes(split: str = "test", *, image_size: int, rows: int = 600) -> tuple[LinearProbe, ...]:
    """Linear probes for orientation, count and colour, fitted on train drawings and tested on those of `split`."""
    return tuple(
        LinearProbe(
            FactPictures("train", fact, image_size=image_size, length=rows),
            FactPictures(split, fact, image_size=image_size, length=rows),
            name=f"probe_{fact}",
        )
        for fact in ("orientation", "count", "colour")
    )
