"""Reads data sets of SugarCrepe's form: an image with its caption and a false one that is nearly the same."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = ("filename", "caption", "negative_caption")


@dataclass(frozen=True)
class CaptionChoice:
    """An image and two captions, of which one is true.

    Args:
        category: how the false caption was made.
        image: what `load_image` reads.
        caption, negative: the true one and the false one.
    """

    category: str
    image: Any
    caption: str
    negative: str


def read_sugarcrepe(folder: str | Path, images: str | Path) -> list[CaptionChoice]:
    """The choices of all categories, `add_att`, `swap_obj`, ...: one JSON file each.

    Args:
        folder: holds `<category>.json`: an object of numbered entries (or a list of entries) with `filename`,
            `caption` and `negative_caption`.
        images: folder of the files (published: COCO's val2017).

    Raises:
        FileNotFoundError: no JSON file, no folder of images, or images are missing; names all missing images.
        ValueError: a file of another form; names the file and the entry.
    """
    folder, images = Path(folder), Path(images)
    tables = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not tables:
        raise FileNotFoundError(f"{folder} is no data set of SugarCrepe's form: expected <category>.json files.")
    if not images.is_dir():
        raise FileNotFoundError(f"{images} is no folder of images.")
    choices = []
    for table in tables:
        for name, entry in _entries(table):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(f), str) and entry[f] for f in FIELDS):
                raise ValueError(f"entry {name} of {table}: expected texts {', '.join(FIELDS)}, got {entry!r}.")
            file, caption, negative = (entry[field] for field in FIELDS)
            choices.append(CaptionChoice(table.stem, images / file, caption, negative))
    if missing := sorted({str(choice.image) for choice in choices if not choice.image.is_file()}):
        raise FileNotFoundError(f"{len(missing)} images are missing: {', '.join(missing[:10])}")
    return choices


def _entries(table: Path) -> list[tuple[Any, Any]]:
    try:
        found = json.loads(table.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{table} is no JSON: {error}") from error
    if not isinstance(found, (dict, list)) or not found:
        raise ValueError(f"{table}: expected numbered entries with {', '.join(FIELDS)}, got {str(found)[:80]}.")
    return list(found.items() if isinstance(found, dict) else enumerate(found))
