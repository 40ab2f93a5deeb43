"""Makes a data set from another, part by part: parquet shards written by several processes, resumable at any time."""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from .sources import load_pairs

if TYPE_CHECKING:
    import datasets

# What may differ between two runs into one folder without changing what a shard holds.
FREE_SETTINGS = {"output_dir", "batch_size", "shard", "max_shards", "device", "streaming"}


@dataclass
class ShardArguments:
    """From where, to where, and which share of the work; for scripts that make one data set from another."""

    source: str = field(
        metadata={"help": "Hub data set id, folder of images (with metadata.jsonl/.csv or none), parquet or tar glob."}
    )
    output_dir: str = field(metadata={"help": "Folder of the parquet shards; complete shards in it are skipped."})
    split: str = field(default="train", metadata={"help": "Split of the source."})
    streaming: bool = field(default=False, metadata={"help": "Read the source while iterating (webdataset shards)."})
    image_column: str | None = field(default=None, metadata={"help": "Image column; a usual name when left out."})
    caption_column: str | None = field(
        default=None, metadata={"help": "Raw caption column, kept in the output; by its usual names when left out."}
    )
    shard_size: int = field(default=1000, metadata={"help": "Rows of the source per shard, the unit of resuming."})
    shard: str = field(
        default_factory=lambda: f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}",
        metadata={"help": "i/n: write shards i, i + n, i + 2n, ... with i from 0; torchrun's ranks when left out."},
    )
    max_shards: int | None = field(default=None, metadata={"help": "Stop after this many new shards."})
    device: str | None = field(default=None, metadata={"help": "Device of the model; LOCAL_RANK's GPU, or cpu."})

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}.")
        parse_shard(self.shard)
        if self.device is None:
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"

    def open(self) -> "datasets.Dataset | datasets.IterableDataset":
        """The rows of the source, captions or none."""
        return load_pairs(
            self.source,
            split=self.split,
            image_column=self.image_column,
            caption_column=self.caption_column,
            streaming=self.streaming,
            require_text=False,
        )

    def work(self) -> dict[str, Any]:
        """The arguments of `write_shards` of the same names."""
        return {"shard_size": self.shard_size, "share": parse_shard(self.shard), "max_shards": self.max_shards}

    def check(self, name: str) -> None:
        """`check_settings` with every argument that decides what a shard holds."""
        settings = {key: value for key, value in asdict(self).items() if key not in FREE_SETTINGS}
        check_settings(self.output_dir, settings, name)


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" to (2, 8).

    Raises:
        ValueError: not i/n with 0 <= i < n.
    """
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(f"shard must be i/n with i from 0 to n - 1, e.g. 0/8, got {text!r}.")
    return int(first), int(last)


def write_shards(
    dataset: Any,
    make_rows: Callable[[list[dict[str, Any]], int], list[dict[str, Any]]],
    output_dir: str | Path,
    *,
    features: "datasets.Features",
    prefix: str,
    shard_size: int = 1000,
    share: tuple[int, int] = (0, 1),
    max_shards: int | None = None,
) -> tuple[int, int]:
    """Writes `<prefix>-<first row>-<end row>.parquet` shards that `load_pairs` reads back.

    A shard is written under a hidden name and renamed when it is whole, so a shard that exists is complete and is
    skipped.

    Args:
        dataset: from `load_pairs`, map-style or streaming.
        make_rows: rows of the source, and the number of the first one, to the rows of the shard.
        output_dir: folder of the shards; made when missing.
        features: of the rows that are made.
        prefix: begins the names of the shards.
        shard_size: rows of the source per shard; the same for all runs into one folder (see `check_settings`).
        share: (i, n): which shards to write, i, i + n, i + 2n, ...
        max_shards: stop after this many new shards.

    Returns:
        How many shards were written, and how many were there already.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    output_dir, schema = Path(output_dir), features.arrow_schema
    output_dir.mkdir(parents=True, exist_ok=True)
    written = present = 0
    total = len(dataset) if hasattr(dataset, "__len__") else None
    with tqdm(total=total, unit="row", desc=f"{prefix} {share[0] + 1}/{share[1]}") as progress:
        for number, (start, rows) in enumerate(_blocks(dataset, shard_size)):
            if max_shards is not None and written == max_shards:
                break
            path = output_dir / f"{prefix}-{start:09d}-{start + len(rows):09d}.parquet"
            progress.update(len(rows))
            if path.exists():
                present += 1
            elif number % share[1] == share[0]:
                made = make_rows(list(rows), start)
                hidden = path.with_name(f".{path.name}.{os.getpid()}")
                pq.write_table(pa.Table.from_pylist(made, schema=schema), hidden)
                hidden.rename(path)
                written += 1
    return written, present


def check_settings(output_dir: str | Path, settings: dict[str, Any], name: str) -> None:
    """Keeps the settings of a run beside its shards, and refuses to continue it with others.

    Args:
        output_dir: folder of the shards; made when missing.
        settings: everything that decides what a shard holds, as JSON values.
        name: of what makes the shards; they are kept in `.<name>.json`.

    Raises:
        ValueError: the folder was begun with other settings.
    """
    path = Path(output_dir) / f".{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        hidden = path.with_name(f"{path.name}.{os.getpid()}")
        hidden.write_text(json.dumps(settings, indent=2))
        hidden.rename(path)
    before = json.loads(path.read_text())
    changed = [key for key in sorted(before.keys() | settings.keys()) if before.get(key) != settings.get(key)]
    if changed:
        differences = "; ".join(f"{key}: {before.get(key)!r} then, {settings.get(key)!r} now" for key in changed)
        raise ValueError(f"{output_dir} was begun with other settings ({differences}). Use these or another folder.")


def _blocks(dataset: Any, size: int) -> Iterator[tuple[int, Any]]:
    """(first row, rows) of consecutive parts; a map-style part is a view whose rows are not read yet."""
    if hasattr(dataset, "__len__"):
        for start in range(0, len(dataset), size):
            yield start, dataset.select(range(start, min(start + size, len(dataset))))
        return
    stream = iter(dataset)
    for start in itertools.count(0, size):
        rows = list(itertools.islice(stream, size))
        if not rows:
            return
        yield start, rows
