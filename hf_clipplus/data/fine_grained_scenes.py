"""Pairs of scenes that differ in exactly one thing (colour, count, position, orientation, relation, object), each with
the sentence that is true of it alone.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from . import clipart_canvas as canvas
from .clipart import Drawing, load_drawings
from .clipart_facts import COLOURS, NEUTRAL, TURNS, fact_drawings, tinted
from .clipart_scenes import MASK_ALPHA, NUMBERS, listed, place_of, scene_drawings
from .clipart_text import plural, with_article
from .mmvp_source import ImagePair
from .scene_facts import LIKE_CLASSES
from .seeding import item_generator

COUNTS = (1, 2, 3)  # as in the scenes
LONGEST, LONGEST_MOVED, LONGEST_COPY = 0.42, 0.36, 0.26  # longest side of a drawing over the picture's
NEAR, FAR = 0.25, 0.75  # the halves that the two drawings stand in
SLOTS = {"moved": (0.22, 0.5, 0.78), "copies": (0.18, 0.5, 0.82)}  # along the half: where one stands, or its copies
JITTER = 0.04
ONE_PIECE, PIECE_SIDE = 0.9, 28  # share of its pixels that hang together in a drawing of one thing; pixels looked at
DRAWS = 200  # of two drawings, until both show what they must


@dataclass(frozen=True)
class Part:
    """One drawing of a scene and its copies.

    Args:
        drawing: what is shown; sentences call it by its class.
        centres: x and y of every copy over the picture's side, from the top left.
        longest: longest side of each over the picture's.
        colour: tinted in it; None: as drawn.
        turns: quarter turns to the left.
    """

    drawing: Drawing
    centres: tuple[tuple[float, float], ...]
    longest: float = LONGEST
    colour: str | None = None
    turns: int = 0

    @property
    def noun(self) -> str:
        """What sentences call it."""
        return self.drawing.class_name

    @property
    def counted(self) -> str:
        """With its number: "a cat" or "two cats"."""
        count = len(self.centres)
        return with_article(self.noun) if count == 1 else f"{NUMBERS[count]} {plural(self.noun)}"


@dataclass(frozen=True)
class ScenePair(ImagePair):
    """An `ImagePair` that knows what is in its pictures.

    Args:
        parts: the two parts of each picture.
        background: its colour name, the same in both.
    """

    parts: tuple[tuple[Part, Part], tuple[Part, Part]] = ()
    background: str = ""


def fine_grained_pairs(
    split: str = "test",
    *,
    image_size: int = 112,
    pairs_per_kind: int = 60,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
) -> list[ScenePair]:
    """Pairs of scenes of two drawings of different classes on one background.

    A sentence that lists what there is means all that there is, so that "a cat" is false of two cats. Where the
    relation differs the drawings have changed places, and both sentences have the same words.

    Args:
        split: see `load_drawings`; "test" is never trained on.
        image_size: side, pixels.
        pairs_per_kind: pairs of each kind.
        kinds: keys of `KINDS`; None takes all.
        seed: pair i of a kind depends on (seed, kind, i) alone.
        folder: where the drawings are.

    Raises:
        ValueError: an unknown kind, or drawings that cannot show one.
    """
    kinds = list(KINDS) if kinds is None else list(kinds)
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"kinds {unknown} are unknown: choose among {', '.join(KINDS)}.")
    found = []
    for kind in kinds:
        drawings = scene_drawings(load_drawings(split, folder))
        if kind == "count":
            drawings = [drawing for drawing in drawings if _of_one_piece(drawing)]
        able = fact_drawings(drawings, kind) if kind in ("colour", "orientation") else drawings
        for number in range(pairs_per_kind):
            rng = item_generator(seed, 1, number, list(KINDS).index(kind))
            found.append(_pair(kind, able, drawings, image_size, rng))
    return found


def scene_rows(pairs: Iterable[ScenePair]) -> list[dict[str, Any]]:
    """Both pictures of every pair as rows to train on, which tell every kind of fact.

    Returns:
        Per picture the fields of a row of `SceneWorld` but `mask` and how drawings were pasted; `objects` have `turn`
        (of `TURNS`) too. The raw `caption` is the sentence of the pair.
    """
    return [
        _row(image, text, parts, pair.background)
        for pair in pairs
        for image, text, parts in zip(pair.images, pair.texts, pair.parts, strict=True)
    ]


def compose(parts: Sequence[Part], background: str, size: int) -> Image.Image:
    """The picture of some parts, `size` pixels wide and high, on a colour named in `canvas.BACKGROUNDS`."""
    picture = canvas.plain(size, np.array(canvas.BACKGROUNDS[background], dtype=np.uint8))
    for part in parts:
        sprite = _sprite(part, size)
        for x, y in part.centres:
            canvas.paste(picture, sprite, round(x * size - sprite.shape[1] / 2), round(y * size - sprite.shape[0] / 2))
    return Image.fromarray(picture)


def _sprite(part: Part, size: int) -> np.ndarray:
    """The drawing of a part as it is pasted, premultiplied RGBA."""
    sprite = canvas.scaled(part.drawing.mips, max(1, round(part.longest * size)))
    if part.colour is not None:
        sprite = tinted(sprite, np.array(canvas.COLOURS[part.colour][0]))
    return np.ascontiguousarray(np.rot90(sprite, part.turns))


def _row(image: Image.Image, text: str, parts: tuple[Part, Part], background: str) -> dict[str, Any]:
    """A picture with the facts of its parts, and the sentences that tell them."""
    objects = [item for group, part in enumerate(parts) for item in _objects(part, group, image.height)]
    sentences = [text, *_sentences(parts, objects), f"The background is {background}."]
    sentences = list(dict.fromkeys(sentences))
    return {
        "image": image,
        "class_names": sorted({part.noun for part in parts}),
        "objects": objects,
        "background": background,
        "caption": text,
        "long_caption": " ".join(sentences),
        "sentences": sentences,
        "pseudo_captions": sentences,
    }


def _objects(part: Part, group: int, size: int) -> list[dict[str, Any]]:
    """The facts of every copy of a part, as `SceneWorld` gives them."""
    sprite = _sprite(part, size)
    height, width = sprite.shape[:2]
    found = []
    for x, y in part.centres:
        left, top = round(x * size - width / 2), round(y * size - height / 2)
        found.append(
            {
                "name": part.noun,
                "class_name": part.noun,
                "colour": part.colour or _main_colour(sprite),
                "place": _place(replace(part, centres=((x, y),))),
                "box": (left, top, left + width, top + height),
                "group": group,
                "count": len(part.centres),
                "turn": TURNS[part.turns],
            }
        )
    return found


def _main_colour(sprite: np.ndarray) -> str:
    pixels = sprite.reshape(-1, 4).astype(np.float64)
    pixels = pixels[pixels[:, 3] > 0]
    return canvas.colour_name(np.minimum(pixels[:, :3] * 255 / pixels[:, 3:], 255), pixels[:, 3])


def _sentences(parts: tuple[Part, Part], objects: Sequence[dict[str, Any]]) -> list[str]:
    """What there is; of single drawings place, colour and which way up; of two of them how they stand."""
    found = [_picture_of(*parts)]
    single = [item for item in objects if item["count"] == 1]
    for item in single:
        noun = item["class_name"]
        described = with_article(f"{item['colour']} {noun}")
        found.append(f"{described[0].upper()}{described[1:]} is {item['place']}.")
        found += [f"The {noun} is {item[fact]}." for fact in ("place", "turn")]
    if len(single) == 2:
        centres = np.array([part.centres[0] for part in parts])
        upright = int(np.abs(centres[0] - centres[1]).argmax())
        before, after = (parts[number].noun for number in centres[:, upright].argsort())
        words = ("above", "below") if upright else ("to the left of", "to the right of")
        found += [f"The {before} is {words[0]} the {after}.", f"The {after} is {words[1]} the {before}."]
    return found


def _pair(
    kind: str, able: Sequence[Drawing], others: Sequence[Drawing], size: int, rng: np.random.Generator
) -> ScenePair:
    target, other, background = _two_drawings(kind, able, others, rng)
    upright = rng.random() < 0.5  # one above the other instead of side by side
    near, far = rng.permutation((NEAR, FAR))
    moves = rng.uniform(-JITTER, JITTER, size=(2, 2))
    one, two = (
        Part(drawing, (_centre(along, 0.5, upright, move),))
        for drawing, along, move in ((target, near, moves[0]), (other, far, moves[1]))
    )
    place = canvas.BACKGROUND_NAMES.index(background)
    instead = [drawing for drawing in others if drawing.visibility[place] >= canvas.VISIBLE_SHARE]
    first, second, texts = KINDS[kind](one, two, upright, instead, rng)
    images = (compose(first, background, size), compose(second, background, size))
    return ScenePair(kind, images, texts, parts=(first, second), background=background)


def _two_drawings(
    kind: str, able: Sequence[Drawing], others: Sequence[Drawing], rng: np.random.Generator
) -> tuple[Drawing, Drawing, str]:
    """Two drawings whose classes exclude one another, on a background that shows both."""
    for _ in range(DRAWS):
        target, other = (pool[int(rng.integers(len(pool)))] for pool in (able, others))
        if not _apart(target, other) or (kind == "colour" and len(_shown_colours(target)) < 2):
            continue
        shares = other.visibility if kind == "colour" else np.minimum(target.visibility, other.visibility)
        allowed = NEUTRAL if kind == "colour" else np.arange(len(shares))  # a tint must not meet its own colour
        showing = [place for place in allowed if shares[place] >= canvas.VISIBLE_SHARE]
        if showing:
            return target, other, canvas.BACKGROUND_NAMES[int(rng.choice(showing))]
    raise ValueError(
        f"kind {kind!r}: no two drawings of different classes show it among {len(able)} of {len(others)}."
    )


def _apart(*drawings: Drawing) -> bool:
    """Whether no drawing may be called by the class of another."""
    names = [drawing.class_name for drawing in drawings]
    return not any(one == other or frozenset((one, other)) in LIKE_CLASSES for one, other in combinations(names, 2))


@lru_cache(maxsize=4096)  # drawings are compared by identity
def _of_one_piece(drawing: Drawing) -> bool:
    """Whether nearly all of it hangs together; otherwise it may show several things."""
    solid = np.pad(canvas.scaled(drawing.mips, PIECE_SIDE)[..., 3] >= MASK_ALPHA, 1)
    labels = np.where(solid, np.arange(1, solid.size + 1).reshape(solid.shape), 0)
    while True:  # every pixel takes the highest label of its neighbours
        grown = sliding_window_view(np.pad(labels, 1), (3, 3)).max((2, 3)) * solid
        if (grown == labels).all():
            return bool(np.bincount(labels[solid]).max() >= ONE_PIECE * solid.sum())
        labels = grown


@lru_cache(maxsize=4096)
def _shown_colours(drawing: Drawing) -> tuple[str, ...]:
    """The colours that are measured when the drawing is tinted in them."""
    sprite = canvas.scaled(drawing.mips, 48)
    alpha = sprite[..., 3].reshape(-1).astype(np.float64)
    found = []
    for colour in COLOURS:
        pixels = tinted(sprite, np.array(canvas.COLOURS[colour][0])).reshape(-1, 4)[alpha > 0]
        plain = np.minimum(pixels[:, :3] * 255.0 / pixels[:, 3:], 255)
        if canvas.colour_name(plain, alpha[alpha > 0]) == colour:
            found.append(colour)
    return tuple(found)


def _centre(along: float, across: float, upright: bool, move: np.ndarray) -> tuple[float, float]:
    """A point: `along` tells the halves apart, `across` goes from end to end of a half."""
    x, y = (across, along) if upright else (along, across)
    return float(x + move[0]), float(y + move[1])


def _half(part: Part, upright: bool) -> tuple[float, np.ndarray]:
    """Which half a part of one copy stands in, and how it was moved from its middle."""
    (x, y) = part.centres[0]
    along = NEAR if (y if upright else x) < 0.5 else FAR
    return along, np.array((x, y)) - _centre(along, 0.5, upright, np.zeros(2))


def _place(part: Part) -> str:
    """Where the only copy of a part is, in the words of the scenes."""
    x, y = (round(1000 * value) for value in part.centres[0])
    return place_of((x, y, x, y), 1000)


def _picture_of(first: Part, second: Part) -> str:
    return f"A picture of {listed([first.counted, second.counted])}."


Found = tuple[tuple[Part, Part], tuple[Part, Part], tuple[str, str]]


def _colour(one: Part, two: Part, upright: bool, instead: Sequence[Drawing], rng: np.random.Generator) -> Found:
    colours = rng.choice(_shown_colours(one.drawing), size=2, replace=False).tolist()
    first, second = (replace(one, colour=colour) for colour in colours)
    texts = (f"{with_article(f'{p.colour} {p.noun}').capitalize()} is {_place(p)}." for p in (first, second))
    return (first, two), (second, two), tuple(texts)


def _count(one: Part, two: Part, upright: bool, instead: Sequence[Drawing], rng: np.random.Generator) -> Found:
    along, move = _half(one, upright)
    slots = rng.permutation(SLOTS["copies"])
    centres = tuple(_centre(along, slot, upright, move) for slot in slots)
    counts = rng.choice(COUNTS, size=2, replace=False)
    first, second = (replace(one, centres=centres[:count], longest=LONGEST_COPY) for count in counts)
    return (first, two), (second, two), (_picture_of(first, two), _picture_of(second, two))


def _position(one: Part, two: Part, upright: bool, instead: Sequence[Drawing], rng: np.random.Generator) -> Found:
    along, move = _half(one, upright)
    slots = rng.choice(SLOTS["moved"], size=2, replace=False)
    first, second = (
        replace(one, centres=(_centre(along, slot, upright, move),), longest=LONGEST_MOVED) for slot in slots
    )
    return (first, two), (second, two), tuple(f"The {part.noun} is {_place(part)}." for part in (first, second))


def _orientation(one: Part, two: Part, upright: bool, instead: Sequence[Drawing], rng: np.random.Generator) -> Found:
    turns = rng.choice(len(TURNS), size=2, replace=False).tolist()
    first, second = (replace(one, turns=turn) for turn in turns)
    return (first, two), (second, two), tuple(f"The {one.noun} is {TURNS[turn]}." for turn in turns)


def _relation(one: Part, two: Part, upright: bool, instead: Sequence[Drawing], rng: np.random.Generator) -> Found:
    swapped = replace(one, centres=two.centres), replace(two, centres=one.centres)
    before = one.centres[0][upright] < two.centres[0][upright]
    words = ("above", "below") if upright else ("to the left of", "to the right of")
    told = int(rng.integers(2))  # which of the two words tells it
    subject, thing = (one, two) if before == (told == 0) else (two, one)
    texts = tuple(f"The {a.noun} is {words[told]} the {b.noun}." for a, b in ((subject, thing), (thing, subject)))
    return (one, two), swapped, texts


def _object(one: Part, two: Part, upright: bool, instead: Sequence[Drawing], rng: np.random.Generator) -> Found:
    able = [drawing for drawing in instead if _apart(one.drawing, two.drawing, drawing)]
    other = replace(one, drawing=able[int(rng.integers(len(able)))])
    return (one, two), (other, two), (_picture_of(one, two), _picture_of(other, two))


# kind -> makes both pictures and sentences from a first picture; the change is in the first part, or is a swap
KINDS: dict[str, Callable[..., Found]] = {
    "colour": _colour,
    "count": _count,
    "position": _position,
    "orientation": _orientation,
    "relation": _relation,
    "object": _object,
}
