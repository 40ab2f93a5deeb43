"""Zero-shot segmentation by class names: mean IoU over a data set of pictures with masks (GroupViT's protocol).

Example::

    rows = read_voc("VOCdevkit/VOC2012")
    evaluator = ZeroShotSegmentation(rows, CLASS_NAMES["voc"], background="voc")
    evaluator(model, processor)  # {"mIoU": ..., "pixel_accuracy": ..., "chance_mIoU": ..., ...}
    evaluator.iou_per_class()    # {"background": ..., "aeroplane": ..., ...}
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_clipplus.data.clipart import CLASS_NAMES as CLIPART_CLASSES
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.images import load_image
from hf_clipplus.data.scene_pairs import SCENE_BACKGROUNDS
from hf_clipplus.data.segmentation_sources import read_mask
from hf_clipplus.models.groupvit.presets_groupvit import (
    LONG_SIDE,
    SEGMENTATION_TEMPLATES,
    SHORT_SIDE,
    background_threshold,
    class_prompts,
)
from hf_clipplus.ops.distributed import rank, world_size

from .confusion import IGNORED, ConfusionMatrix

BACKGROUND = "background"


class ZeroShotSegmentation:
    """Evaluator: mean IoU of the label maps that `model.segment` makes from class names.

    Args:
        rows: sequence of dicts with an image (what `load_image` reads) and a mask (`[h, w]` class numbers, what
            `read_mask` reads); class 0 of the masks is the background, class i is `class_names[i - 1]`.
        class_names: foreground classes.
        background: threshold or preset, see `presets_groupvit.background_threshold`; None: the masks have no
            background class, and class i is `class_names[i]`.
        background_names: what counts as background by name, such as "sky"; with `background=None`.
        templates: prompts of a class.
        name: prefix for the results.
        image_column, mask_column: names of the columns.
        ignored: mask number of pixels that do not count.
        short_side, long_side: to which pictures are resized.
        batch_size: pictures at a time.
        progress: show a progress bar.
        options: `mode`, `crop_size`, `stride`, `top_classes`, `crops_per_batch` of `model.segment`.

    Attributes:
        matrix: the `ConfusionMatrix` of the last evaluation.

    Raises:
        ValueError: there are no rows, class names are blank or repeated, or the background has a threshold and names.
    """

    task = "image-segmentation"

    def __init__(
        self,
        rows: Sequence,
        class_names: Sequence[str],
        *,
        background: str | float | None,
        background_names: Sequence[str] = (),
        templates: Sequence[str] = SEGMENTATION_TEMPLATES,
        name: str = "segmentation",
        image_column: str = "image",
        mask_column: str = "mask",
        ignored: int = IGNORED,
        short_side: int = SHORT_SIDE,
        long_side: int = LONG_SIDE,
        batch_size: int = 8,
        progress: bool = False,
        **options: Any,
    ):
        if not len(rows):
            raise ValueError("there are no rows to evaluate segmentation on.")
        class_prompts([*background_names, *class_names], templates)
        if background is not None and background_names:
            raise ValueError("the background is found by a threshold or by names, not by both.")
        self.background_names = list(background_names)
        self.rows, self.class_names, self.templates, self.name = rows, list(class_names), tuple(templates), name
        self.threshold = background_threshold(background)
        self.columns, self.ignored = (image_column, mask_column), ignored
        self.size = {"short_side": short_side, "long_side": long_side}
        self.batch_size, self.progress, self.options = batch_size, progress, options
        without = self.threshold is None and not self.background_names
        self.labels = self.class_names if without else [BACKGROUND, *self.class_names]
        self.matrix = ConfusionMatrix(len(self.labels), ignored=ignored)

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is; under `torch.distributed` every rank must call and gets the same result.

        Returns:
            `mIoU`, `mean_accuracy`, `pixel_accuracy` in [0, 1]; `chance_mIoU` (classes drawn at random),
            `chance_mIoU_one_class` (the best single class everywhere); `samples`, `classes`.
        """
        self.matrix = ConfusionMatrix(len(self.labels), ignored=self.ignored)
        inputs = processor.class_inputs([*self.background_names, *self.class_names], self.templates)
        class_embeds = model.class_embeddings(**{name: value.to(model.device) for name, value in inputs.items()})
        own = iter(range(rank(), len(self.rows), world_size()))
        with tqdm(total=len(self.rows), desc="segmenting", disable=not self.progress or rank() > 0) as bar:
            while numbers := list(islice(own, self.batch_size)):
                self._add(model, processor, class_embeds, [self.rows[number] for number in numbers])
                bar.update(len(numbers) * world_size())
        self.matrix.all_reduce()
        counts = {"samples": float(len(self.rows)), "classes": float(len(self.labels))}
        return self.matrix.compute() | chance_levels(self.matrix) | counts

    def iou_per_class(self) -> dict[str, float]:
        """IoU of each class in the last evaluation; NaN for classes that do not occur."""
        return dict(zip(self.labels, self.matrix.iou_per_class().tolist(), strict=True))

    def _add(self, model: nn.Module, processor: Any, class_embeds: Tensor, rows: list) -> None:
        images, masks = zip(*((row[self.columns[0]], row[self.columns[1]]) for row in rows), strict=True)
        inputs = processor.segmentation_inputs([load_image(image) for image in images], **self.size)
        found = model.segment(**inputs, class_embeds=class_embeds, background_threshold=self.threshold, **self.options)
        for result, mask in zip(found, masks, strict=True):
            self.matrix.update(self.merge_background(result.labels), torch.from_numpy(read_mask(mask)))

    def merge_background(self, labels: Tensor) -> Tensor:
        """Numbers of `[*background_names, *class_names]` to those of `labels`, where the background has names."""
        return (labels - len(self.background_names) + 1).clamp(min=0) if self.background_names else labels


def chance_levels(matrix: ConfusionMatrix) -> dict[str, float]:
    """Expected mean IoU, over the classes in the truth, of two predictions that look at no picture.

    Returns:
        `chance_mIoU`: every pixel one of the classes at random; `chance_mIoU_one_class`: the best class everywhere.
    """
    share = matrix.counts.sum(1).double() / matrix.counts.sum()
    share = share[share > 0]
    each = 1 / len(matrix.counts)
    random = share * each / (share + each - share * each)
    return {
        "chance_mIoU": random.mean().item(),
        "chance_mIoU_one_class": share.max().item() / len(share),
    }


def scene_segmentation(
    split: str = "test",
    *,
    image_size: int = 112,
    length: int = 200,
    background: float | None = None,
    seed: int = 0,
    **options: Any,
) -> ZeroShotSegmentation:
    """Segmentation of the embedded scenes; "test" has drawings that are never trained on.

    Args:
        split: see `load_drawings`.
        image_size: side of a scene, pixels; it is not resized before the model sees it.
        length: number of scenes.
        background: threshold; None: the background is found by the names of its colours, as captions tell it.
        seed: of the scenes.
        options: of `ZeroShotSegmentation`.
    """
    world = SceneWorld(split, image_size=image_size, length=length, seed=seed, train=False)
    names = SCENE_BACKGROUNDS if background is None else ()
    options = {"name": "scenes", "short_side": image_size, "background_names": names} | options
    return ZeroShotSegmentation(world, CLIPART_CLASSES, background=background, **options)
