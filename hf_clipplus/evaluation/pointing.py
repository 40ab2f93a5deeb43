"""Pointing: how often the patch that is most similar to "<object>" lies on that object.

Example::

    evaluator = PointingAccuracy(SceneWorld("test", image_size=96, train=False), CLASS_NAMES)
    evaluator(model, processor)  # {"pointing_accuracy": ..., "chance_pointing_accuracy": ..., "queries": ...}
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_clipplus.data.images import load_image
from hf_clipplus.data.segmentation_sources import read_mask
from hf_clipplus.evaluation.encode import encode_texts
from hf_clipplus.models.evaluation_mode import evaluation_mode


class PointingAccuracy:
    """Evaluator for models with `get_patch_features`: one query per picture and class that its mask shows.

    Args:
        rows: sequence of dicts with `image` (what `load_image` reads), of the processor's aspect, and `mask` (`[h, w]`
            class numbers, 0 the background, i the class `class_names[i - 1]`).
        class_names: the classes.
        templates: texts of a class, whose embeddings are averaged.
        name: prefix for the results.
        batch_size: pictures at a time.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(
        self,
        rows: Sequence,
        class_names: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
        name: str = "pointing",
        batch_size: int = 32,
    ):
        if not len(rows):
            raise ValueError("there are no rows to point in.")
        self.rows, self.class_names, self.templates, self.name = rows, list(class_names), tuple(templates), name
        self.batch_size = batch_size

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is.

        Returns:
            `pointing_accuracy`, `chance_pointing_accuracy` (the mean share of patches whose centre lies on the
            object) in [0, 1], and `queries`. Of equally similar patches each counts by its share.
        """
        classes = class_embeddings(model, processor, self.class_names, self.templates)
        hits, chance, queries = 0.0, 0.0, 0
        numbers = iter(range(len(self.rows)))
        while batch := list(islice(numbers, self.batch_size)):
            rows = [self.rows[number] for number in batch]
            inputs = processor(images=[load_image(row["image"]) for row in rows], return_tensors="pt")
            pixels = inputs["pixel_values"].to(model.device, model.dtype)
            with evaluation_mode(model):
                patches = model.get_patch_features(pixels).float().cpu()
            for row, features in zip(rows, patches, strict=True):
                centres = _class_at_centres(torch.from_numpy(read_mask(row["mask"])), len(features))
                for number in centres[centres > 0].unique().tolist():
                    on_object = (centres == number).float()
                    score = features @ classes[number - 1]
                    best = score == score.max()
                    hits += float(on_object[best].mean())
                    chance += float(on_object.mean())
                    queries += 1
        if not queries:
            raise ValueError("no mask shows a class at the centre of a patch.")
        return {
            "pointing_accuracy": hits / queries,
            "chance_pointing_accuracy": chance / queries,
            "queries": float(queries),
        }


def class_embeddings(model: nn.Module, processor: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """`[classes, D]`: the normalised mean of the embeddings of a class's texts, on the CPU."""
    texts = [template.format(name) for name in class_names for template in templates]
    embeds = encode_texts(model, processor, texts)
    return normalize(embeds.unflatten(0, (len(class_names), len(templates))).mean(1), dim=-1)


def _class_at_centres(mask: Tensor, patches: int) -> Tensor:
    """`[patches]`: the class number under the centre of each patch of a square grid."""
    side = round(patches**0.5)
    rows, columns = (((torch.arange(side) + 0.5) * length / side).long() for length in mask.shape)
    return mask[rows][:, columns].flatten()
