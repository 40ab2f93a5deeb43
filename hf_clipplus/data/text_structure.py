"""What a sentence is made of: noun phrases, their attributes, and relations between them.

A parser is any function from a text to a `TextStructure`. `spacy_parser` makes one of spaCy's noun chunks and
dependencies, `tagged_parser` of any tagger of `nouns` (NLTK, spaCy, a function of one's own), `row_structure` reads
columns that were computed before. `structure_spans` gives the parts of a text to `text_mode="segmented"`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .clipart_scenes import NUMBERS
from .clipart_text import with_article
from .collators import caption_candidates, row_name
from .nouns import Tagger, nltk_tagger
from .report import DataReport

Span = tuple[int, int]  # characters: the first, and the one behind the last

POOLINGS = ("graph", "mean")
# nouns that are part of a relation ("to the left of") or of a place ("in the top left"), not things
PLACE_NOUNS = frozenset(
    {"left", "right", "top", "bottom", "front", "back", "middle", "centre", "center", "side", "corner", "foreground"}
)
_OPENING_TAGS = frozenset({"DT", "PRP$", "PDT", "WP$"})
_ATTRIBUTE_TAGS = frozenset({"JJ", "JJR", "JJS", "CD", "VBN", "VBG"})
_ARTICLE = re.compile(r"\b(an?) $", re.IGNORECASE)
_LINKING = ("IN", "TO", "VB")  # beginnings of the tags of which one must be in a relation


@dataclass(frozen=True)
class Phrase:
    """A noun phrase.

    Args:
        span: of the whole, article included.
        head: of the noun.
        attributes: of each word that says something of it, numbers included.
    """

    span: Span
    head: Span
    attributes: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Relation:
    """What one phrase is to another.

    Args:
        subject, object: numbers of the phrases.
        span: of the words that say it ("is to the left of").
    """

    subject: int
    object: int
    span: Span


@dataclass(frozen=True)
class TextStructure:
    """The structure of a text; all spans are of its characters.

    Raises:
        ValueError: a span outside the text or empty, a relation of a phrase that is not there.
    """

    text: str
    phrases: tuple[Phrase, ...] = ()
    relations: tuple[Relation, ...] = ()

    def __post_init__(self):
        for phrase in self.phrases:
            check_spans(self.text, [phrase.span, phrase.head, *phrase.attributes])
        check_spans(self.text, [relation.span for relation in self.relations])
        for relation in self.relations:
            for number in (relation.subject, relation.object):
                if not 0 <= number < len(self.phrases):
                    raise ValueError(f"a relation of phrase {number}, but {self.text!r} has {len(self.phrases)}.")

    def words(self, span: Span) -> str:
        """The characters of a span."""
        return self.text[span[0] : span[1]]

    def noun_phrases(self) -> list[str]:
        """ "a red car", ..."""
        return [self.words(phrase.span) for phrase in self.phrases]

    def attribute_pairs(self) -> list[tuple[str, str]]:
        """("red", "car"), ..."""
        return [(self.words(each), self.words(phrase.head)) for phrase in self.phrases for each in phrase.attributes]

    def triples(self) -> list[tuple[str, str, str]]:
        """("cat", "is behind", "car"), ..."""
        return [
            (
                self.words(self.phrases[relation.subject].head),
                self.words(relation.span),
                self.words(self.phrases[relation.object].head),
            )
            for relation in self.relations
        ]

    def to_dict(self) -> dict[str, list]:
        """Lists of numbers, for a column of a data set; `from_dict` reads them."""
        return {
            "phrases": [
                {"span": [*p.span], "head": [*p.head], "attributes": [[*each] for each in p.attributes]}
                for p in self.phrases
            ],
            "relations": [{"subject": r.subject, "object": r.object, "span": [*r.span]} for r in self.relations],
        }

    @classmethod
    def from_dict(cls, text: str, found: Mapping[str, Any]) -> "TextStructure":
        """The inverse of `to_dict`."""
        phrases = tuple(
            Phrase(tuple(p["span"]), tuple(p["head"]), tuple(tuple(each) for each in p["attributes"]))
            for p in found["phrases"]
        )
        relations = (Relation(int(r["subject"]), int(r["object"]), tuple(r["span"])) for r in found["relations"])
        return cls(text, phrases, tuple(relations))


Parser = Callable[[str], TextStructure]


def check_spans(text: str, spans: Sequence[Span]) -> None:
    """Raises ValueError when a span is empty or not within the text."""
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"span ({start}, {end}) does not lie within the {len(text)} characters of {text!r}.")


def tagged_parser(tagger: Tagger) -> Parser:
    """A parser by rules over parts of speech.

    A phrase is an article, adjectives, numbers and participles, and the nouns after them, the last one being the head.
    Two phrases in a row are related by the words between them, when a verb or a preposition is among those and no
    other noun, comma or conjunction; what is further apart is not related.

    Args:
        tagger: from a text to its (word, Penn tag) pairs, see `nouns.find_tagger`.
    """
    return lambda text: structure_of_tags(text, tagger(text))


def structure_of_tags(text: str, tagged: Sequence[tuple[str, str]]) -> TextStructure:
    """The structure of a text whose words are tagged, see `tagged_parser`.

    Args:
        text: as it is.
        tagged: (word, Penn tag) pairs; a word that does not stand in the text, such as a quotation mark that the
            tagger changed, is passed over.
    """
    words, place = [], 0
    for word, tag in tagged:
        start = text.find(word, place)
        if word and start >= 0:
            place = start + len(word)
            words.append(((start, place), tag))
    phrases, links, between, run = [], [], [], []
    for span, tag in [*words, ((len(text), len(text)), ".")]:
        noun, attribute = tag.startswith("NN"), tag in _ATTRIBUTE_TAGS
        continues = noun or (attribute and not any(tag.startswith("NN") for _, tag in run))
        if run and not continues:
            if phrase := _phrase(text, run):
                phrases.append(phrase)
                links.append(between)
                between = []
            else:
                between += run
            run = []
        (run if noun or attribute or tag in _OPENING_TAGS else between).append((span, tag))
    relations = []
    for number, link in enumerate(links[1:], 1):
        tags = [tag for _, tag in link]
        if any(tag.startswith(_LINKING) for tag in tags) and not {"CC", ",", ".", ":"} & set(tags):
            relations.append(Relation(number - 1, number, (link[0][0][0], link[-1][0][1])))
    return TextStructure(text, tuple(phrases), tuple(relations))


def _phrase(text: str, run: Sequence[tuple[Span, str]]) -> Phrase | None:
    """The phrase of words up to a noun; None when there is no noun, or one that only says where."""
    nouns = [number for number, (_, tag) in enumerate(run) if tag.startswith("NN")]
    if not nouns:
        return None
    head = run[nouns[-1]][0]
    if text[head[0] : head[1]].lower() in PLACE_NOUNS:
        return None
    before = run[: nouns[-1]]
    attributes = tuple(span for span, tag in before if tag not in _OPENING_TAGS)
    return Phrase((run[0][0][0], head[1]), head, attributes)


def spacy_parser(model: Any = "en_core_web_sm") -> Parser:
    """A parser by spaCy's noun chunks and dependencies.

    Relations are a verb between its subject and its object, and a preposition between its object and the noun that it
    belongs to, or the subject of the verb that it belongs to ("the cat is behind the car").

    Args:
        model: the name of a spaCy model, or a loaded one.

    Raises:
        ImportError: the package or the model is not there; says what to install.
    """
    if isinstance(model, str):
        try:
            import spacy

            model = spacy.load(model, disable=["ner", "lemmatizer"])
        except (ImportError, OSError) as error:
            raise ImportError(
                f"parsing with spaCy needs `pip install spacy` and `python -m spacy download {model}`. Or use "
                "tagged_parser with a tagger of hf_clipplus.data.nouns, a parser of your own, or a column "
                "`structures` or `tags`."
            ) from error
    return lambda text: _structure_of_doc(text, model(text))


def find_parser() -> Parser:
    """spaCy's parser if it is there with its model, else the rules over NLTK's tags.

    Raises:
        ImportError: neither is there.
    """
    for make in (spacy_parser, lambda: tagged_parser(nltk_tagger())):
        try:
            return make()
        except ImportError as error:
            problem = error
    raise ImportError(f"neither spaCy nor NLTK can parse here. {problem}") from problem


def _structure_of_doc(text: str, doc) -> TextStructure:
    def span(first, last) -> Span:
        return first.idx, last.idx + len(last.text)

    chunks = [
        chunk for chunk in doc.noun_chunks
        if chunk.root.pos_ != "PRON" and chunk.root.text.lower() not in PLACE_NOUNS
    ]  # fmt: skip
    phrases, number_of = [], {}
    for chunk in chunks:
        attributes = tuple(span(t, t) for t in chunk if t.i < chunk.root.i and t.dep_ in _ATTRIBUTE_DEPENDENCIES)
        number_of[chunk.root.i] = len(phrases)
        phrases.append(Phrase(span(chunk[0], chunk.root), span(chunk.root, chunk.root), attributes))

    def of(token, *dependencies) -> int | None:
        """The phrase that hangs on a token in one of these ways."""
        return next((number_of[c.i] for c in token.children if c.dep_ in dependencies and c.i in number_of), None)

    relations = []
    for token in doc:
        subject = target = None
        first = token
        if token.pos_ in ("VERB", "AUX"):
            subject, target = of(token, "nsubj"), of(token, "dobj", "obj")
        elif token.dep_ == "prep":
            last = _end_of_preposition(token)
            target, owner = of(last, "pobj"), token.head
            while owner.dep_ == "prep" or owner.text.lower() in PLACE_NOUNS:
                owner = owner.head
            subject = number_of.get(owner.i, of(owner, "nsubj"))
            first = owner if owner.pos_ in ("VERB", "AUX") and owner.i < token.i else token
            token = last
        if subject is not None and target is not None and subject != target:
            relations.append(Relation(subject, target, span(first, token)))
    return TextStructure(text, tuple(phrases), tuple(dict.fromkeys(relations)))


_ATTRIBUTE_DEPENDENCIES = frozenset({"amod", "nummod", "compound"})


def _end_of_preposition(token):
    """The "of" of "to the left of", else the preposition itself."""
    for place in token.children:
        if place.dep_ == "pobj" and place.text.lower() in PLACE_NOUNS:
            return next((child for child in place.children if child.dep_ == "prep"), token)
    return token


def row_structure(row: Mapping[str, Any], caption: str, parser: Parser | None = None) -> TextStructure:
    """The structure of a caption of a row: from its columns if it has them, else from the parser.

    Args:
        row: may have `structures` (`TextStructure.to_dict` of each caption, raw one first, then the pseudo-captions)
            or `tags` ((word, Penn tag) pairs of the raw caption).
        caption: one of the row's.
        parser: for captions that the columns do not cover.

    Raises:
        ValueError: neither columns nor a parser; a column of another length than the captions.
    """
    candidates = caption_candidates(row)
    if row.get("structures") is not None:
        if len(row["structures"]) != len(candidates):
            raise ValueError(
                f"{row_name(row, int(row.get('index', 0)))}: column structures has {len(row['structures'])} entries, "
                f"the row has {len(candidates)} captions (raw and pseudo)."
            )
        if caption in candidates:
            return TextStructure.from_dict(caption, row["structures"][candidates.index(caption)])
    if row.get("tags") is not None and caption == (row.get("caption") or "").strip():
        return structure_of_tags(caption, row["tags"])
    if parser is None:
        raise ValueError(
            "rows have neither `structures` nor `tags`, and there is no parser: pass "
            "parser=hf_clipplus.data.text_structure.spacy_parser() or tagged_parser(...) with "
            "a tagger of hf_clipplus.data.nouns, or a function text -> TextStructure."
        )
    return parser(caption)


def replaced(text: str, span: Span, new: str) -> str:
    """The text with other words in a span, with a capital where a sentence begins, and the "a" or "an" that they need.

    Args:
        text: as it is.
        span: what is replaced.
        new: the words that take its place.
    """
    before, after, word = text[: span[0]], text[span[1] :], new.split()[0]
    article = _ARTICLE.search(before)
    if article and (fitting := with_article(word).removesuffix(word).strip()):
        fitting = fitting.capitalize() if article.group(1)[0] == "A" else fitting
        before = f"{before[: article.start(1)]}{fitting} "
    if text[span[0]].isupper() and (not before or before.endswith((". ", "! ", "? "))):
        new = new[0].upper() + new[1:]
    return before + new + after


def swapped(text: str, one: Span, other: Span) -> str:
    """The text with the words of two spans, the first one first, in each other's place."""
    first, second = text[slice(*one)], text[slice(*other)]
    if first.split()[0].lower() in ("a", "an", "the", *NUMBERS):
        first = first[0].lower() + first[1:]
    return replaced(replaced(text, other, first), one, second)


def phrase_weights(structure: TextStructure, pooling: str = "graph") -> list[float]:
    """How much each phrase counts in its text; they sum to 1.

    Args:
        structure: of the text.
        pooling: "graph": the stationary distribution of the random walk on the graph of relations, every phrase
            having an edge to itself: `(1 + degree) / sum`; "mean": all the same.

    Raises:
        ValueError: unknown pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling {pooling!r} is unknown: choose one of {POOLINGS}.")
    degrees = [1.0] * len(structure.phrases)
    if pooling == "graph":
        for relation in structure.relations:
            degrees[relation.subject] += 1
            degrees[relation.object] += 1
    return [degree / sum(degrees) for degree in degrees]


@dataclass(frozen=True)
class StructureSpans:
    """The parts of a text as `spans` of a processor with `text_mode="segmented"`: the whole and its phrases, weighted.

    A text without phrases is encoded as a whole.

    Args:
        parser: see the module.
        sentence: share of the whole text in the embedding, in [0, 1]; the phrases share the rest.
        pooling: of the phrases, see `phrase_weights`.
        report: where texts without phrases are counted, e.g. `contrastive_report()`.

    Raises:
        ValueError: a share outside [0, 1], an unknown pooling.

    Example:
        >>> batch = processor(text=captions, text_mode="segmented", spans=StructureSpans(spacy_parser()))
        >>> model.encode_text(**batch)
    """

    parser: Parser
    sentence: float = 0.5
    pooling: str = "graph"
    report: DataReport | None = None

    def __post_init__(self):
        if not 0 <= self.sentence <= 1:
            raise ValueError(f"sentence: expected a share in [0, 1], got {self.sentence}.")
        phrase_weights(TextStructure(""), self.pooling)

    def __call__(self, text: str) -> list[tuple[int, int, float]]:
        """(start, end, weight) of each part; none when there are no phrases."""
        structure = self.parser(text)
        if not structure.phrases:
            if self.report is not None:
                self.report.add("caption without structure", text)
            return []
        whole = [(0, len(text), self.sentence)] if self.sentence else []
        if self.sentence == 1:
            return whole
        weights = phrase_weights(structure, self.pooling)
        return whole + [
            (*phrase.span, (1 - self.sentence) * weight)
            for phrase, weight in zip(structure.phrases, weights, strict=True)
        ]
