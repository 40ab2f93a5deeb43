"""Reads data sets of Winoground's form: two images, two captions, and a tag that says what tells them apart."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .mmvp_source import ImagePair

COLUMNS = ("image_0", "image_1", "caption_0", "caption_1")
TAGS = ("collapsed_tag", "tag", "tags", "category")  # the first that a data set has
LISTS = ("examples.jsonl", "data/examples.jsonl")
IMAGE_ENDINGS = ("", ".png", ".jpg", ".jpeg")
NO_TAG = "all"


def read_winoground(source: str | Path, *, split: str = "test", tag: str | None = None) -> list[ImagePair]:
    """The pairs of a local folder, a parquet file or a data set of the Hub; caption k is true of image k alone.

    Args:
        source: a folder with `examples.jsonl` (as published, also in `data/`) and the images beside it or in
            `images/`, their names with or without an ending; a folder of parquet files; a parquet file; or a Hub id.
        split: of a data set of the Hub.
        tag: column that becomes the pattern of a pair; None takes the first of `TAGS` that there is, if any.

    Raises:
        FileNotFoundError: the folder holds no such files, or images are missing; names all missing images.
        ValueError: other columns, no pairs, or a row without an image or a caption.
    """
    rows, folder = _open(Path(source), split) if Path(source).exists() else (_of_hub(str(source), split), None)
    if not len(rows):
        raise ValueError(f"{source} holds no pairs.")
    columns = getattr(rows, "column_names", None) or list(rows[0])
    absent = [name for name in (*COLUMNS, *filter(None, [tag])) if name not in columns]
    if absent:
        raise ValueError(f"{source} has no column {', '.join(map(repr, absent))}; it has {columns}.")
    tag = tag or next((name for name in TAGS if name in columns), None)
    pairs, missing = [], []
    for number, row in enumerate(rows):
        if empty := [name for name in COLUMNS if not row[name]]:
            raise ValueError(f"row {number} of {source} has no {', '.join(empty)}.")
        images = tuple(_image(row[name], folder, missing) for name in COLUMNS[:2])
        pairs.append(ImagePair(_tag_of(row, tag), images, (row["caption_0"], row["caption_1"])))
    if missing:
        raise FileNotFoundError(f"{len(missing)} images are missing: {', '.join(missing[:10])}")
    return pairs


def _open(source: Path, split: str) -> tuple[Sequence[Mapping[str, Any]], Path]:
    """The rows of a local source, and the folder that their images are named from."""
    if source.is_dir():
        table = next((source / name for name in LISTS if (source / name).is_file()), None)
        if table is not None:
            return _read_lines(table), table.parent
    files = [source] if source.suffix == ".parquet" else sorted(source.rglob("*.parquet")) if source.is_dir() else []
    if not files:
        raise FileNotFoundError(
            f"{source} is no data set of Winoground's form: expected {' or '.join(LISTS)}, parquet files, or a Hub id."
        )
    import datasets

    rows = datasets.load_dataset("parquet", data_files={split: [str(file) for file in files]}, split=split)
    return _undecoded(rows), source if source.is_dir() else source.parent


def _of_hub(name: str, split: str) -> Sequence[Mapping[str, Any]]:
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise FileNotFoundError(f"{name} is neither a folder nor a parquet file; a Hub id looks like `user/name`.")
    import datasets

    return _undecoded(datasets.load_dataset(name, split=split))


def _undecoded(rows: Any) -> Any:
    import datasets

    for name in COLUMNS[:2]:
        if isinstance(rows.features.get(name), datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _read_lines(table: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {table} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {table}: expected an object, got {row!r}.")
        rows.append(row)
    return rows


def _image(value: Any, folder: Path | None, missing: list[str]) -> Any:
    """What `load_image` reads; a name is looked for in the folder and in its `images`."""
    name = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    if not isinstance(name, str) or folder is None:
        return value
    for place in (folder, folder / "images"):
        for ending in IMAGE_ENDINGS:
            if (file := place / f"{name}{ending}").is_file():
                return file
    missing.append(name)
    return None


def _tag_of(row: Mapping[str, Any], tag: str | None) -> str:
    value = row[tag] if tag else None
    value = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return str(value) if value else NO_TAG
