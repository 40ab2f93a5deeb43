"""`SceneWorld`: several drawings on a canvas, with a mask of classes, one noisy title and sentences that are true."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from . import clipart_canvas as canvas
from .clipart import CLASS_NAMES, Drawing, SeededWorld
from .clipart_text import plural, with_article

# The raw caption is like the alt text of the web: what it says, and how often.
USELESS_RATE = 0.2  # a title that says nothing, from USELESS_TITLES
ALT_TEXT_RATE = 0.4  # the raw alt text of one object; else one or two objects are named
TWO_OBJECTS_RATE = 0.5  # of the titles that name objects, how many name two
USELESS_TITLES = (
    "Various Cliparts",
    "untitled",
    "drawing-1",
    "new_scene_final2.svg",
    "my clip art",
    "IMG_0042",
    "R16 sibmission",
)

COPIES = (0.7, 0.2, 0.1)  # how often a drawing comes once, twice, three times
LONGEST = (0.28, 0.5)  # longest side of an object over the picture's, for two objects; less for more
MIN_VISIBLE = 0.6  # of each object's pixels
MASK_ALPHA = 64  # from which a pixel belongs to an object
MIN_COVERAGE = (
    0.12  # of its box that a drawing must cover to be put into a scene: thin outlines have no area to segment
)
PLACE_TRIES = 25
SCENE_TRIES = 20
SHRINK = 0.8
MIN_LONGEST = 0.1  # to which an object shrinks, as LONGEST
PLACES = (
    ("in the top left", "at the top", "in the top right"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left", "at the bottom", "in the bottom right"),
)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def scene_drawings(drawings: Sequence[Drawing]) -> list[Drawing]:
    """The drawings that scenes and clips use: those with a class and with an area."""
    return [d for d in drawings if d.class_name and (d.image[..., 3] >= MASK_ALPHA).mean() >= MIN_COVERAGE]


def place_of(box: tuple[int, int, int, int], size: int) -> str:
    """The third of the picture in which a box has its centre, in words; box is x0, y0, x1, y1 in pixels."""
    column, row = (min(2, int(3 * (low + high) / 2 / size)) for low, high in ((box[0], box[2]), (box[1], box[3])))
    return PLACES[row][column]


def listed(parts: Sequence[str]) -> str:
    """Parts as prose: "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


class SceneWorld(SeededWorld):
    """Two or more drawings on a canvas of one named colour; every row is drawn from (seed, epoch, i).

    Each group of copies of one drawing has a class of its own, so that counts are true for names and for classes.
    Every object shows at least 60% of its pixels.

    Args:
        split: a split of `load_drawings`, or the drawings themselves; drawings without class or area are not used.
        image_size: side of the picture, pixels.
        length: rows of an epoch.
        objects: least and greatest number of objects, copies counted.
        seed, train, folder: see `SeededWorld`.

    Returns (per row):
        `image` (PIL RGB), `mask` (uint8 [H, W], 0 background, else 1 + index into `CLASS_NAMES`), `class_names`
        (present, sorted), `objects` (dicts: `name`, `class_name`, `colour`, `place`, `box` as x0, y0, x1, y1 of the
        visible pixels, `group`, `count` of the group, `drawing_index`, `corner` and `longest` as pasted, bottom
        first), `caption` (one noisy title), `long_caption`, `sentences`, `pseudo_captions` (the distinct sentences),
        `background` (its name) and `image_id`.

    Raises:
        ValueError: if fewer classes are at hand than objects asked for, or if the objects find no place.
    """

    def __init__(
        self,
        split: str | Sequence[Drawing],
        *,
        image_size: int = 112,
        length: int = 2000,
        objects: tuple[int, int] = (2, 5),
        seed: int = 0,
        train: bool = True,
        folder: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(split, seed=seed, train=train, folder=folder)
        self.image_size = image_size
        self.length = length
        self.objects = objects
        self._by_class: dict[str, list[Drawing]] = {}
        for drawing in scene_drawings(self.drawings):
            self._by_class.setdefault(drawing.class_name, []).append(drawing)
        if not 1 <= objects[0] <= objects[1] <= len(self._by_class):
            raise ValueError(
                f"objects: expected (least, greatest) with 1 <= least <= greatest <= {len(self._by_class)}, "
                f"the number of classes with drawings, got {objects}"
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        rng = self._generator(index)
        groups, background, (picture, owner, objects) = self._draw(rng)
        mask = np.zeros(owner.shape, dtype=np.uint8)
        for place, item in enumerate(objects):
            mask[owner == place] = 1 + CLASS_NAMES.index(item["class_name"])
        sentences = scene_sentences(objects, canvas.BACKGROUND_NAMES[background], self.image_size)
        return {
            "image": Image.fromarray(picture),
            "mask": mask,
            "class_names": sorted({item["class_name"] for item in objects}),
            "objects": objects,
            "background": canvas.BACKGROUND_NAMES[background],
            "caption": self._title(groups, objects, rng),
            "long_caption": " ".join(sentences),
            "sentences": sentences,
            "pseudo_captions": list(dict.fromkeys(sentences)),
            "image_id": self._image_id(index),
        }

    def _draw(
        self, rng: np.random.Generator
    ) -> tuple[list[tuple[Drawing, int]], int, tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
        """Groups, background and composition, drawn until every object has found a place."""
        for _ in range(SCENE_TRIES):
            groups = self._groups(rng)
            shares = np.min([drawing.visibility for drawing, _ in groups], axis=0)
            background = int(rng.choice(canvas.showing_backgrounds(shares)))
            composed = self._compose(groups, background, rng)
            if len(composed[2]) == sum(copies for _, copies in groups):
                return groups, background, composed
        raise ValueError(
            f"objects: found no place for {self.objects[0]} to {self.objects[1]} objects on {self.image_size} pixels; "
            "ask for fewer objects or a larger image_size"
        )

    def _groups(self, rng: np.random.Generator) -> list[tuple[Drawing, int]]:
        """Drawings of different classes with the number of their copies."""
        wanted = int(rng.integers(self.objects[0], self.objects[1] + 1))
        classes = list(self._by_class)
        groups, total = [], 0
        for place in rng.permutation(len(classes)):
            if total == wanted:
                break
            copies = min(1 + int(rng.choice(len(COPIES), p=COPIES)), wanted - total)
            pool = self._by_class[classes[place]]
            groups.append((pool[int(rng.integers(len(pool)))], copies))
            total += copies
        return groups

    def _compose(
        self, groups: list[tuple[Drawing, int]], background: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """The picture, the index of the object that shows at each pixel (-1: none), and the objects."""
        size = self.image_size
        picture = canvas.plain(size, canvas.BACKGROUND_RGB[background])
        owner = np.full((size, size), -1, dtype=np.int64)
        total = sum(copies for _, copies in groups)
        placed: list[tuple[int, np.ndarray, tuple[int, int], int]] = []
        areas: list[int] = []
        for group, (drawing, copies) in enumerate(groups):
            longest = size * rng.uniform(*LONGEST) * min(1.0, (2.5 / total) ** 0.5)
            for _ in range(copies):
                spot = self._find_place(drawing, longest, owner, areas, rng)
                if spot is None:
                    continue
                sprite, left, top = spot
                canvas.paste(picture, sprite, left, top)
                solid = sprite[..., 3] >= MASK_ALPHA
                owner[top : top + sprite.shape[0], left : left + sprite.shape[1]][solid] = len(placed)
                areas.append(int(solid.sum()))
                placed.append((group, sprite, (left, top), max(sprite.shape[:2])))
        counts = np.bincount([group for group, *_ in placed], minlength=len(groups))
        objects = []
        for place, (group, sprite, (left, top), longest) in enumerate(placed):
            rows, columns = np.nonzero(owner == place)
            pixels = sprite[rows - top, columns - left].astype(np.float64)
            colours = np.minimum(pixels[:, :3] * 255 / pixels[:, 3:], 255)
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            drawing = groups[group][0]
            objects.append(
                {
                    "name": drawing.name,
                    "class_name": drawing.class_name,
                    "colour": canvas.colour_name(colours, pixels[:, 3]),
                    "place": place_of(box, size),
                    "box": box,
                    "group": group,
                    "count": int(counts[group]),
                    "drawing_index": drawing.index,
                    "corner": (left, top),
                    "longest": longest,
                }
            )
        return picture, owner, objects

    def _find_place(
        self, drawing: Drawing, longest: float, owner: np.ndarray, areas: list[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, int, int] | None:
        """A sprite with a corner where everything below it stays visible enough; smaller when it finds none."""
        size = self.image_size
        while longest >= MIN_LONGEST * size:
            sprite = canvas.scaled(drawing.mips, round(longest))
            solid = sprite[..., 3] >= MASK_ALPHA
            if not solid.any():
                return None
            height, width = solid.shape
            for left, top in rng.integers(0, (size - width + 1, size - height + 1), size=(PLACE_TRIES, 2)):
                covered = owner[top : top + height, left : left + width][solid]
                covered = np.bincount(covered[covered >= 0], minlength=len(areas))
                if not covered.any() or self._stays_visible(owner, covered, areas):
                    return sprite, int(left), int(top)
            longest *= SHRINK
        return None

    @staticmethod
    def _stays_visible(owner: np.ndarray, covered: np.ndarray, areas: list[int]) -> bool:
        showing = np.bincount(owner[owner >= 0], minlength=len(areas)) - covered
        return bool((showing >= MIN_VISIBLE * np.array(areas)).all())

    @staticmethod
    def _title(groups: list[tuple[Drawing, int]], objects: list[dict[str, Any]], rng: np.random.Generator) -> str:
        draw = rng.random()
        if draw < USELESS_RATE:
            return USELESS_TITLES[int(rng.integers(len(USELESS_TITLES)))]
        present = sorted({item["group"] for item in objects})
        chosen = [groups[present[place]][0] for place in rng.permutation(len(present))[:2]]
        if draw < USELESS_RATE + ALT_TEXT_RATE:
            return chosen[0].alt_text
        two = rng.random() < TWO_OBJECTS_RATE
        return " and ".join(drawing.name for drawing in chosen[: 1 + two])


def _described(item: dict[str, Any], name: str) -> str:
    """The object with its measured colour, unless its name has one: "a red car", of two cars "one red car"."""
    named = any(word in canvas.COLOUR_NAMES for word in name.split())
    noun = name if named else f"{item['colour']} {name}"
    with_a = with_article(noun)
    if with_a == noun:  # a plural name
        return f"{'a' if item['count'] == 1 else 'one'} drawing of {noun}"
    return with_a if item["count"] == 1 else f"one {noun}"


def _firsts(objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first object of each group."""
    found: dict[int, dict[str, Any]] = {}
    for item in objects:
        found.setdefault(item["group"], item)
    return list(found.values())


def picture_of(objects: Sequence[dict[str, Any]], by: str = "name") -> str:
    """The sentence that lists what there is: by the names of the drawings, or by "class_name"."""
    things = [
        with_article(item[by]) if item["count"] == 1 else f"{NUMBERS[item['count']]} {plural(item[by])}"
        for item in _firsts(objects)
    ]
    return f"A picture of {listed(things)}."


def scene_sentences(objects: Sequence[dict[str, Any]], background: str, size: int) -> list[str]:
    """What a scene shows, one fact a sentence: what there is, each object with colour and place, kinds, background.

    Every second object is called by its class where its place is told, so that both are learned with places.

    Args:
        objects: as `SceneWorld` describes them.
        background: the background's colour name.
        size: side of the picture, pixels.
    """
    firsts = _firsts(objects)
    sentences = [picture_of(objects)]
    for place, item in enumerate(objects):
        subject = _described(item, item["class_name" if place % 2 else "name"])
        sentences.append(f"{subject[0].upper()}{subject[1:]} is {item['place']}.")
    for item in firsts:
        if item["count"] > 1:
            sentences.append(f"There are {NUMBERS[item['count']]} {plural(item['class_name'])}.")
        else:
            sentences.append(f"There is {with_article(item['class_name'])}.")
    sentences += _relation(firsts, size)
    sentences.append(f"The background is {background}.")
    return sentences


def _relation(firsts: Sequence[dict[str, Any]], size: int) -> list[str]:
    """Which of the first two single objects is left of or above the other, where that is plain."""
    single = [item for item in firsts if item["count"] == 1][:2]
    if len(single) < 2:
        return []
    (x0, y0), (x1, y1) = (((i["box"][0] + i["box"][2]) / 2, (i["box"][1] + i["box"][3]) / 2) for i in single)
    one, other = (f"the {item['class_name']}" for item in single)
    if max(abs(x1 - x0), abs(y1 - y0)) < size / 5:
        return []
    if abs(x1 - x0) >= abs(y1 - y0):
        words = "to the left of" if x0 < x1 else "to the right of"
    else:
        words = "above" if y0 < y1 else "below"
    return [f"T{one[1:]} is {words} {other}."]
