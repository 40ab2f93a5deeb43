"""Zero-shot classification with a template ensemble: the classifier is made of class names alone.

Example::

    evaluator = ZeroShotClassification(rows, ["cat", "dog"], ["a photo of a {}.", "a drawing of a {}."])
    evaluator(model, processor)  # {"top1": ..., "mean_per_class": ..., "chance_top1": 0.5, "samples": ..., ...}
"""

import numbers
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_clipplus.evaluation.attacked import PixelAttack, encode_attacked_images
from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.metrics import ClassificationAccuracy, similarity, tile_slices
from hf_clipplus.evaluation.rows import Column

DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a picture that shows a {}.",
    "a close-up of one {}.",
    "a {} seen from a distance.",
    "a drawing of a {}.",
    "a dark and blurry photo of a {}.",
    "several of them: {}.",
)
CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


class ZeroShotClassification:
    """Evaluator: top-1, top-5 and mean per class accuracy of a template ensemble over a labelled data set.

    Args:
        rows: sequence of dicts (or a `datasets.Dataset`) with an image and a label.
        class_names: the text of every class, in the order of integer labels (or the names of the ClassLabel column in
            any order). None takes the names of that column, or the sorted distinct labels if those are strings.
        templates: prompts with `{}` or clip-benchmark's `{c}` where the class name goes.
        name: prefix for the results, e.g. in a Trainer's log.
        image_column: what `load_image` reads.
        label_column: class indices, or class names as strings.
        batch_size: images per forward pass and process.
        autocast_dtype: see `encode_images`.
        progress: show progress bars.
        normalize_prompts: see `zero_shot_classifier`.
        attack: also tell the accuracy on images attacked so, for a forward and a backward pass more each step.

    Raises:
        ValueError: a class name is blank or appears twice, a template has no place for the name, a label is missing
            or no class (the row's index is named), no class names can be found, or they are not as many as the
            ClassLabel column's.
    """

    task = "zero-shot-image-classification"

    def __init__(
        self,
        rows: Sequence,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        *,
        name: str = "zero_shot",
        image_column: str = "image",
        label_column: str = "label",
        batch_size: int = 64,
        autocast_dtype: torch.dtype | None = None,
        progress: bool = False,
        normalize_prompts: bool = True,
        attack: PixelAttack | None = None,
    ):
        labels = Column(rows, label_column)
        class_names = class_names if class_names is not None else _names_of(labels)
        _check_prompts(class_names, templates)
        self.class_names, self.templates = list(class_names), list(templates)
        self.targets = _class_indices(labels, self.class_names)
        self.images = Column(rows, image_column)
        self.name = name
        self.options = {"batch_size": batch_size, "autocast_dtype": autocast_dtype, "progress": progress}
        self.normalize_prompts, self.attack = normalize_prompts, attack

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is; under `torch.distributed` every rank must call and gets the same result.

        Returns:
            `top1`, `top5` (with more than 5 classes), `mean_per_class` and `chance_top1` in [0, 1], and the counts
            `samples`, `classes` and `classes_without_samples` (these do not enter `mean_per_class`). With an attack,
            also `attacked_top1`, ... of the accuracies, and `attack_radius` in grey levels of 255.
        """
        classifier = zero_shot_classifier(
            model,
            processor,
            self.class_names,
            self.templates,
            normalize_prompts=self.normalize_prompts,
            **self.options,
        )
        images = encode_images(model, processor, self.images, **self.options)
        classes = len(self.class_names)
        found = {**self._accuracy(images, classifier), "classes": float(classes), "chance_top1": 1 / classes}
        if self.attack is not None:
            images = encode_attacked_images(
                model, processor, self.images, self.targets, classifier, self.attack, **self.options
            )
            accuracies = ("top1", "top5", "mean_per_class")
            attacked = self._accuracy(images, classifier).items()
            found |= {f"attacked_{name}": value for name, value in attacked if name in accuracies}
            found["attack_radius"] = float(self.attack.radius)
        return found

    def _accuracy(self, images: Tensor, classifier: Tensor) -> dict[str, float]:
        accuracy = ClassificationAccuracy(len(self.class_names))
        for rows in tile_slices(len(images), 1024):
            accuracy.update(similarity(images[rows], classifier.T), self.targets[rows])
        return accuracy.compute()


def zero_shot_classifier(
    model: nn.Module,
    processor: Any,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    normalize_prompts: bool = True,
    **options: Any,
) -> Tensor:
    """Weights of a linear classifier made of text: per class the normalised mean of its normalised prompts.

    Args:
        model, processor: see `encode_texts`.
        class_names: distinct and not blank.
        templates: prompts with `{}` or `{c}`.
        normalize_prompts: False averages the prompts' embeddings as they are, as GroupViT's published code does.
        options: `batch_size`, `autocast_dtype`, `progress` of `encode_texts`.

    Returns:
        [dim, classes] float32 on the CPU, columns L2-normalised.
    """
    _check_prompts(class_names, templates)
    prompts = [fill_template(template, name) for name in class_names for template in templates]
    embeds = encode_texts(model, processor, prompts, normalized=normalize_prompts, **options)
    return normalize(embeds.view(len(class_names), len(templates), -1).mean(1), dim=-1).T  # [D, classes]


def fill_template(template: str, class_name: str) -> str:
    """The prompt: `class_name` in place of every `{}` or `{c}`."""
    return template.replace("{c}", class_name).replace("{}", class_name)


def read_class_texts(folder: str | Path) -> tuple[list[str], list[str]]:
    """Class names and templates of a local clip-benchmark data set: one entry per line, blank lines left out.

    Args:
        folder: holds `classnames.txt` and perhaps `zeroshot_classification_templates.txt`.

    Returns:
        (class names, templates); our default templates where the folder has none.

    Raises:
        FileNotFoundError: there is no `classnames.txt`.
        ValueError: one of the files is empty.
    """
    folder = Path(folder)
    if not (folder / CLASS_NAMES_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {CLASS_NAMES_FILE}, which should list one class name per line")
    templates = folder / TEMPLATES_FILE
    return _lines(folder / CLASS_NAMES_FILE), _lines(templates) if templates.is_file() else list(DEFAULT_TEMPLATES)


def _lines(file: Path) -> list[str]:
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file} is empty, expected one entry per line")
    return lines


def _check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if isinstance(class_names, str) or isinstance(templates, str):
        raise TypeError("class names and templates must be lists of strings, got one string")
    blank = [index for index, name in enumerate(class_names) if not name.strip()]
    if blank or not class_names:
        raise ValueError(f"class name {blank[0]} is blank" if blank else "there are no class names")
    twice = [name for name, count in Counter(name.strip() for name in class_names).items() if count > 1]
    if twice:
        raise ValueError(f"class names must differ, these appear more than once: {twice}; tell them apart in words")
    wrong = [template for template in templates if "{}" not in template and "{c}" not in template]
    if wrong or not templates:
        raise ValueError(f"templates must hold {{}} or {{c}} for the class name, got {wrong or 'none at all'}")


def _class_label_names(labels: Column) -> list[str] | None:
    """The names of a `datasets.ClassLabel` column."""
    feature = (getattr(labels.rows, "features", None) or {}).get(labels.name)
    return list(feature.names) if hasattr(feature, "names") else None


def _names_of(labels: Column) -> list[str]:
    """Class names that the data set itself knows."""
    known = _class_label_names(labels)
    if known is not None:
        return known
    distinct = set(labels)
    if not all(isinstance(label, str) for label in distinct):
        raise ValueError(
            f"column {labels.name!r} has no class names (no ClassLabel, and not all labels are strings): "
            f"pass class_names"
        )
    return sorted(distinct)


def _class_indices(labels: Column, class_names: list[str]) -> Tensor:
    """[rows] class indices of integer or string labels.

    Integers of a ClassLabel column whose names are given in another order go by the name.
    """
    known = _class_label_names(labels) or class_names
    if len(known) != len(class_names):
        raise ValueError(f"got {len(class_names)} class names, but column {labels.name!r} has {len(known)} classes")
    same = set(known) == set(class_names)
    names = {name: index for index, name in enumerate(class_names)}
    targets = []
    for row, label in enumerate(labels):
        if isinstance(label, str):
            index = names.get(label)
        else:
            index = label if isinstance(label, numbers.Integral) and 0 <= label < len(known) else None
            index = names[known[index]] if same and index is not None else index
        if index is None:
            raise ValueError(f"row {row}: label {label!r} is none of the {len(class_names)} classes")
        targets.append(int(index))
    return torch.tensor(targets, dtype=torch.long)
