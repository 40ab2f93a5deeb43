"""Reads long captions that were published apart from their pictures, and joins them to pictures at hand."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .few_shot_sources import IMAGE_SUFFIXES
from .report import DataReport
from .sub_captions import LENGTHS, SOURCES, caption_column

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMN, RAW_COLUMN = "Image Path", "raw_caption"
CAPTION_COLUMNS = tuple(caption_column(length, source) for source in SOURCES for length in LENGTHS)
REPORT_KINDS = ("caption without image", "image without captions", "caption file without image", "empty caption file")


def long_caption_report() -> DataReport:
    """A report of the kinds that this module counts."""
    return DataReport(REPORT_KINDS)


def read_long_captions(
    files: str | Path | Sequence[str | Path],
    images: Mapping[str, str] | str | Path,
    *,
    report: DataReport | None = None,
    **load_dataset_kwargs: Any,
) -> "datasets.Dataset":
    """DreamLIP's published caption files as rows for `SubCaptions`; columns are read by name, any order, any missing.

    Args:
        files: one or several CSV files with the columns `Image Path` (a URL, or a path), `raw_caption`,
            `shortIB_captions`, `longIB_captions`, ... (`SV`, `LLA`).
        images: where the picture of an `Image Path` is: a mapping to files (e.g. `image_table` of what a downloader
            wrote; the only key is the URL, since raw captions and numbers of rows differ between downloads), or the
            folder that the paths are relative to.
        report: counts rows without a picture and rows without a single caption, which are left out.
        load_dataset_kwargs: of `datasets.load_dataset` (`cache_dir`, ...).

    Returns:
        A data set with `image` (path), `caption` (the raw one) and the caption columns that the files have.

    Raises:
        ValueError: the files have no `Image Path`, or no caption column.
    """
    import datasets

    paths = [str(path) for path in ([files] if isinstance(files, str | Path) else files)]
    with open(paths[0], encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file), [])
    captions = [name for name in (RAW_COLUMN, *CAPTION_COLUMNS) if name in columns]
    if IMAGE_COLUMN not in columns or not captions:
        raise ValueError(
            f"{paths[0]}: expected the column {IMAGE_COLUMN!r} and one of {(RAW_COLUMN, *CAPTION_COLUMNS)}, "
            f"found {columns}."
        )
    # everything is text: "nan" and "1.0" are captions too
    features = datasets.Features(dict.fromkeys(columns, datasets.Value("string")))
    rows = datasets.load_dataset("csv", data_files=paths, split="train", features=features, keep_default_na=False,
                                 **load_dataset_kwargs)  # fmt: skip
    rows = rows.select_columns([IMAGE_COLUMN, *captions])
    found = [_find(key, images) for key in rows[IMAGE_COLUMN]]
    spoken = [any(map(str.strip, texts)) for texts in zip(*(rows[name] for name in captions), strict=True)]
    kept = [i for i, (path, text) in enumerate(zip(found, spoken, strict=True)) if path is not None and text]
    if report is not None:
        for i, (path, text) in enumerate(zip(found, spoken, strict=True)):
            if path is None or not text:
                report.add(REPORT_KINDS[0] if path is None else REPORT_KINDS[1], rows[i][IMAGE_COLUMN])
    rows = rows.select(kept).add_column("image", [found[i] for i in kept]).remove_columns(IMAGE_COLUMN)
    return rows.rename_columns({RAW_COLUMN: "caption"} if RAW_COLUMN in captions else {})


def image_table(path: str | Path, *, url_column: str = "url", path_column: str = "path") -> dict[str, str]:
    """URL -> file, from a table that a downloader wrote (CSV or parquet); relative files are beside the table.

    Raises:
        ValueError: the table lacks a column.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        names, columns = table.column_names, table.to_pydict
    else:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        names = list(lines[0]) if lines else [url_column, path_column]
        columns = lambda: {name: [line[name] for line in lines] for name in names}  # noqa: E731
    if missing := {url_column, path_column} - set(names):
        raise ValueError(f"{path}: no column {sorted(missing)}, it has {names}.")
    columns = columns()
    pairs = zip(columns[url_column], columns[path_column], strict=True)
    return {url: str(path.parent / file) for url, file in pairs if url and file}


def read_captions_beside_images(folder: str | Path, *, report: DataReport | None = None) -> list[dict[str, str]]:
    """Pairs of a picture and a text file of the same stem, as Urban-1k has them (`image/1.jpg`, `caption/1.txt`).

    Args:
        folder: with pictures and text files, at its top or in folders.
        report: counts text files without a picture, and without a text.

    Returns:
        Rows with `image` (path) and `caption` (the first line, all that the published evaluation uses), by stem.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    pictures = {path.stem: path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    rows = []
    for path in (path for path in files if path.suffix == ".txt"):
        first = (path.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
        if path.stem in pictures and first:
            rows.append({"image": str(pictures[path.stem]), "caption": first})
        elif report is not None:
            report.add(REPORT_KINDS[3] if path.stem in pictures else REPORT_KINDS[2], path.name)
    return rows


def _find(key: str, images: Mapping[str, str] | str | Path) -> str | None:
    """The file of an `Image Path`, None where there is none."""
    if isinstance(images, Mapping):
        return images.get(key)
    path = Path(images) / key
    return str(path) if key and "://" not in key and path.is_file() else None
