"""Finds the checkpoint to resume from: the last one that was written to its end."""

import json
import zipfile
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)


def why_incomplete(checkpoint: str | Path) -> str | None:
    """What is missing in a Trainer checkpoint folder, or None when it is whole.

    Trainer writes `trainer_state.json` after everything else, so a readable one says that the rest was written; the
    weights and the optimizer state are checked against their own directories of contents all the same.
    """
    checkpoint = Path(checkpoint)
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return "trainer_state.json is missing or cut short"
    if not isinstance(state.get("global_step"), int):
        return "trainer_state.json has no step"
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return "no *.safetensors"
    for file in weights:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                header = json.loads(stream.read(min(length, file.stat().st_size)))
            except ValueError:
                return f"{file.name} is cut short"
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if file.stat().st_size != 8 + length + max(ends, default=0):
            return f"{file.name} is cut short"
    for name in ("optimizer.pt", "scheduler.pt"):
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is missing or cut short"
    return None


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
