"""What `fit`, `predict` and `score` accept, said clearly where they do not."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

NORM_TOLERANCE = 1e-2  # rows normalised in float16 are off by up to 1e-3


def as_features(values: Any, dim: int | None, what: str, *, views: bool = False) -> Tensor:
    """Float32 features `[N, D]` with unit rows, or with `views` also raw encoder outputs `[A, N, D]`.

    Raises:
        ValueError: wrong number of dimensions, no rows, another width than `dim`, NaN or infinite values, or rows
            `[N, D]` that are not L2-normalised.
    """
    rows = torch.as_tensor(np.asarray(values) if isinstance(values, list | tuple) else values)
    rows = rows.detach().to(torch.float32)
    allowed = (2, 3) if views else (2,)
    if rows.ndim not in allowed or 0 in rows.shape:
        shape = "[N, D] or views [A, N, D]" if views else "[N, D]"
        raise ValueError(f"{what}: expected features {shape}, got shape {list(rows.shape)}.")
    if dim is not None and rows.shape[-1] != dim:
        raise ValueError(f"{what} are {rows.shape[-1]} wide, but the model's joint space has {dim} channels.")
    wrong = (~torch.isfinite(rows).all(-1)).nonzero()
    if len(wrong):
        raise ValueError(f"{what}: {len(wrong)} rows hold NaN or infinite values, the first is {wrong[0].tolist()}.")
    norms = rows.norm(dim=-1)
    if rows.ndim == 2 and (norms - 1).abs().max() > NORM_TOLERANCE:
        raise ValueError(
            f"{what} must have unit length, their norms lie between {norms.min():.3g} and {norms.max():.3g}: divide "
            "each row by its norm (torch.nn.functional.normalize(features, dim=-1))."
        )
    if rows.ndim == 3 and norms.min() == 0:
        raise ValueError(f"{what}: a view is all zeros.")
    return rows


def as_labels(labels: Any, class_names: Sequence[str] | None, classes: int, rows: int, what: str) -> Tensor:
    """Class indices `[N]` int64 from indices 0..C-1 or class names.

    Raises:
        ValueError: another number of labels than rows, names without or outside `class_names`, indices out of range.
        TypeError: labels are neither whole numbers nor names.
    """
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(values) != rows:
        raise ValueError(f"{what}: {rows} rows but {len(values)} labels.")
    if all(isinstance(value, str) for value in values):
        index = {name: i for i, name in enumerate(class_names or ())}
        unknown = sorted(set(values) - index.keys())
        if unknown:
            known = list(index)[:10] if index else "none; give class_names"
            raise ValueError(f"{what}: labels {unknown[:10]} are no class names; known: {known}.")
        return torch.tensor([index[value] for value in values])
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise TypeError(f"{what}: labels must be class indices or class names, got {values[:5]}.")
    outside = sorted({value for value in values if not 0 <= value < classes})
    if outside:
        raise ValueError(
            f"{what}: labels {outside[:10]} are not among 0..{classes - 1}, the {classes} classes of the text "
            "classifier: number the classes without gaps, or give labels as class names."
        )
    return torch.tensor(values)


def check_every_class_has_images(labels: Tensor, class_names: Sequence[str], classes: int) -> None:
    """Raises ValueError, naming them, if classes have no image; and if there is only one class."""
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}.")
    empty = (torch.bincount(labels, minlength=classes) == 0).nonzero().flatten().tolist()
    if empty:
        names = [class_names[i] if class_names else i for i in empty[:10]]
        raise ValueError(
            f"{len(empty)} of {classes} classes have no image: {names}. Fit the classes that have, then add the "
            "others by their texts alone (add_classes)."
        )


def check_honest_validation(labels: Tensor, support_labels: Tensor, classes: int) -> None:
    """Raises ValueError if a validation set is larger than a few-shot user could have: min(K, 4) images per class."""
    found = torch.bincount(labels, minlength=classes)
    allowed = torch.bincount(support_labels, minlength=classes).clamp(max=4)
    if (found > allowed).any():
        worst = int((found - allowed).argmax())
        raise ValueError(
            f"the honest protocol chooses on at most min(shots, 4) validation images per class; class {worst} has "
            f"{int(found[worst])}, allowed are {int(allowed[worst])}. Take fewer, or say protocol='paper' (the "
            "published protocol: thousands of labelled images), which every result then bears."
        )


def row_hashes(features: Tensor) -> set[bytes]:
    """One short hash per row, to find the same image in two sets."""
    rows = features.detach().to("cpu", torch.float32).contiguous().numpy()
    return {hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows}


def set_digest(hashes: set[bytes]) -> str:
    """A name for a set of rows, whatever their order."""
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()
