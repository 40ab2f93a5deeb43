"""Finds the checkpoint to resume from: the last one that was written to its end."""

import json
import zipfile
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


def why_incomplete(checkpoint: str | Path) -> str | None:
    """What is missing in a Trainer checkpoint folder, or None when it is whole.

    Trainer writes `trainer_state.json` after everything else, so a readable one says that the rest was written; every
    other file is checked against its own directory of contents all the same, as a copy may have been cut.
    """
    checkpoint = Path(checkpoint)
    needed = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
    for file in sorted({*(checkpoint / name for name in needed), *checkpoint.glob("*")}):
        if not _is_whole(file):
            return f"{file.name} is missing or cut short"
    state = _read_json(checkpoint / "trainer_state.json")
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return "trainer_state.json has no step"
    for index in checkpoint.glob("*.safetensors.index.json"):
        for shard in sorted(set(_read_json(index)["weight_map"].values())):
            if not (checkpoint / shard).exists():
                return f"{shard} is missing"
    for kind in ("*config.json", "*.safetensors", "rng_state*.pth"):
        if not list(checkpoint.glob(kind)):
            return f"no {kind}"
    return None


def _is_whole(file: Path) -> bool:
    """Whether a file is there to its end; kinds that do not say where they end only have to be there."""
    if file.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors":
        return is_whole_safetensors(file)
    if file.suffix == ".json":
        try:
            _read_json(file)
        except (OSError, ValueError):
            return False
        return True
    return file.exists()


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def is_whole_safetensors(file: Path) -> bool:
    """Whether a file is in safetensors' format and ends where its header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, size)))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Path of the newest whole `checkpoint-<step>` in `folder`, or None; incomplete ones are named in a warning."""
    folder = Path(folder)
    steps = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(steps, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        problem = why_incomplete(path)
        if problem is None:
            return str(path)
        logger.warning(f"{path} was not written to its end ({problem}); looking for an earlier checkpoint.")
    return None
