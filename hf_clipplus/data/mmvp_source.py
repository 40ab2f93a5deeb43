"""Reads MMVP-VLM: pairs of look-alike images, each with the statement that is true of it alone."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)
PAIRS_PER_PATTERN = 15
IMAGE_FOLDERS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images", "MMVP_VLM Images")
COLUMNS = ("Question ID", "Type", "Statement")


@dataclass(frozen=True)
class ImagePair:
    """Two images and two texts; a model is right when each text chooses its own image.

    Args:
        pattern: what tells the images apart.
        images: what `load_image` reads.
        texts: without a prefix.
        first_is_true: for each text, whether the first image is its own.
    """

    pattern: str
    images: tuple[Any, Any]
    texts: tuple[str, str]
    first_is_true: tuple[bool, bool] = (True, False)


def read_mmvp(folder: str | Path) -> list[ImagePair]:
    """The 135 pairs of the published data set, from any of its folder layouts.

    Args:
        folder: holds `Questions.csv` (itself or in the images' folder) and `<images>/<Type>/<Question ID>.jpg`.

    Raises:
        FileNotFoundError: the csv, the images' folder or an image is missing; names all missing images.
        ValueError: other columns, an odd number of rows, another number of pairs than 9 patterns of 15.
    """
    folder = Path(folder)
    images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
    table = next(
        (path / "Questions.csv" for path in (folder, images) if path and (path / "Questions.csv").is_file()), None
    )
    if table is None or images is None:
        raise FileNotFoundError(
            f"{folder} is no MMVP-VLM: expected Questions.csv and one of the folders {', '.join(IMAGE_FOLDERS)}, "
            f"found {sorted(path.name for path in folder.iterdir()) if folder.is_dir() else 'no folder'}."
        )
    rows = _read_rows(table)
    wanted = len(PATTERNS) * PAIRS_PER_PATTERN
    if len(rows) != 2 * wanted:
        raise ValueError(f"{table} has {len(rows)} rows, expected {2 * wanted}: {wanted} pairs of two rows.")
    pairs, missing = [], []
    for number, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        # both images stand in the first row's folder
        files = tuple(images / first["Type"] / f"{row['Question ID']}.jpg" for row in (first, second))
        missing += [str(file) for file in files if not file.is_file()]
        pairs.append(
            ImagePair(
                pattern=PATTERNS[number // PAIRS_PER_PATTERN],
                images=files,
                texts=(first["Statement"], second["Statement"]),
                first_is_true=tuple(int(row["Question ID"]) % 2 == 1 for row in (first, second)),
            )
        )
    if missing:
        raise FileNotFoundError(f"{len(missing)} images are missing: {', '.join(missing[:10])}")
    return pairs


def _read_rows(table: Path) -> list[dict[str, str]]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        absent = [name for name in COLUMNS if name not in columns]
        if absent:
            raise ValueError(f"{table} has no column {', '.join(map(repr, absent))}; it has {columns}.")
        reader.fieldnames = columns
        rows = list(reader)
    for number, row in enumerate(rows, 1):
        if not (row["Question ID"] or "").strip().isdecimal() or not row["Type"] or not row["Statement"]:
            raise ValueError(f"row {number} of {table}: expected a number, a type and a statement, got {dict(row)}.")
        row["Question ID"] = row["Question ID"].strip()
    return rows
