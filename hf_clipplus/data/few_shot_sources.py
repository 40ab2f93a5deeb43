"""Reads labelled images for few-shot classification: CoOp's splits of 11 data sets, class folders, Hub data sets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .clipart import CLASS_NAMES, EMBEDDED, CaptionWorld
from .sources import iterate

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SPLIT_NAMES = ("train", "val", "test")
# data set -> (folder, split file of CoOp, folder of its images)
COOP_SPLITS = {
    "caltech101": ("caltech-101", "split_zhou_Caltech101.json", "101_ObjectCategories"),
    "dtd": ("dtd", "split_zhou_DescribableTextures.json", "images"),
    "eurosat": ("eurosat", "split_zhou_EuroSAT.json", "2750"),
    "food101": ("food-101", "split_zhou_Food101.json", "images"),
    "oxford_flowers": ("oxford_flowers", "split_zhou_OxfordFlowers.json", "jpg"),
    "oxford_pets": ("oxford_pets", "split_zhou_OxfordPets.json", "images"),
    "stanford_cars": ("stanford_cars", "split_zhou_StanfordCars.json", "."),
    "sun397": ("sun397", "split_zhou_SUN397.json", "SUN397"),
    "ucf101": ("ucf101", "split_zhou_UCF101.json", "UCF-101-midframes"),
}
COOP_DATASETS = (*sorted(COOP_SPLITS), "fgvc_aircraft", "imagenet")


@dataclass
class LabelledImages:
    """Images with class indices.

    Args:
        class_names: C names.
        images: paths, or whatever `load_image` reads, by split.
        labels: class indices by split.
    """

    class_names: list[str]
    images: dict[str, list[Any]] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)


def read_coop_split(file: str | Path, image_folder: str | Path) -> LabelledImages:
    """A split file `{"train": [[path, label, class name], ...], "val": ..., "test": ...}`.

    Raises:
        ValueError: the file is not of that form, a class has two names, or a number is missing among the classes.
    """
    found, names = LabelledImages([]), {}
    try:
        splits = json.loads(Path(file).read_text(encoding="utf-8"))
        for split in SPLIT_NAMES:
            rows = [(str(path), int(label), str(name)) for path, label, name in splits[split]]
            found.images[split] = [str(Path(image_folder) / path) for path, _, _ in rows]
            found.labels[split] = [label for _, label, _ in rows]
            for _, label, name in rows:
                if names.setdefault(label, name) != name:
                    raise ValueError(f"class {label} is called {names[label]!r} and {name!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is no split file of CoOp (train, val, test: [path, label, name]): {error}"
        ) from error
    if sorted(names) != list(range(len(names))):
        raise ValueError(
            f"{file}: the classes are not numbered 0..{len(names) - 1} without gaps: {sorted(names)[:10]}."
        )
    found.class_names = [names[label] for label in range(len(names))]
    return found


def read_coop_dataset(name: str, root: str | Path) -> LabelledImages:
    """One of the 11 data sets as CoOp lays them out under `root`.

    ImageNet has no test split of its own there: its validation images are the test split, and "val" is missing, so
    that nobody chooses on test images; take validation images from train.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: a file is not there.
    """
    root = Path(root)
    if name in COOP_SPLITS:
        folder, file, images = COOP_SPLITS[name]
        return read_coop_split(root / folder / file, root / folder / images)
    if name == "fgvc_aircraft":
        return _read_aircraft(root / "fgvc_aircraft")
    if name == "imagenet":
        return _read_imagenet(root / "imagenet")
    raise ValueError(f"data set {name!r} is unknown: choose one of {', '.join(COOP_DATASETS)}.")


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_aircraft(folder: Path) -> LabelledImages:
    names = _lines(folder / "variants.txt")
    index, found = {name: i for i, name in enumerate(names)}, LabelledImages(names)
    for split in SPLIT_NAMES:
        rows = [line.split(" ", 1) for line in _lines(folder / f"images_variant_{split}.txt")]
        found.images[split] = [str(folder / "images" / f"{number}.jpg") for number, _ in rows]
        found.labels[split] = [index[name] for _, name in rows]
    return found


def _read_imagenet(folder: Path) -> LabelledImages:
    synsets = [line.split(" ", 1) for line in _lines(folder / "classnames.txt")]
    found = LabelledImages([name for _, name in synsets])
    for split, source in (("train", "train"), ("test", "val")):
        rows = [
            (str(path), label)
            for label, (synset, _) in enumerate(synsets)
            for path in sorted((folder / "images" / source / synset).iterdir())
        ]
        found.images[split], found.labels[split] = [path for path, _ in rows], [label for _, label in rows]
    return found


def read_class_folders(folder: str | Path) -> LabelledImages:
    """`folder/<class>/*.jpg`, or `folder/<split>/<class>/*.jpg` with the splits train, val (or validation) and test.

    Raises:
        ValueError: no class folders, or the splits have other classes.
    """
    folder = Path(folder)
    aliases = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
    roots = {split: folder / alias for split, names in aliases.items() for alias in names if (folder / alias).is_dir()}
    roots = roots or {"train": folder}
    names = sorted(path.name for path in next(iter(roots.values())).iterdir() if path.is_dir())
    if not names:
        raise ValueError(f"{folder} has no class folders with images.")
    found = LabelledImages(names)
    for split, root in roots.items():
        others = sorted(path.name for path in root.iterdir() if path.is_dir())
        if not set(others) <= set(names):
            raise ValueError(
                f"{root} has classes that {roots['train']} lacks: {sorted(set(others) - set(names))[:10]}."
            )
        rows = [
            (str(path), names.index(name))
            for name in others
            for path in sorted((root / name).rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        found.images[split], found.labels[split] = [path for path, _ in rows], [label for _, label in rows]
    return found


def read_hub_dataset(name: str, *, image_column: str = "image", label_column: str = "label") -> LabelledImages:
    """A data set of the Hub, or any that `datasets.load_dataset` opens, with a ClassLabel column.

    Raises:
        ValueError: the label column holds no class names.
    """
    import datasets

    opened = datasets.load_dataset(name)
    feature = next(iter(opened.values())).features[label_column]
    if not hasattr(feature, "names"):
        raise ValueError(f"column {label_column!r} of {name!r} is no ClassLabel, so the classes have no names.")
    found = LabelledImages([each.replace("_", " ") for each in feature.names])
    for split, alias in (("train", "train"), ("val", "validation"), ("val", "val"), ("test", "test")):
        if alias in opened:
            rows = opened[alias].cast_column(image_column, datasets.Image(decode=False))
            found.images[split], found.labels[split] = list(rows[image_column]), list(rows[label_column])
    return found


def read_class_sentences(file: str | Path, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Sentences per class in CuPL's form, `{class name: [sentence, ...]}`; underscores and spaces are the same.

    Raises:
        ValueError: the file is not of that form, or classes are missing (they are named).
    """
    stored = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or not all(
        isinstance(value, list) and value and all(isinstance(text, str) for text in value) for value in stored.values()
    ):
        raise ValueError(f"{file}: expected {{class name: [sentence, ...]}}.")
    plain = {name.replace("_", " ").lower(): texts for name, texts in stored.items()}
    missing = [name for name in class_names if name.replace("_", " ").lower() not in plain]
    if missing:
        raise ValueError(f"{file} has no sentences for {len(missing)} classes: {missing[:10]}.")
    return {name: plain[name.replace("_", " ").lower()] for name in class_names}


def open_images(dataset: str, *, root: str = "data", image_size: int = 224) -> LabelledImages:
    """Images and labels by split, of whatever a data set is; every image that is not for testing may be drawn.

    Args:
        dataset: `EMBEDDED`, the drawings; "coop:NAME", one of CoOp's splits below `root`; class folders; or
            a Hub id.
        root: where CoOp's data sets are.
        image_size: side of the embedded pictures, pixels.
    """
    if dataset == EMBEDDED:
        return _embedded_classes(image_size)
    if dataset.startswith("coop:"):
        return read_coop_dataset(dataset.removeprefix("coop:"), root)
    return read_class_folders(dataset) if Path(dataset).is_dir() else read_hub_dataset(dataset)


def _embedded_classes(image_size: int) -> LabelledImages:
    """The drawings that have a class, for training and for testing."""
    found = LabelledImages(list(CLASS_NAMES))
    for name, split in (("train", "train+validation"), ("test", "test")):
        world = CaptionWorld(split, image_size=image_size, train=False)
        rows = [row for row in iterate(world) if row["class_name"] is not None]
        found.images[name] = [row["image"] for row in rows]
        found.labels[name] = [found.class_names.index(row["class_name"]) for row in rows]
    return found
