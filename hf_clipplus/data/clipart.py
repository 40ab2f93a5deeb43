"""The embedded Open Clip Art drawings, and `CaptionWorld`: one drawing per picture with noisy and made captions."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from . import clipart_canvas as canvas
from .clipart_text import CLASS_NAMES, class_of, clean_keywords, clean_name, pseudo_captions, query_captions
from .seeding import item_generator

__all__ = [
    "CLASS_NAMES",
    "EMBEDDED",
    "SPLITS",
    "CaptionWorld",
    "Drawing",
    "SeededWorld",
    "class_of",
    "load_drawings",
    "query_captions",
]

EMBEDDED = "openclipart"  # what scripts call this data set
FOLDER_VARIABLE = "CLIPPLUS_CLIPART_DIR"
SPLITS = ("train", "validation", "train+validation", "test")
VALIDATION_PERCENT = 10
VALIDATION_SALT = (
    "4"  # leaves >= 8 train drawings of each class, and >= 1 of each but the dinosaurs (one author, one name)
)
SCALES = (0.6, 1.0)  # longest side of a drawing over the picture's side, train mode
EVAL_SCALE = 0.9
GRADIENT_RATE = 0.5
KEPT_SIDE = 96  # plain pictures up to this side are kept, at most 60 MB
# Drawings that only show a renderer's "Linked Image Not Found": kept as the noise they are, but of no class.
BROKEN = frozenset(
    ("animals/birds/duck_yellow_ii_kurt_cagl_", "computer/tux_didier_fabert_01")
    + tuple(f"recreation/sports/stylized_yoga_person_ger_0{k}" for k in range(1, 7))
)


@dataclass(frozen=True, eq=False)
class Drawing:
    """One drawing of the library.

    Attributes:
        index: unique over train.parquet and test.parquet together; worlds use it as `image_id`.
        id: the library's id.
        image: RGBA, uint8 [h, w, 4], longest side 112 px; alpha is the mask.
        alt_text: the title as uploaded, noisy, possibly "".
        name: the cleaned name, never "".
        keywords: cleaned and distinct.
        category: the library's folder.
        author: as uploaded.
        class_name: one of `CLASS_NAMES`, or None.
    """

    index: int
    id: str
    image: np.ndarray
    alt_text: str
    name: str
    keywords: tuple[str, ...]
    category: str
    author: str
    class_name: str | None

    @cached_property
    def mips(self) -> tuple[Image.Image, ...]:
        """Premultiplied copies that `clipart_canvas.scaled` starts from."""
        return canvas.premultiplied(self.image)

    @cached_property
    def colour(self) -> str:
        """The measured colour of the whole drawing, see `clipart_canvas.colour_name`."""
        pixels = self.image.reshape(-1, 4)
        return canvas.colour_name(pixels[:, :3], pixels[:, 3])

    @cached_property
    def visibility(self) -> np.ndarray:
        """The share of its pixels that stand out from each background, [B]."""
        return canvas.visibility(self.image)

    @cached_property
    def shows_on_white(self) -> bool:
        """Whether evaluations can show it on white."""
        return bool(canvas.visibility(self.image, distance=canvas.WHITE_DISTANCE)[0] >= canvas.WHITE_SHARE)

    @cached_property
    def backgrounds(self) -> np.ndarray:
        """Indices of the backgrounds that show the drawing."""
        return canvas.showing_backgrounds(self.visibility)


def clipart_folder(folder: str | os.PathLike | None = None) -> Path:
    """The folder of train.parquet and test.parquet: the argument, else $CLIPPLUS_CLIPART_DIR, else the repository's.

    Raises:
        FileNotFoundError: if a file is missing there; says where it looked and what to set.
    """
    default = Path(__file__).resolve().parents[2] / "examples" / "data" / "openclipart"
    found = Path(folder or os.environ.get(FOLDER_VARIABLE) or default)
    missing = [name for name in ("train.parquet", "test.parquet") if not (found / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"the Open Clip Art drawings: expected train.parquet and test.parquet in {found}, {' and '.join(missing)} "
            f"missing; pass folder=... or set {FOLDER_VARIABLE} to the folder examples/data/openclipart of a checkout"
        )
    return found


def is_validation(author: str, stem: str) -> bool:
    """Whether a train.parquet row is held out: by a hash of author and name, so that variants of one stay together."""
    key = f"{VALIDATION_SALT}|{author.strip().lower()}|{''.join(c for c in stem if not c.isdigit())}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < VALIDATION_PERCENT


@lru_cache(maxsize=8)
def _read(path: Path, offset: int) -> tuple[Drawing, ...]:
    import pyarrow.parquet as pq

    drawings = []
    for place, row in enumerate(pq.read_table(path).to_pylist()):
        text = {key: row[key] or "" for key in ("alt_text", "name", "category", "author")}
        keywords = row["keywords"] or []
        name = clean_name(
            text["name"],
            title=text["alt_text"],
            author=text["author"],
            keywords=keywords,
            category=text["category"],
        )
        image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA"))
        drawings.append(
            Drawing(
                index=offset + place,
                id=row["id"],
                image=image,
                alt_text=text["alt_text"],
                name=name,
                keywords=clean_keywords(keywords, author=text["author"], name=name),
                category=text["category"],
                author=text["author"],
                class_name=None
                if row["id"] in BROKEN
                else class_of(text["category"], [*keywords, *text["name"].split()]),
            )
        )
    return tuple(drawings)


def load_drawings(split: str, folder: str | os.PathLike | None = None) -> list[Drawing]:
    """The drawings of a split, decoded once per process.

    Args:
        split: "train" and "validation" are parts of train.parquet, "train+validation" is all of it, "test" is
            test.parquet, which no training world ever shows.
        folder: where the two files are; see `clipart_folder`.

    Raises:
        ValueError: on an unknown split.
        FileNotFoundError: if the files are not there.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    import pyarrow.parquet as pq

    found = clipart_folder(folder).resolve()
    if split == "test":
        return list(_read(found / "test.parquet", pq.read_metadata(found / "train.parquet").num_rows))
    rows = _read(found / "train.parquet", 0)
    if split == "train+validation":
        return list(rows)
    return [row for row in rows if is_validation(row.author, row.name) == (split == "validation")]


class SeededWorld(Dataset):
    """A map-style data set whose row i depends on (seed, epoch, i) in train mode and on (seed, i) in eval mode.

    Args:
        split: a split of `load_drawings`, or the drawings themselves.
        seed: >= 0.
        train: whether rows vary with the epoch.
        folder: where the drawings are; see `clipart_folder`.
    """

    def __init__(
        self, split: str | Sequence[Drawing], *, seed: int, train: bool, folder: str | os.PathLike | None = None
    ) -> None:
        self.drawings = load_drawings(split, folder) if isinstance(split, str) else list(split)
        self.seed = seed
        self.train = train
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; workers that already run see it too."""
        self._epoch.fill_(epoch)

    def _generator(self, index: int) -> np.random.Generator:
        return item_generator(self.seed, int(self._epoch) if self.train else 0, index, int(self.train))

    def _image_id(self, index: int) -> int:
        """The id of a composed picture: another one for each epoch that composes another picture."""
        return index + len(self) * (int(self._epoch) if self.train else 0)

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: expected a row below {len(self)}, got {index}")
        return index % len(self)


class CaptionWorld(SeededWorld):
    """One drawing per picture, with the raw text its author gave it and captions made from name, keywords and folder.

    Train mode: other captions each epoch; a share of the pictures is as in eval mode, the rest stands at random size
    and place on a random plain or graded background that shows the drawing. Eval mode: centred on white (on the
    background that shows it best, where white does not), fixed captions.

    Args:
        split: a split of `load_drawings`, or the drawings themselves.
        image_size: side of the picture, pixels.
        captions: how many pseudo-captions a row has at most, >= 1.
        plain_share: share of train pictures that are composed as in eval mode. All on random backgrounds, a model
            finds held-out drawings on white clearly worse.
        seed, train, folder: see `SeededWorld`.

    Returns (per row):
        `image` (PIL RGB), `caption` (raw, may be ""), `pseudo_captions` (distinct strings), `image_id` (int, unique
        over all splits), `name`, `category`, `class_name` (one of `CLASS_NAMES`, or None).
    """

    def __init__(
        self,
        split: str | Sequence[Drawing],
        *,
        image_size: int = 64,
        captions: int = 5,
        plain_share: float = 0.75,
        seed: int = 0,
        train: bool = True,
        folder: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(split, seed=seed, train=train, folder=folder)
        self.image_size = image_size
        self.captions = captions
        self.plain_share = plain_share
        self._kept: dict[int, np.ndarray] = {}  # plain pictures by drawing: most of an epoch shows them again

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        drawing = self.drawings[index]
        rng = self._generator(index) if self.train else None
        return {
            "image": Image.fromarray(self._train_image(drawing, rng) if rng else self._eval_image(drawing)),
            "caption": drawing.alt_text,
            "pseudo_captions": pseudo_captions(drawing, self.captions, rng),
            "image_id": drawing.index,
            "name": drawing.name,
            "category": drawing.category,
            "class_name": drawing.class_name,
        }

    def _train_image(self, drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < self.plain_share:
            return self._eval_image(drawing)
        size = self.image_size
        first, second = canvas.BACKGROUND_RGB[rng.choice(drawing.backgrounds, size=2)]
        if rng.random() < GRADIENT_RATE:
            picture = canvas.gradient(size, first, second, direction=int(rng.integers(4)))
        else:
            picture = canvas.plain(size, first)
        sprite = canvas.scaled(drawing.mips, max(1, round(size * rng.uniform(*SCALES))))
        left, top = (int(rng.integers(0, size - side + 1)) for side in (sprite.shape[1], sprite.shape[0]))
        canvas.paste(picture, sprite, left, top)
        return picture

    def _eval_image(self, drawing: Drawing) -> np.ndarray:
        if (kept := self._kept.get(drawing.index)) is not None:
            return kept
        size = self.image_size
        background = 0 if drawing.shows_on_white else int(drawing.visibility.argmax())
        picture = canvas.plain(size, canvas.BACKGROUND_RGB[background])
        sprite = canvas.scaled(drawing.mips, max(1, round(size * EVAL_SCALE)))
        canvas.paste(picture, sprite, (size - sprite.shape[1]) // 2, (size - sprite.shape[0]) // 2)
        if size <= KEPT_SIDE:
            picture.flags.writeable = False
            self._kept[drawing.index] = picture
        return picture
