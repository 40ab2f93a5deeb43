"""False captions made of true ones, as negatives that differ in one thing: a colour, a number, who is left of whom.

`HardNegatives` is an option of `ContrastiveCollator`. What can be changed, and whether the result is false, is said by
a reader: `scene_reader` knows the facts of an embedded scene; `text_reader` knows the texts only, and its rules are
careful rather than complete.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from .clipart_canvas import COLOUR_NAMES
from .clipart_facts import TURNS
from .clipart_scenes import NUMBERS
from .clipart_text import plural, with_article
from .scene_facts import LIKE_COLOURS, has_scene_facts, scene_reader
from .text_structure import Parser, Phrase, Span, replaced, row_structure, swapped

KINDS = ("attributes", "relation", "count", "colour", "place", "orientation", "object")

ACHROMATIC = ("black", "grey", "white")
SIZES = (("big", "large", "huge"), ("small", "little", "tiny"))
# what the other word makes false; in pairs
OPPOSITES = (
    ("to the left of", "to the right of"),
    ("left of", "right of"),
    ("above", "below"),
    ("over", "under"),
    ("on top of", "underneath"),
    ("in front of", "behind"),
    ("inside", "outside"),
)
# of which the other order is false too; no relation that may hold both ways ("next to", "with", "looking at")
ONE_WAY = frozenset({word for pair in OPPOSITES for word in pair}) | {
    *("on", "in", "riding", "holding", "wearing", "eating", "carrying", "pulling", "pushing", "under"),
    *("rides", "holds", "wears", "eats", "carries", "pulls", "pushes", "beneath", "sitting on", "standing on"),
}
OPPOSITE_PLACES = (("left", "right"), ("top", "bottom"), ("foreground", "background"))
ORIENTATIONS = (TURNS, ("facing left", "facing right"), ("horizontal", "vertical"))
# "on the left", "in the background of the photo"; not "the left hand", "to the left of the dog"
_PLACE = re.compile(
    r"\b(?:on|in|at) the (left|right|top|bottom|foreground|background)"
    r"(?= side\b(?! of (?!the (?:picture|image|photo)))|$|[.,;!]| and\b| is\b| are\b"
    r"| of the (?:picture|image|photo)\b)"
)
_PART_OF_MANY = re.compile(r"\b(?:of|than|least|most|about|over|nearly|almost|other|another)(?: the)? $")


class Changes(Protocol):
    """What a reader says of a caption; it also has one method for each of `KINDS`, which gives changed captions."""

    caption: str
    readable: bool

    def is_false(self, text: str) -> bool:
        """Whether a changed caption is false of the picture."""


Reader = Callable[[Mapping[str, Any], Sequence[str]], Sequence[Changes]]  # (row, its captions) -> one for each


class HardNegativeSelection(NamedTuple):
    """The false captions of an image, how many could not be made, and how many captions told nothing to change."""

    texts: list[str]
    missing: int
    unreadable: int


class WordFrequencies:
    """How often words stand in captions.

    A false caption with a rare word in the place of a usual one is given away by its words: a model need not look at
    the picture. So changes are drawn by `weights`; false captions then have their words about as often as true ones.

    Args:
        captions: true ones, e.g. some of the training data.
    """

    def __init__(self, captions: Iterable[str]):
        self.counts = Counter(word for caption in captions for word in _words(caption))

    def weights(self, caption: str, changed: Sequence[str]) -> list[float]:
        """For each changed caption the frequency of its new words over that of the old ones; 1 for swapped words.

        On either side the rarest word stands for all.
        """
        old = set(_words(caption))
        return [self._weight(old, set(_words(text))) for text in changed]

    def _weight(self, old: set[str], new: set[str]) -> float:
        return self._rarest(new - old) / self._rarest(old - new) if new - old and old - new else 1.0

    def _rarest(self, words: Iterable[str]) -> float:
        return min(self.counts[word] for word in words) + 0.5


class HardNegatives:
    """Draws false captions of an image.

    Each is a caption of the image in which one thing is changed: "attributes" (swapped between two objects),
    "relation" (turned round), "count", "colour", "place", "orientation" or "object" (by another). The kinds take turns
    in an order that is drawn, and a kind that finds nothing to change leaves its turn to the next.

    Args:
        number: how many for each image, at most.
        kinds: which, of `KINDS`.
        reader: what finds changes, e.g. `scene_reader` or `text_reader(...)`.
        frequencies: of words in true captions, which false ones then have too; None: captions and their changes
            are all as likely.

    Raises:
        ValueError: an unknown kind, none at all, or a number below 1.
    """

    def __init__(
        self,
        number: int = 1,
        *,
        kinds: Sequence[str] = KINDS,
        reader: Reader,
        frequencies: WordFrequencies | None = None,
    ):
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"hard negatives of kind {unknown} are unknown: choose among {KINDS}.")
        if not kinds or number < 1:
            raise ValueError(f"hard negatives: expected a number of at least 1 and a kind, got {number} and {kinds}.")
        self.number, self.kinds, self.reader = number, tuple(dict.fromkeys(kinds)), reader
        self.frequencies = frequencies

    def __call__(
        self, row: Mapping[str, Any], captions: Sequence[str], generator: np.random.Generator
    ) -> HardNegativeSelection:
        """False captions made of `captions`, which are the row's.

        Args:
            row: as the collator has it.
            captions: those that stand in the batch.
            generator: random numbers of this item.
        """
        read = self.reader(row, captions)
        readable = [changes for changes in read if changes.readable]
        turns = [self.kinds[turn] for turn in generator.permutation(len(self.kinds))]
        options = cache(partial(self._options, readable))
        made, taken = [], {same_words(text) for text in captions}
        for first in range(self.number):
            for turn in range(len(turns)):
                kind = turns[(first + turn) % len(turns)]
                if (text := self._drawn(*options(kind), taken, generator)) is not None:
                    made.append(text)
                    taken.add(same_words(text))
                    break
        return HardNegativeSelection(made, self.number - len(made), len(read) - len(readable))

    def _options(self, readable: Sequence[Changes], kind: str) -> tuple[list[tuple[Changes, str]], np.ndarray]:
        """The changes of a kind, each with the caption that it is made of, and how likely each is drawn."""
        options, weights = [], []
        for changes in readable:
            texts = list(dict.fromkeys(getattr(changes, kind)()))
            options += [(changes, text) for text in texts]
            weigh = self.frequencies.weights if self.frequencies is not None else _equal_weights
            weights += weigh(changes.caption, texts)
        return options, np.array(weights)

    def _drawn(
        self,
        options: Sequence[tuple[Changes, str]],
        weights: np.ndarray,
        taken: set[tuple[str, ...]],
        generator: np.random.Generator,
    ) -> str | None:
        """A changed caption that is false and not taken, drawn by its weight; None if there is none."""
        for choice in np.argsort(generator.exponential(size=len(options)) / weights):  # without replacement
            changes, text = options[choice]
            if same_words(text) not in taken and changes.is_false(text):
                return text
        return None


def _equal_weights(caption: str, changed: Sequence[str]) -> list[float]:
    return [1 / len(changed) for _ in changed]


class TextChanges:
    """What of a caption can be changed so that it becomes false, when only the captions of the image are known.

    The rules assume that the captions are true, and that a phrase in the singular means the only thing of its name.

    - No word is put in that any caption of the image has, nor a colour like the one that it replaces.
    - Attributes are swapped between two nouns in the singular, which stand once in the caption: colours that are not
      alike, or sizes that are opposite.
    - Relations are turned round between two different nouns in the singular: by the opposite word (`OPPOSITES`), or by
      the other order (`ONE_WAY`).
    - Numbers change between two and six, not after words like "of", "at least", "other"; "a" says no number.
    - Colours become chromatic ones; not where two colours stand together.
    - A place becomes the opposite one, an orientation another of its group (`ORIENTATIONS`).
    - A noun is replaced by another of `objects`, if it is one of them; they must exclude each other.

    Args:
        row: the captions of the image in `caption` and `pseudo_captions`, and their structures, see `row_structure`.
        caption: which of them.
        parser: of texts; None is for rows with columns.
        objects: nouns in the singular.
    """

    def __init__(
        self, row: Mapping[str, Any], caption: str, *, parser: Parser | None = None, objects: Sequence[str] = ()
    ):
        self.caption, self.objects = caption, objects
        self.structure = row_structure(row, caption, parser)
        everything = " . ".join(filter(None, [row.get("caption"), *(row.get("pseudo_captions") or []), caption]))
        self._said = f" {' '.join(_words(everything))} "
        self.readable = bool(self.structure.phrases or _PLACE.search(caption) or self.orientation())

    def is_false(self, text: str) -> bool:
        """True: what the rules make is false."""
        return True

    def attributes(self) -> list[str]:
        """Colours or sizes of two nouns swapped."""
        found = []
        for number, one in enumerate(self._single):
            for other in self._single[number + 1 :]:
                pairs = ((a, b) for a in one.attributes for b in other.attributes)
                found += [
                    swapped(self.caption, a, b) for a, b in pairs if self._word(one.head) != self._word(other.head)
                    and _exclude_each_other(self._word(a), self._word(b)) and not self._many_coloured(one, other)
                ]  # fmt: skip
        return found

    def relation(self) -> list[str]:
        """Relations turned round."""
        found = []
        for relation in self.structure.relations:
            one, other = (self.structure.phrases[number] for number in (relation.subject, relation.object))
            said = re.sub(r"^(?:is|are|was|were) ", "", self._word(relation.span))
            if not {one, other} <= set(self._single) or self._word(one.head) == self._word(other.head):
                continue
            for pair in OPPOSITES:
                if said in pair and self._unsaid(opposite := pair[pair.index(said) ^ 1]):
                    span = (relation.span[1] - len(said), relation.span[1])
                    found.append(replaced(self.caption, span, opposite))
            if said in ONE_WAY and one.span[1] <= other.span[0]:
                found.append(swapped(self.caption, one.span, other.span))
        return found

    def count(self) -> list[str]:
        """Another number."""
        return [
            replaced(self.caption, span, number)
            for phrase in self.structure.phrases for span in phrase.attributes
            if self._word(span) in NUMBERS[2:] and not _PART_OF_MANY.search(self.caption[: span[0]].lower())
            for number in NUMBERS[2:7] if self._unsaid(number)
        ]  # fmt: skip

    def colour(self) -> list[str]:
        """Another colour."""
        return [
            replaced(self.caption, span, colour)
            for phrase in self.structure.phrases if not self._many_coloured(phrase)
            for span in phrase.attributes if self._word(span) in COLOUR_NAMES
            for colour in COLOUR_NAMES
            if colour not in ACHROMATIC and _exclude_each_other(self._word(span), colour) and self._unsaid(colour)
        ]  # fmt: skip

    def place(self) -> list[str]:
        """The opposite place."""
        opposite = {a: b for pair in OPPOSITE_PLACES for a, b in (pair, pair[::-1])}
        return [
            replaced(self.caption, match.span(1), opposite[match.group(1)])
            for match in _PLACE.finditer(self.caption) if self._unsaid(opposite[match.group(1)])
        ]  # fmt: skip

    def orientation(self) -> list[str]:
        """Another way up, or another direction."""
        return [
            replaced(self.caption, match.span(), other)
            for group in ORIENTATIONS for words in group for match in re.finditer(rf"\b{words}\b", self.caption)
            for other in group if other != words and self._unsaid(other)
        ]  # fmt: skip

    def object(self) -> list[str]:
        """Another object."""
        forms = {form: is_plural for name in self.objects for form, is_plural in ((plural(name), True), (name, False))}
        return [
            replaced(self.caption, phrase.head, plural(name) if forms[head] else name)
            for phrase in self.structure.phrases if (head := self._word(phrase.head)) in forms
            for name in self.objects if self._unsaid(name) and self._unsaid(plural(name))
        ]  # fmt: skip

    @cached_property
    def _single(self) -> list[Phrase]:
        """Phrases in the singular whose noun stands once in the caption."""
        heads = [self._word(phrase.head) for phrase in self.structure.phrases]
        return [
            phrase for phrase, head in zip(self.structure.phrases, heads, strict=True)
            if heads.count(head) == 1 and with_article(head) != head
            and not any(self._word(span) in NUMBERS for span in phrase.attributes)
        ]  # fmt: skip

    def _word(self, span: Span) -> str:
        return self.structure.words(span).lower()

    def _unsaid(self, words: str) -> bool:
        return f" {words} " not in self._said

    def _many_coloured(self, *phrases: Phrase) -> bool:
        """Whether one of them has two colours, or a colour that another one follows or goes before with "and"."""
        for phrase in phrases:
            words = _words(self.caption[max(0, phrase.span[0] - 20) : phrase.span[1] + 20])
            colours = [place for place, word in enumerate(words) if word in COLOUR_NAMES]
            if any(b - a == 1 or (b - a == 2 and words[a + 1] == "and") for a, b in itertools.pairwise(colours)):
                return True
        return False


def text_reader(parser: Parser | None = None, objects: Sequence[str] = ()) -> Reader:
    """A reader of captions about which nothing else is known, see `TextChanges`."""
    return lambda row, captions: [TextChanges(row, text, parser=parser, objects=objects) for text in captions]


def caption_reader(parser: Parser | None = None, objects: Sequence[str] = ()) -> Reader:
    """A reader by the facts of rows that have them (embedded scenes), and of other rows by their texts."""
    by_text = text_reader(parser, objects)
    return lambda row, captions: (scene_reader if has_scene_facts(row) else by_text)(row, captions)


def same_words(text: str) -> tuple[str, ...]:
    """Equal for texts that differ in letter case, punctuation and articles only."""
    return tuple(word for word in _words(text) if word not in ("a", "an", "the"))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _exclude_each_other(one: str, other: str) -> bool:
    """Whether nothing has both of two attributes."""
    if one in COLOUR_NAMES and other in COLOUR_NAMES:
        return one != other and frozenset((one, other)) not in LIKE_COLOURS
    sizes = [next((number for number, group in enumerate(SIZES) if word in group), None) for word in (one, other)]
    return None not in sizes and sizes[0] != sizes[1]
