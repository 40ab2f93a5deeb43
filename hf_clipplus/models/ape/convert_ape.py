"""Imports what the published code of APE and Tip-Adapter leaves behind, without running anything a file contains.

The files are pickles. `torch.load(weights_only=True)` reads tensors only; a pickled module (APE-T's checkpoint) is
rebuilt with every foreign class and function replaced by an inert stand-in, so that none of its code can run.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class OfficialCache:
    """A data set's folder of the published code, in our orientation and float32.

    Args:
        keys, labels: `[N, D]` unit rows and `[N]`.
        text_weight: `[C, D]`, unit rows.
        validation, test: `[., D]` unit features with labels `[.]`; None where the files are not there.
    """

    keys: Tensor
    labels: Tensor
    text_weight: Tensor
    validation: tuple[Tensor, Tensor] | None = None
    test: tuple[Tensor, Tensor] | None = None


def read_official_cache(folder: str | Path, shots: int) -> OfficialCache:
    """`keys_{K}shots.pt` `[D, N]`, `values_{K}shots.pt` `[N, C]`, `text_weights_cupl_t.pt` `[D, C]`, val and test.

    Raises:
        FileNotFoundError: a file is not there; says what the folder holds.
        ValueError: shapes that do not fit each other, or values that are no one-hot labels.
    """
    folder = Path(folder)
    keys = read_tensor(_existing(folder, f"keys_{shots}shots.pt")).T
    values = read_tensor(_existing(folder, f"values_{shots}shots.pt"))
    text = read_tensor(_existing(folder, "text_weights_cupl_t.pt")).T
    if keys.shape != (len(values), text.shape[1]) or values.shape[1] != len(text):
        raise ValueError(
            f"{folder}: keys {list(keys.T.shape)}, values {list(values.shape)} and text weights {list(text.T.shape)} "
            "do not fit: expected [D, N], [N, C], [D, C]."
        )
    if not torch.equal(values.sum(1), torch.ones(len(values))) or values.max() != 1:
        raise ValueError(f"{folder}: values_{shots}shots.pt holds no one-hot labels.")
    splits = {
        split: (normalize(read_tensor(folder / f"{split}_f.pt"), dim=1), read_tensor(folder / f"{split}_l.pt").long())
        if (folder / f"{split}_f.pt").is_file()
        else None
        for split in ("val", "test")
    }
    rows = (normalize(each, dim=1).contiguous() for each in (keys, text))
    keys, text = rows
    return OfficialCache(keys, values.argmax(1), text, splits["val"], splits["test"])


def read_ape_t_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """`res` `[C, Q]`, `value_weights` `[N, 1]` and `indices` `[Q]` of a published `APE-T_{K}shots.pt`.

    The file is a pickled module; `indices` is a plain attribute of it, so a bare state dict does not have it.

    Raises:
        ValueError: one of the three is not in the file.
    """
    module = load_inert(file)
    found = module if isinstance(module, dict) else {**vars(module), **vars(module).get("_parameters", {})}
    missing = [name for name in ("res", "value_weights", "indices") if not isinstance(found.get(name), Tensor)]
    if missing:
        raise ValueError(
            f"{file} has no {', '.join(missing)}: expected the pickled module of the published code. Without indices "
            "the channels must be chosen again (attach_ape_t does it from the same text weights)."
        )
    return {name: found[name].detach() for name in ("indices",)} | {
        name: found[name].detach().float() for name in ("res", "value_weights")
    }


def read_tensor(file: str | Path) -> Tensor:
    """One tensor as float32, e.g. Tip-Adapter-F's `best_F_{K}shots.pt` `[N, D]`.

    Raises:
        ValueError: the file holds something else.
    """
    found = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, Tensor):
        raise ValueError(f"{file} holds {type(found).__name__}, expected a tensor.")
    return found.detach().float()


class _Inert:
    """Stands for any class or function that a file names: takes whatever it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def load_inert(file: str | Path) -> Any:
    """A pickled object with its tensors and attributes, foreign classes replaced by stand-ins without behaviour."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    stand_ins = [(type("_Inert", (_Inert,), {}), name) for name in names]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} is refused: it names code that no checkpoint needs, see above. {names}") from error


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        there = sorted(path.name for path in folder.glob("*.pt")) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder / name} is not there; the folder has {there}.")
    return folder / name
