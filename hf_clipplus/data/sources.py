"""Opens image-text data of any usual form as rows with the same column names, without decoding a single image."""

import csv
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers.utils import logging

if TYPE_CHECKING:
    import datasets

logger = logging.get_logger(__name__)

# Where a column is looked for when the caller does not say, best first; the names with ".json" are webdataset's.
COLUMN_CANDIDATES = {
    "image": ("image", "jpg", "jpeg", "png", "webp"),
    "caption": ("caption", "text", "txt", "alt_text"),
    "pseudo_captions": ("pseudo_captions", "captions", "pseudo_captions.json", "captions.json"),
    "image_id": ("image_id",),
    "caption_id": ("caption_id",),
    "mining_image_features": ("mining_image_features", "mining_image_feature"),
    "mining_text_features": ("mining_text_features", "mining_text_feature"),
}
_METADATA_FILES = ("metadata.jsonl", "metadata.csv")
_FILE_FORMATS = {".parquet": "parquet", ".tar": "webdataset"}


def load_pairs(
    source: str | Path,
    *,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
    pseudo_captions_column: str | None = None,
    image_id_column: str | None = None,
    caption_id_column: str | None = None,
    mining_image_feature_column: str | None = None,
    mining_text_feature_column: str | None = None,
    streaming: bool = False,
    require_text: bool = True,
    **load_dataset_kwargs: Any,
) -> "datasets.Dataset | datasets.IterableDataset":
    """Image-text rows from a Hub data set, a folder, parquet files or webdataset shards.

    Args:
        source: a Hub data set id; a folder of images with metadata.jsonl or metadata.csv (column `file_name`, relative
            to the metadata file), at its top, in `<split>/` or below; any other folder that `load_dataset` reads; a
            parquet file or glob; a glob of webdataset shards (`*.tar`).
        split: which split; files given by name or glob all belong to it.
        image_column ... mining_text_feature_column: the source's name of each column; when None, the first of
            `COLUMN_CANDIDATES` that the source has, if any (said in the log).
        streaming: read while iterating instead of converting to Arrow first.
        require_text: whether a source without captions and pseudo-captions is an error.
        load_dataset_kwargs: passed on to `datasets.load_dataset` (`name`, `revision`, `cache_dir`, ...).

    Returns:
        A data set with those of these columns that the source has: `image` ({"bytes", "path"}, not decoded, so that
        neither a corrupt nor a missing file stops the loading; `images.load_image` reads it and says so), `caption`,
        `pseudo_captions` (list of str, also from a JSON or newline separated string), `image_id` and `caption_id`
        (int64, a stable hash of ids that are not integers), `mining_image_features`, `mining_text_features`.

    Raises:
        FileNotFoundError: a local source is not there, or has no such split.
        ValueError: a named column does not exist, there is no image or no text column, or a column's type is wrong.
    """
    named = {
        "image": image_column,
        "caption": caption_column,
        "pseudo_captions": pseudo_captions_column,
        "image_id": image_id_column,
        "caption_id": caption_id_column,
        "mining_image_features": mining_image_feature_column,
        "mining_text_features": mining_text_feature_column,
    }
    dataset = _open(str(source), split, streaming, load_dataset_kwargs)
    columns = _choose_columns(source, list(dataset.features), named, require_text)
    dataset = dataset.select_columns(list(columns.values()))
    dataset = dataset.rename_columns({column: name for name, column in columns.items() if column != name})
    return _canonical_types(source, dataset)


def _open(source: str, split: str, streaming: bool, options: dict[str, Any]):
    import datasets

    if Path(source).is_dir():
        metadata = _find_metadata(Path(source), split)
        if metadata:
            return _read_image_folder(metadata, streaming)
        dataset = datasets.load_dataset(source, split=split, streaming=streaming, **options)
    elif Path(source).suffix in _FILE_FORMATS:
        files = [source] if "://" in source else sorted(glob.glob(source, recursive=True))
        if not files:
            raise FileNotFoundError(f"No file matches {source!r}.")
        format = _FILE_FORMATS[Path(source).suffix]
        files = {split.split("[")[0]: files}
        dataset = datasets.load_dataset(format, data_files=files, split=split, streaming=streaming, **options)
    elif Path(source).is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise FileNotFoundError(
            f"{source!r} is neither a folder nor a parquet or tar file; a Hub data set id looks like `user/name`."
        )
    else:
        dataset = datasets.load_dataset(source, split=split, streaming=streaming, **options)

    if dataset.features is None:  # a stream of json or csv lines knows its columns only from its rows
        import pyarrow as pa

        head = pa.Table.from_pylist(list(dataset.take(100)))
        dataset = dataset.cast(datasets.Features.from_arrow_schema(head.schema))
    # Before anything else touches a stream: its other operations would decode every image, corrupt ones included.
    return dataset.decode(False) if isinstance(dataset, datasets.IterableDataset) else dataset


def _find_metadata(folder: Path, split: str) -> list[Path]:
    """The metadata files of a split; none when the folder is not of that kind."""
    if not any(path for name in _METADATA_FILES for path in folder.rglob(name)):
        return []
    root = folder / split if (folder / split).is_dir() else folder
    found = sorted(path for name in _METADATA_FILES for path in root.rglob(name))
    if not found or (root == folder and split != "train"):
        raise FileNotFoundError(
            f"{folder} has image folder metadata but none for the split {split!r}: expected one of {_METADATA_FILES} "
            f"in {folder / split} (files at the top belong to 'train')."
        )
    return found


def _read_image_folder(metadata: list[Path], streaming: bool):
    """The rows of an image folder; unlike with `imagefolder`, a file that is not there stays a row."""
    import datasets

    rows = []
    for path in metadata:
        with open(path, encoding="utf-8", newline="") as file:
            lines = (
                csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
            )
            for number, row in enumerate(lines, 1):
                if "file_name" not in row:
                    raise ValueError(f"Row {number} of {path} has no `file_name`; it has {sorted(map(str, row))}.")
                name = row.pop("file_name")
                rows.append({**row, "image": {"bytes": None, "path": str(path.parent / name) if name else None}})
    columns = {column: [row.get(column) for row in rows] for column in dict.fromkeys(c for row in rows for c in row)}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if streaming else dataset


def _choose_columns(source: str | Path, existing: list[str], named: Mapping[str, str | None], require_text: bool):
    columns: dict[str, str] = {}
    for name, column in named.items():
        if column is not None and column not in existing:
            raise ValueError(f"{source} has no column {column!r} (asked for as {name}); it has {existing}.")
        free = [c for c in COLUMN_CANDIDATES[name] if c in existing and c not in named.values()]
        if column is not None or free:
            columns[name] = column or free[0]
    if "image" not in columns:
        raise ValueError(f"{source} has no image column by a usual name; name it (image_column). It has {existing}.")
    if require_text and not {"caption", "pseudo_captions"} & columns.keys():
        raise ValueError(
            f"{source} has no text column by a usual name; name it (caption_column or pseudo_captions_column). "
            f"It has {existing}."
        )
    chosen = {name: column for name, column in columns.items() if named[name] is None}
    if chosen:
        logger.info(f"Columns of {source} chosen by name: {', '.join(f'{n} <- {c}' for n, c in chosen.items())}.")
    return columns


def _canonical_types(source: str | Path, dataset):
    import datasets

    features, string = dataset.features, datasets.Value("string")
    kind = features["image"]
    if not (
        isinstance(kind, datasets.Image)
        or (isinstance(kind, datasets.Value) and kind.dtype in {"string", "large_string", "binary", "large_binary"})
        or (isinstance(kind, dict) and {"bytes", "path"} & kind.keys())
    ):
        raise ValueError(f"The image column of {source} holds {kind}, not images, paths or bytes.")
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    if "caption" in features and not isinstance(features["caption"], datasets.Value):
        raise ValueError(
            f"The caption column of {source} holds {features['caption']}, not one text per row; "
            "name a list of captions as pseudo_captions_column instead."
        )

    changes: dict[str, Any] = {}
    converters = {
        "caption": lambda value: None if value is None else str(value),
        "pseudo_captions": caption_list,
        "image_id": stable_id,
        "caption_id": stable_id,
    }
    if "caption" in features and features["caption"] != string:
        changes["caption"] = string
    if "pseudo_captions" in features and features["pseudo_captions"] != datasets.List(string):
        changes["pseudo_captions"] = datasets.List(string)
    for name in {"image_id", "caption_id"} & features.keys():
        if features[name] != datasets.Value("int64"):
            changes[name] = datasets.Value("int64")
    if not changes:
        return dataset

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        return {name: converters[name](row[name]) for name in changes}

    if isinstance(dataset, datasets.IterableDataset):
        return dataset.map(convert, features=datasets.Features({**dataset.features, **changes}))
    small = dataset.select_columns(list(changes)).map(convert, features=datasets.Features(changes))
    return datasets.concatenate_datasets(
        [dataset.remove_columns(list(changes)), small], axis=1
    )  # images not rewritten


def caption_list(value: Any) -> list[str]:
    """Pseudo-captions as a list of strings: from a list, a JSON list in a string, lines of a string, or None.

    Raises:
        TypeError: `value` is none of these.
    """
    if value is None:
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return caption_list(json.loads(value))
            except json.JSONDecodeError:
                pass  # a text that merely begins with a bracket
        return [line.strip() for line in value.splitlines() if line.strip()]
    if not isinstance(value, list):
        raise TypeError(f"Pseudo-captions must be a list of strings, a JSON list or lines of text, got {value!r}.")
    return ["" if text is None else str(text) for text in value]


def stable_id(value: Any) -> int | None:
    """Integers (also written as text) as they are, any other text hashed to 63 bits, None and "" as None."""
    if value is None or value == "":
        return None
    text = str(value)
    if text.lstrip("-").isdecimal() and str(int(text)) == text:
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def iterate(rows) -> Iterator[dict]:
    """Every row of a map-style data set, in order."""
    return (rows[index] for index in range(len(rows)))


def kept_rows(rows) -> "IndexedRows":
    """The rows of a map-style data set, read once and kept in memory, numbered: the same in every epoch."""
    return IndexedRows(list(iterate(rows)))


class IndexedRows(Dataset):
    """Adds `index` and `epoch` to every row, from which the randomness of an item is made (`seeding.item_generator`).

    Args:
        dataset: a map-style data set whose rows are dicts.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; also to the wrapped data set, if it wants to know."""
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self.dataset))[index]
        return {**self.dataset[index], "index": index, "epoch": int(self._epoch)}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch of rows at once, as DataLoader asks for them: one read of an Arrow table instead of one per row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        epoch, rows = int(self._epoch), self.dataset.__getitems__(indices)
        return [{**row, "index": index, "epoch": epoch} for index, row in zip(indices, rows, strict=True)]


class IndexedStream(IterableDataset):
    """`IndexedRows` for a data set that can only be iterated, e.g. a streamed one.

    `index` counts the rows of the stream; with w DataLoader workers, worker i gives i, i + w, i + 2w, ..., so that no
    two rows share an index. Which shards a worker reads is the wrapped data set's business (`datasets` does it).

    Args:
        dataset: an iterable of dicts.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; also to the wrapped data set, if it wants to know (it then shuffles anew)."""
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for count, row in enumerate(self.dataset):
            yield {**row, "index": first + count * step, "epoch": int(self._epoch)}
