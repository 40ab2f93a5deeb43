"""The evaluators on the embedded scenes: retrieval by what a scene shows, by long texts, pointing, look-alike pairs.

Example::

    for evaluator in scene_evaluators("test", image_size=96):
        evaluator(model, processor)
"""

from functools import lru_cache
from typing import Any

from hf_clipplus.data.clipart import CLASS_NAMES
from hf_clipplus.data.clipart_scenes import SceneWorld, picture_of
from hf_clipplus.data.fine_grained_scenes import fine_grained_pairs
from hf_clipplus.data.sources import iterate
from hf_clipplus.evaluation.fine_grained import FineGrainedEvaluator
from hf_clipplus.evaluation.pointing import PointingAccuracy
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator

# true of every scene, so that they help to find none; more than 77 tokens of any tokenizer
PREAMBLE = (
    "This picture was put together by a program from drawings of an open library.",
    "Every drawing in it was made by a volunteer and given to the public.",
    "The drawings were scaled, placed at random and laid over each other.",
    "None of them is covered by more than a part of its area.",
    "All edges are smooth, and there is neither a frame nor any writing around them.",
    "The whole picture is square, and one plain colour fills what the drawings leave free.",
    "Now follows what can be seen in this one.",
)


NEW_SCENES = 10_000  # a seed of scenes that no training draws: with it, drawings of training stand in new scenes


def scene_evaluators(
    split: str = "test", *, image_size: int = 96, length: int = 300, batch_size: int = 64, seed: int = 0
) -> tuple[RetrievalEvaluator, RetrievalEvaluator, PointingAccuracy]:
    """Retrieval by one sentence that lists what is there, retrieval by the whole long caption, and pointing.

    Args:
        split: see `load_drawings`; "test" has drawings that are never trained on.
        image_size: side of a scene, pixels.
        length: number of scenes.
        batch_size: pictures at a time.
        seed: of the scenes; `NEW_SCENES` for a split that is trained on.
    """
    rows = _rows(split, image_size, length, seed)
    by_text = (_retrieval(rows, column, batch_size) for column in ("summary", "long_caption"))
    return *by_text, PointingAccuracy(rows, CLASS_NAMES, name="scenes_pointing", batch_size=batch_size)


def by_classes(
    split: str = "test", *, image_size: int = 96, length: int = 300, batch_size: int = 64, seed: int = 0
) -> RetrievalEvaluator:
    """Retrieval by a sentence that lists what there is by class: names of new drawings are words that no text had.

    Arguments are those of `scene_evaluators`.
    """
    return _retrieval(_rows(split, image_size, length, seed), "classes", batch_size)


def long_text_evaluators(
    split: str = "test", *, image_size: int = 96, length: int = 300, batch_size: int = 64, seed: int = 0
) -> tuple[RetrievalEvaluator, RetrievalEvaluator, RetrievalEvaluator]:
    """Retrieval by a summary, by the long caption, and by `PREAMBLE` and the long caption ("late facts").

    In the last all that tells scenes apart stands behind token 77. Arguments are those of `scene_evaluators`.
    """
    rows = _rows(split, image_size, length, seed)
    return tuple(_retrieval(rows, column, batch_size) for column in ("summary", "long_caption", "late_facts"))


def fine_grained_scenes(
    split: str = "test", *, image_size: int = 96, pairs_per_kind: int = 60, batch_size: int = 64, seed: int = 0
) -> FineGrainedEvaluator:
    """Pairs of scenes that differ in one thing, see `fine_grained_pairs`.

    Args:
        split: see `load_drawings`; "test" has drawings that are never trained on.
        image_size: side of a scene, pixels.
        pairs_per_kind: pairs of each of the six kinds.
        batch_size: pictures at a time.
        seed: of the pairs; `NEW_SCENES` for a split that is trained on.
    """
    pairs = fine_grained_pairs(split, image_size=image_size, pairs_per_kind=pairs_per_kind, seed=seed)
    return FineGrainedEvaluator(pairs, name="scenes_fine_grained", batch_size=batch_size)


def _retrieval(rows: list[dict[str, Any]], column: str, batch_size: int) -> RetrievalEvaluator:
    return RetrievalEvaluator(rows, column, name=f"scenes_by_{column}", batch_size=batch_size)


@lru_cache(maxsize=1)
def _rows(split: str, image_size: int, length: int, seed: int) -> list[dict[str, Any]]:
    """Scenes that are drawn once, with three more texts."""
    world = SceneWorld(split, image_size=image_size, length=length, seed=seed, train=False)
    return [
        row
        | {"summary": row["sentences"][0], "classes": picture_of(row["objects"], "class_name")}
        | {"late_facts": " ".join([*PREAMBLE, row["long_caption"]])}
        for row in iterate(world)
    ]
