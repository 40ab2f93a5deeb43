"""Pictures that differ in one fact (which way up, how many, what colour, where), from the embedded drawings.

`look_alike_pairs` makes pairs in the manner of MMVP-VLM, `FactPictures` labelled pictures for linear probes.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from . import clipart_canvas as canvas
from .clipart import Drawing, SeededWorld, load_drawings
from .clipart_scenes import NUMBERS, scene_drawings
from .clipart_text import plural, with_article
from .mmvp_source import ImagePair
from .seeding import item_generator

TURNS = ("the right way up", "turned to the left", "upside down", "turned to the right")  # quarter turns from upright
COUNTS = (1, 2, 3, 4)
COLOURS = ("red", "yellow", "green", "blue", "purple", "brown")
PLACES = ("on the left", "on the right", "at the top", "at the bottom")
_CENTRES = {
    "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
}
# fact -> its values, in the order of the labels
FACTS: dict[str, tuple] = {"orientation": TURNS, "count": COUNTS, "colour": COLOURS, "position": PLACES}
SINGLE, HALF = 0.75, 0.46  # longest side of a drawing that stands alone, and of one that shares the picture
GRID = ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74))  # centres of up to four copies
NEUTRAL = [canvas.BACKGROUND_NAMES.index(name) for name in ("white", "light grey")]
DARKEST = 0.35  # how dark black becomes in a tinted drawing, over the tint
LUMINANCE = np.array([0.299, 0.587, 0.114])


def picture_of(
    drawing: Drawing, fact: str, value: Any, *, size: int, background: np.ndarray, rng: np.random.Generator
) -> Image.Image:
    """A drawing on a plain background in which `fact` has `value`; `rng` moves it a little.

    Args:
        drawing: what is shown.
        fact, value: a key of `FACTS` and one of its values.
        size: side of the picture, pixels.
        background: sRGB.
    """
    share = HALF if fact in ("count", "position") else SINGLE
    sprite = canvas.scaled(drawing.mips, max(1, round(share * size)))
    centres: Sequence[tuple[float, float]] = ((0.5, 0.5),)
    if fact == "orientation":
        sprite = np.ascontiguousarray(np.rot90(sprite, TURNS.index(value)))
    elif fact == "colour":
        sprite = tinted(sprite, np.array(canvas.COLOURS[value][0]))
    elif fact == "count":
        centres = [GRID[place] for place in rng.permutation(len(GRID))[:value]]
    else:
        centres = (_CENTRES[value],)
    picture = canvas.plain(size, background)
    for x, y in centres:
        left, top = (round(c * size + rng.uniform(-0.03, 0.03) * size) for c in (x, y))
        canvas.paste(picture, sprite, left - sprite.shape[1] // 2, top - sprite.shape[0] // 2)
    return Image.fromarray(picture)


def tinted(sprite: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A premultiplied drawing, uint8 [h, w, 4], in shades of one colour; its own lightness stays visible."""
    alpha = sprite[..., 3:].astype(np.float64)
    lightness = (sprite[..., :3] @ LUMINANCE)[..., None]  # times alpha already
    shades = colour / 255 * (DARKEST * alpha + (1 - DARKEST) * lightness)
    return np.concatenate([shades.round(), alpha], axis=-1).astype(np.uint8)


def statement(drawing: Drawing, fact: str, value: Any) -> str:
    """What is true of the picture, in the words of the scenes' captions."""
    name = drawing.class_name
    if fact == "count":
        return f"A picture of {with_article(name) if value == 1 else f'{NUMBERS[value]} {plural(name)}'}."
    if fact == "colour":
        return f"A picture of {with_article(f'{value} {name}')}."
    return f"The {name} is {value}."


def fact_drawings(drawings: Sequence[Drawing], fact: str) -> list[Drawing]:
    """The drawings that can show a fact: with class and area; tinted ones need light parts, turned ones a shape that
    a turn changes."""
    able = scene_drawings(drawings)
    if fact == "colour":
        return [drawing for drawing in able if _lightness(drawing) > 0.3]
    if fact == "orientation":
        return [drawing for drawing in able if _changed_by_turns(drawing) > 0.1]
    return able


def look_alike_pairs(
    split: str = "test",
    *,
    image_size: int = 48,
    pairs_per_fact: int = 60,
    facts: Sequence[str] = tuple(FACTS),
    seed: int = 0,
    folder: str | os.PathLike | None = None,
) -> list[ImagePair]:
    """Pairs of pictures of one drawing on one background, alike but for one fact, with a text for each.

    Args:
        split: see `load_drawings`; "test" is never trained on.
        image_size: side, pixels.
        pairs_per_fact: pairs of each pattern.
        facts: patterns, keys of `FACTS`.
        seed: pair i of a fact depends on (seed, fact, i) alone.
        folder: where the drawings are.
    """
    drawings, found = load_drawings(split, folder), []
    for fact in facts:
        able = fact_drawings(drawings, fact)
        for number in range(pairs_per_fact):
            rng = item_generator(seed, 0, number, list(FACTS).index(fact))
            drawing = able[int(rng.integers(len(able)))]
            background = _background(drawing, fact, rng)
            values = [FACTS[fact][place] for place in rng.choice(len(FACTS[fact]), size=2, replace=False)]
            options = {"size": image_size, "background": background, "rng": rng}
            found.append(
                ImagePair(
                    pattern=fact,
                    images=tuple(picture_of(drawing, fact, value, **options) for value in values),
                    texts=tuple(statement(drawing, fact, value) for value in values),
                )
            )
    return found


class FactPictures(SeededWorld):
    """Pictures labelled with one fact, as many of each value; row i depends on (seed, i) alone.

    Args:
        split: a split of `load_drawings`, or the drawings themselves.
        fact: a key of `FACTS`.
        image_size: side, pixels.
        length: rows.
        seed, folder: see `SeededWorld`.

    Returns (per row):
        `image` (PIL RGB) and `label` (index into `FACTS[fact]`).
    """

    def __init__(
        self,
        split: str | Sequence[Drawing],
        fact: str,
        *,
        image_size: int = 48,
        length: int = 600,
        seed: int = 0,
        folder: str | os.PathLike | None = None,
    ):
        super().__init__(split, seed=seed, train=False, folder=folder)
        if fact not in FACTS:
            raise ValueError(f"fact: expected one of {', '.join(FACTS)}, got {fact!r}")
        self.fact, self.image_size, self.length = fact, image_size, length
        self.able = fact_drawings(self.drawings, fact)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        rng = self._generator(index)
        drawing = self.able[int(rng.integers(len(self.able)))]
        label = index % len(FACTS[self.fact])
        options = {"size": self.image_size, "background": _background(drawing, self.fact, rng), "rng": rng}
        return {"image": picture_of(drawing, self.fact, FACTS[self.fact][label], **options), "label": label}


def _background(drawing: Drawing, fact: str, rng: np.random.Generator) -> np.ndarray:
    """A background that shows the drawing; one without colour where the drawing is tinted."""
    able = NEUTRAL if fact == "colour" else drawing.backgrounds
    return canvas.BACKGROUND_RGB[rng.choice(able)]


@lru_cache(maxsize=4096)  # drawings are compared by identity
def _lightness(drawing: Drawing) -> float:
    """Mean lightness of the visible pixels, 0 to 1."""
    alpha = drawing.image[..., 3] / 255
    return float(((drawing.image[..., :3] @ LUMINANCE) / 255 * alpha).sum() / alpha.sum())


@lru_cache(maxsize=4096)
def _changed_by_turns(drawing: Drawing) -> float:
    """Least mean difference of a drawing, on a square, to its turned copies, 0 to 1."""
    small = canvas.scaled(drawing.mips, 24).astype(np.float64) / 255
    square = np.zeros((24, 24, 4))
    top, left = (24 - small.shape[0]) // 2, (24 - small.shape[1]) // 2
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    weight = max(square[..., 3].mean(), 1e-6)
    return min(float(np.abs(square - np.rot90(square, turns)).mean()) / weight for turns in (1, 2, 3))
