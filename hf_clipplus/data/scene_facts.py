"""What an embedded scene shows, as the judge of sentences about it: their structure, and whether they are false."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import clipart_canvas as canvas
from .clipart_facts import TURNS
from .clipart_scenes import NUMBERS, PLACES
from .clipart_text import CLASS_NAMES, plural, with_article
from .text_structure import Phrase, Relation, Span, TextStructure, replaced, swapped

BACKGROUND = "background"
_FACTS = frozenset({"objects", "background", "image"})
RELATIONS = ("to the left of", "to the right of", "above", "below")
MIXED_COLOURS = ("colourful", "black and white")  # of which any colour may be said


def _alike(words: Mapping[str, str]) -> frozenset[frozenset[str]]:
    """Pairs of a word and each of those beside it."""
    return frozenset(frozenset((one, other)) for one, others in words.items() for other in others.split(", "))


# names that people give to the same thing: neither is plainly false of the other
LIKE_COLOURS = _alike(
    {
        "red": "pink, orange, brown",
        "orange": "brown, yellow, beige",
        "beige": "brown, yellow, pink, white",
        "green": "yellow, turquoise",
        "blue": "turquoise, purple",
        "pink": "purple",
        "grey": "black, white",
    }
)
LIKE_CLASSES = _alike(
    {
        "mammal": "cat, dinosaur, person",
        "bird": "dinosaur",
        "person": "body part, piece of clothing, sports item, musical item, safety sign",
        "road sign": "safety sign, vehicle",
        "vehicle": "boat, tool, sports item",
        "savoury dish": "dessert, fruit, tool",
        "fruit": "dessert, flower",
        "map": "celestial body, book, building",
        "tool": "computer device, musical item, sports item",
        "computer device": "musical item",
        "piece of clothing": "body part, sports item, musical item",
        "body part": "sports item, musical item",
        "sports item": "musical item",
    }
)
# of the few words that are no nouns in the scenes' sentences
_TAGS = {
    **dict.fromkeys(("a", "an", "the"), "DT"),
    **dict.fromkeys(NUMBERS, "CD"),
    **dict.fromkeys(
        " ".join((*canvas.COLOUR_NAMES, *canvas.BACKGROUND_NAMES, "colourful upside right")).split(), "JJ"
    ),
    **dict.fromkeys(("in", "on", "at", "to", "of", "above", "below"), "IN"),
    **dict.fromkeys(("is", "are", "turned"), "VBZ"),
    **dict.fromkeys(("and", "there", "picture", "way", "down", "up"), "CC"),
    **{sign: sign for sign in ".,"},
}
NEAR = 0.1  # over the side: how far from a third of the picture an object may stand and still be said to be in it
BACKGROUND_DISTANCE = 40.0  # CIELAB, from which on another name of the background is plainly false
_WITHIN = {place: (row, column) for row, names in enumerate(PLACES) for column, place in enumerate(names)}
_WORD = re.compile(r"[^\W_]+")
_COLOURS = frozenset((*canvas.BACKGROUND_NAMES, *canvas.COLOUR_NAMES, *MIXED_COLOURS))
_ARTICLES = ("a", "an", "the", *NUMBERS)
_STATE = re.compile(rf"(?: is| are)? (?P<place>{'|'.join(_WITHIN)})\b|(?: is| are) (?P<turn>{'|'.join(TURNS)})\b")
_RELATION = re.compile(rf" ((?:is |are )?(?:{'|'.join(RELATIONS)})) $")
_OF_BACKGROUND = re.compile(rf" is ({'|'.join(canvas.BACKGROUND_NAMES)})\b")
_THERE = re.compile(r"There (?:is|are) $")
_LISTING = re.compile(r"(?:a picture of|there is|there are) ", re.IGNORECASE)


class Mention(NamedTuple):
    """What a text says of a phrase.

    Args:
        noun: in the singular.
        is_plural: whether it stands in the plural.
        count: how many; None where it is not said.
        listed: whether its sentence lists what there is.
        colour, place, turn: where each is said; None where it is not.
    """

    noun: str
    is_plural: bool
    count: int | None
    listed: bool
    colour: Span | None
    place: Span | None
    turn: Span | None


class SceneFacts:
    """The facts of a row of `SceneWorld`, which read and judge sentences in the words of the scenes' own.

    A sentence is plainly false when one thing that it says is: a noun that nothing there could be called; another
    colour than any such object has, like colours and drawings of many colours apart; another number, where a sentence
    lists what there is ("a picture of ...", "there is ..."), so that "a cat" is one cat as in the scenes' own
    sentences; a third of the picture in which none of them stands, nor close to; a relation that no pair of them is
    in; that one is turned; another background. What the words leave open counts as not false.

    Args:
        row: has `objects`, `background` and `image` as `SceneWorld` gives them.

    Raises:
        ValueError: the row is none of a `SceneWorld`.
    """

    def __init__(self, row: Mapping[str, Any]):
        if not has_scene_facts(row):
            raise ValueError(f"SceneFacts need rows of SceneWorld with {sorted(_FACTS)}, got {sorted(row)}.")
        self.objects, self.background, self.size = row["objects"], row["background"], row["image"].height
        self.nouns = dict(_CLASS_NOUNS)  # as it stands in a text -> singular, whether plural
        for name in {item["name"] for item in self.objects}:
            self.nouns |= _forms(name)
        self._by_first_word = _by_first_word(self.nouns.keys() - _CLASS_NOUNS.keys())

    def read(self, text: str) -> tuple[TextStructure, list[Mention]]:
        """The structure of a text, and what it says of each of its phrases."""
        lower, phrases, mentions = text.lower(), [], []
        for start, end, found in self._find_nouns(lower):
            first, article, colour = _before(lower, start)
            state = _STATE.match(text, end)
            if found == BACKGROUND and (said := _OF_BACKGROUND.match(text, end)):
                colour = said.span(1)
            noun, is_plural = self.nouns[found]
            number = lower[slice(*article)] if article else ""
            count = NUMBERS.index(number) if number in NUMBERS else None if is_plural or number == "the" else 1
            attributes = [*([article] if number in NUMBERS else []), *([colour] if colour else [])]
            phrases.append(Phrase((first, end), (start, end), tuple(attributes)))
            listed = bool(_LISTING.match(text, text.rfind(". ", 0, start) + 2 if ". " in text[:start] else 0))
            place, turn = _span(state, "place"), _span(state, "turn")
            mentions.append(Mention(noun, is_plural, count, listed, colour, place, turn))
        relations = []
        for number, (left, right) in enumerate(itertools.pairwise(phrases)):
            if said := _RELATION.match(text[left.span[1] : right.span[0]]):
                span = tuple(left.span[1] + place for place in said.span(1))
                relations.append(Relation(number, number + 1, span))
        return TextStructure(text, tuple(phrases), tuple(relations)), mentions

    def denies(self, text: str) -> bool:
        """Whether the text is plainly false of the scene."""
        return self.deny(*self.read(text))

    def deny(self, structure: TextStructure, mentions: Sequence[Mention]) -> bool:
        """Whether a text is plainly false of the scene, from what `read` gave."""
        text = structure.text
        if any(self._is_false(text, mention) for mention in mentions):
            return True
        for relation in structure.relations:
            ones, others = (self._meant(text, mentions[n]) for n in (relation.subject, relation.object))
            if not self._can_be(structure.words(relation.span), ones, others):
                return True
        return False

    @cached_property
    def absent(self) -> list[str]:
        """The classes to which nothing in the scene could be said to belong."""
        return [name for name in CLASS_NAMES if not self._called(name)]

    def _find_nouns(self, lower: str) -> list[tuple[int, int, str]]:
        """Start, end and words of every noun, the longer one where two overlap, in the order of the text."""
        found = []
        for word in _WORD.finditer(lower):
            start = word.start()
            for index in (self._by_first_word, _CLASSES_BY_FIRST_WORD):
                for noun in index.get(word.group(), ()):
                    end = start + len(noun)
                    if lower.startswith(noun, start) and not lower[end : end + 1].isalnum():
                        found.append((start, end, noun))
        kept: list[tuple[int, int, str]] = []
        for start, end, noun in sorted(found, key=lambda each: each[0] - each[1]):
            if all(end <= first or start >= last for first, last, _ in kept):
                kept.append((start, end, noun))
        return sorted(kept)

    def _called(self, noun: str) -> list[Mapping[str, Any]]:
        """The objects that could be called so."""
        words = f" {noun} "
        return [
            item for item in self.objects
            if noun == item["class_name"]
            or frozenset((noun, item["class_name"])) in LIKE_CLASSES
            or words in f" {item['name']} "
            or f" {item['name']} " in words
        ]  # fmt: skip

    def _meant(self, text: str, mention: Mention) -> list[Mapping[str, Any]]:
        """The objects that could be called so and could be said to have the colour."""
        called = self._called(mention.noun)
        if mention.colour is None:
            return called
        colour = text[slice(*mention.colour)].lower()
        return [item for item in called if _could_be(item, colour)]

    def _is_false(self, text: str, mention: Mention) -> bool:
        if mention.noun == BACKGROUND:
            return mention.colour is not None and _apart(text[slice(*mention.colour)].lower(), self.background)
        meant = self._meant(text, mention)
        if mention.turn is not None:
            meant = [item for item in meant if item.get("turn", TURNS[0]) == text[slice(*mention.turn)]]
        if mention.place is not None:
            meant = [item for item in meant if self._stands(item, text[slice(*mention.place)])]
        if not meant:
            return True
        if not mention.listed or mention.count is None or mention.colour is not None:
            return False
        exact = [item for item in meant if mention.noun in (item["name"], item["class_name"])]
        counts = {len(meant), *(item["count"] for item in exact), len(exact) or 1}
        return not min(counts) <= mention.count <= max(counts)

    def _stands(self, item: Mapping[str, Any], place: str) -> bool:
        """Whether an object stands in a third of the picture, or close to it; "at the top" leaves the column open."""
        row, column = _WITHIN[place]
        x, y = self._centre(item)
        in_row, in_column = (k / 3 - NEAR <= at <= (k + 1) / 3 + NEAR for k, at in ((row, y), (column, x)))
        if place == PLACES[1][1]:
            return in_row and in_column
        return (in_row or row == 1) and (in_column or column == 1)

    def _can_be(self, words: str, ones: list, others: list) -> bool:
        """Whether some pair is in a relation, or nearly."""
        relation = words.removeprefix("is ").removeprefix("are ")
        axis = 0 if relation in RELATIONS[:2] else 1
        sign = 1 if relation in (RELATIONS[1], RELATIONS[3]) else -1
        return any(
            sign * (self._centre(one)[axis] - self._centre(other)[axis]) >= -NEAR
            for one in ones for other in others if one is not other
        )  # fmt: skip

    def _centre(self, item: Mapping[str, Any]) -> tuple[float, float]:
        """x and y of the middle of an object's box, over the side."""
        x0, y0, x1, y1 = item["box"]
        return (x0 + x1) / 2 / self.size, (y0 + y1) / 2 / self.size


def has_scene_facts(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of `SceneWorld`, with all that it knows."""
    return row.keys() >= _FACTS


class SceneChanges:
    """What of a scene's caption can be changed so that it becomes false, by the facts of the row.

    Args:
        facts: of the scene.
        caption: of the scene, in the words of its own sentences.

    Class attributes:
        counts: numbers that are written; scenes have up to three copies of a drawing.
    """

    counts = (1, 2, 3)

    def __init__(self, facts: SceneFacts, caption: str):
        self.facts, self.caption = facts, caption
        self.structure, self.mentions = facts.read(caption)
        self.readable = bool(self.mentions) and not facts.deny(self.structure, self.mentions)

    def is_false(self, text: str) -> bool:
        """Whether the facts deny it."""
        return self.facts.denies(text)

    def attributes(self) -> list[str]:
        """Colours, or places, of two objects swapped."""
        found = []
        for of in ("colour", "place"):
            spans = [
                span for mention in self.mentions if (span := getattr(mention, of)) and mention.noun != BACKGROUND
            ]
            found += [
                swapped(self.caption, one, other)
                for number, one in enumerate(spans) for other in spans[number + 1 :]
            ]  # fmt: skip
        return found

    def relation(self) -> list[str]:
        """Relations turned round, by the other word or by the other order."""
        found = []
        for relation in self.structure.relations:
            said = next(words for words in RELATIONS if self.structure.words(relation.span).endswith(words))
            other = RELATIONS[RELATIONS.index(said) ^ 1]
            start = relation.span[1] - len(said)
            found.append(replaced(self.caption, (start, relation.span[1]), other))
            one, other = (self.structure.phrases[n].span for n in (relation.subject, relation.object))
            found.append(swapped(self.caption, one, other))
        return found

    def count(self) -> list[str]:
        """Another number of what is listed."""
        found = []
        for phrase, mention in zip(self.structure.phrases, self.mentions, strict=True):
            if not mention.listed or mention.count is None or mention.colour or mention.noun == BACKGROUND:
                continue
            for count in set(self.counts) - {mention.count}:
                words = with_article(mention.noun) if count == 1 else f"{NUMBERS[count]} {plural(mention.noun)}"
                before = self.caption[: phrase.span[0]]
                before = _THERE.sub("There is " if count == 1 else "There are ", before)
                found.append(before + words + self.caption[phrase.span[1] :])
        return found

    def colour(self) -> list[str]:
        """Another colour of an object, or of the background."""
        return [
            replaced(self.caption, mention.colour, colour)
            for mention in self.mentions if mention.colour
            for colour in (canvas.BACKGROUND_NAMES if mention.noun == BACKGROUND else canvas.COLOUR_NAMES)
        ]  # fmt: skip

    def place(self) -> list[str]:
        """Another third of the picture."""
        return [
            replaced(self.caption, mention.place, place)
            for mention in self.mentions if mention.place for place in _WITHIN
        ]  # fmt: skip

    def orientation(self) -> list[str]:
        """Another way up, where one is said."""
        return [
            replaced(self.caption, mention.turn, turn)
            for mention in self.mentions if mention.turn for turn in TURNS
        ]  # fmt: skip

    def object(self) -> list[str]:
        """An object replaced by a class of which there is none."""
        absent = self.facts.absent
        return [
            replaced(self.caption, phrase.head, plural(name) if mention.is_plural else name)
            for phrase, mention in zip(self.structure.phrases, self.mentions, strict=True)
            if mention.noun != BACKGROUND for name in absent
        ]  # fmt: skip


def scene_reader(row: Mapping[str, Any], captions: Sequence[str]) -> list[SceneChanges]:
    """The reader of a row of `SceneWorld` for `HardNegatives`."""
    facts = SceneFacts(row)
    return [SceneChanges(facts, caption) for caption in captions]


def scene_tagger(text: str) -> list[tuple[str, str]]:
    """Words of the scenes' own sentences with Penn tags: all that is no word of their grammar is a noun."""
    return [(word, _TAGS.get(word.lower(), "NN")) for word in re.findall(r"[^\W_]+|[.,]", text)]


def _before(lower: str, start: int) -> tuple[int, Span | None, Span | None]:
    """Where a phrase begins, its article or number, and its colour, from where its noun begins."""

    def last(words, most: int) -> Span | None:
        """The last words before `at`, at most so many, if they are among `words`."""
        before = lower[max(0, at - 40) : at].split()
        for count in range(most, 0, -1):
            said = " ".join(before[-count:])
            if said in words and lower.endswith(f"{said} ", 0, at):
                return at - 1 - len(said), at - 1
        return None

    at = start
    if colour := last(_COLOURS, 3):
        at = colour[0]
    if drawing := last(("drawing of",), 2):
        at = drawing[0]
    article = last(_ARTICLES, 1)
    return (article[0] if article else at), article, colour


def _forms(noun: str) -> dict[str, tuple[str, bool]]:
    return {plural(noun): (noun, True), noun: (noun, False)}


def _by_first_word(nouns: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for noun in nouns:
        found.setdefault(_WORD.match(noun).group(), []).append(noun)
    return found


_CLASS_NOUNS = {BACKGROUND: (BACKGROUND, False)}
for _name in CLASS_NAMES:
    _CLASS_NOUNS |= _forms(_name)
_CLASSES_BY_FIRST_WORD = _by_first_word(_CLASS_NOUNS)


def _span(match: re.Match | None, group: str) -> Span | None:
    return None if match is None or match.group(group) is None else match.span(group)


def _could_be(item: Mapping[str, Any], colour: str) -> bool:
    """Whether an object could be said to have a colour."""
    own = item["colour"]
    if own == colour or {own, colour} & set(MIXED_COLOURS) or colour in item["name"].split():
        return True
    achromatic = colour in ("black", "grey", "white")  # outlines and lights, in drawings of any colour
    return achromatic or frozenset((own, colour)) in LIKE_COLOURS


@lru_cache(maxsize=512)
def _apart(one: str, other: str) -> bool:
    """Whether two names of backgrounds are plainly of different colours."""
    if not {one, other} <= canvas.BACKGROUNDS.keys():
        return False
    lab = canvas.srgb_to_lab(np.array([canvas.BACKGROUNDS[one], canvas.BACKGROUNDS[other]]))
    return float(np.linalg.norm(lab[0] - lab[1])) >= BACKGROUND_DISTANCE
