"""Pictures with masks of classes: VOC 2012, Pascal Context and COCO-Object from their folders, and Hub data sets.

Every reader gives rows `{"image", "mask"}` that are read when asked for; a mask is `[h, w]` uint8, 0 the background,
255 pixels that do not count.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Category ids of COCO's 80 object classes, in their order; a mask of COCO-Stuff-164k holds id - 1
_COCO_IDS = (
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
)  # fmt: skip
_COCO_TABLE = np.zeros(256, dtype=np.uint8)
_COCO_TABLE[np.array(_COCO_IDS) - 1] = np.arange(1, 81, dtype=np.uint8)


class MaskedImages(Sequence):
    """Rows of image files and mask files.

    Args:
        images, masks: paths, one mask per image.
        convert: changes the levels of a mask file into classes; None leaves them.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        convert: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.images, self.masks, self.convert = list(images), list(masks), convert

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = read_mask(self.masks[index])
        return {"image": str(self.images[index]), "mask": mask if self.convert is None else self.convert(mask)}


def read_mask(mask: Any) -> np.ndarray:
    """`[h, w]` uint8 levels of a mask: a path, a PIL image of mode P or L (palette numbers are kept), or an array.

    Raises:
        ValueError: the mask has colours instead of class numbers, or numbers above 255.
    """
    if isinstance(mask, str | Path):
        with Image.open(mask) as file:
            return read_mask(file)
    if isinstance(mask, Image.Image):
        if mask.mode not in ("P", "L", "1", "I", "I;16"):
            raise ValueError(f"a mask has mode {mask.mode!r}: expected class numbers in a palette or grey image.")
        mask = np.array(mask)
    levels = np.asarray(mask)
    if levels.ndim != 2 or levels.min() < 0 or levels.max() > 255:
        raise ValueError(
            f"a mask must be [h, w] class numbers from 0 to 255, got {list(levels.shape)} from {levels.min()} to "
            f"{levels.max()}."
        )
    return levels.astype(np.uint8)


def read_voc(folder: str | Path, split: str = "val") -> MaskedImages:
    """PASCAL VOC 2012, classes as `CLASS_NAMES["voc"]`.

    Args:
        folder: holds `ImageSets/Segmentation/<split>.txt`, `JPEGImages`, `SegmentationClass`.
        split: "train", "val" or "trainval".
    """
    return _from_list(Path(folder), f"ImageSets/Segmentation/{split}.txt", "JPEGImages", "SegmentationClass")


def read_context(folder: str | Path, split: str = "val") -> MaskedImages:
    """Pascal Context with 59 classes and background, classes as `CLASS_NAMES["context"]`.

    Args:
        folder: holds `ImageSets/SegmentationContext/<split>.txt`, `JPEGImages`, `SegmentationClassContext` (as the
            usual conversion of its JSON writes them).
        split: "train" or "val".
    """
    lists = f"ImageSets/SegmentationContext/{split}.txt"
    return _from_list(Path(folder), lists, "JPEGImages", "SegmentationClassContext")


def read_coco_object(folder: str | Path, split: str = "val2017") -> MaskedImages:
    """COCO-Object, classes as `CLASS_NAMES["coco"]`: COCO-Stuff-164k masks, all but the 80 objects being background.

    Unlabelled pixels are background too, as published; so nothing is left out.

    Args:
        folder: holds `images/<split>/*.jpg` and `annotations/<split>/*.png` (COCO-Stuff's pixel maps).
        split: "train2017" or "val2017".

    Raises:
        FileNotFoundError: there is no such folder, or a mask has no picture.
    """
    masks = sorted((Path(folder) / "annotations" / split).glob("*.png"))
    masks = [mask for mask in masks if "Train" not in mask.stem]  # files that other conversions leave beside them
    images = [Path(folder) / "images" / split / f"{mask.stem}.jpg" for mask in masks]
    _check_files(Path(folder) / "annotations" / split, images)
    return MaskedImages(images, masks, coco_objects)


def coco_objects(levels: np.ndarray) -> np.ndarray:
    """Levels of a COCO-Stuff-164k mask to classes 1 to 80 in COCO's order, everything else 0."""
    return _COCO_TABLE[levels]


def read_hub_masks(
    name: str, split: str = "validation", *, image_column: str = "image", mask_column: str = "mask", **options: Any
) -> "HubMasks":
    """Rows of a Hub data set, or of any that `datasets.load_dataset` opens, with an image and a mask column.

    Args:
        options: for `load_dataset`.

    Raises:
        ValueError: there is no such column.
    """
    import datasets

    rows = datasets.load_dataset(name, split=split, **options)
    if missing := {image_column, mask_column} - set(rows.column_names):
        raise ValueError(f"{name} has no column {sorted(missing)}; it has {rows.column_names}.")
    return HubMasks(rows.cast_column(image_column, datasets.Image(decode=False)), image_column, mask_column)


class HubMasks(Sequence):
    """Rows `{"image", "mask"}` of a `datasets.Dataset`."""

    def __init__(self, rows: Any, image_column: str, mask_column: str):
        self.rows, self.columns = rows, (image_column, mask_column)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image, mask = (row[column] for column in self.columns)
        return {"image": image, "mask": read_mask(mask)}


def _from_list(folder: Path, list_file: str, images: str, masks: str) -> MaskedImages:
    if not (folder / list_file).is_file():
        raise FileNotFoundError(f"{folder} has no {list_file}: expected the layout of the published data set.")
    names = [line.split()[0] for line in (folder / list_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    image_files = [folder / images / f"{name}.jpg" for name in names]
    mask_files = [folder / masks / f"{name}.png" for name in names]
    _check_files(folder / list_file, [*image_files, *mask_files])
    return MaskedImages(image_files, mask_files)


def _check_files(source: Path, files: list[Path]) -> None:
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        what = f"{len(missing)} files are missing, the first is {missing[0]}" if missing else "it names no files"
        raise FileNotFoundError(f"{source}: {what}.")
