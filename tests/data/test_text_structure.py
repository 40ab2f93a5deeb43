"""Structures of texts: from tags, from spaCy documents, from columns; and the parts of segmented texts."""

from types import SimpleNamespace

import pytest

from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.data.text_structure import (
    Phrase,
    Relation,
    StructureSpans,
    TextStructure,
    phrase_weights,
    replaced,
    row_structure,
    spacy_parser,
    structure_of_tags,
    swapped,
    tagged_parser,
)

TAGS = {
    "A big dog sits to the left of two red cars .": "DT JJ NN VBZ IN DT NN IN CD JJ NNS .",
    "a cat and a dog": "DT NN CC DT NN",
    "the man in a red shirt holds a dog": "DT NN IN DT JJ NN VBZ DT NN",
    "asleep": "JJ",
}


def tagger(text):
    return list(zip(text.split(), TAGS[text].split(), strict=True))


def test_structure_of_tagged_words():
    found = tagged_parser(tagger)("A big dog sits to the left of two red cars .")
    assert found.noun_phrases() == ["A big dog", "two red cars"]
    assert found.attribute_pairs() == [("big", "dog"), ("two", "cars"), ("red", "cars")]
    assert found.triples() == [("dog", "sits to the left of", "cars")]
    assert tagged_parser(tagger)("a cat and a dog").triples() == []
    assert tagged_parser(tagger)("the man in a red shirt holds a dog").triples() == [
        ("man", "in", "shirt"),
        ("shirt", "holds", "dog"),  # neighbours only: spaCy's dependencies know better
    ]
    assert tagged_parser(tagger)("asleep") == TextStructure("asleep")
    assert structure_of_tags("", []) == TextStructure("")
    assert structure_of_tags('a "cat"', [("a", "DT"), ("``", "``"), ("cat", "NN"), ("''", "''")]).noun_phrases() == [
        'a "cat'
    ]


class Doc(list):
    """What spaCy makes of a text, from (word, part of speech, dependency, head) of each word."""

    def __init__(self, words, chunks):
        place = 0
        for i, (text, pos, dependency, _) in enumerate(words):
            self.append(SimpleNamespace(text=text, pos_=pos, dep_=dependency, i=i, idx=place, children=[]))
            place += len(text) + 1
        for token, (*_, head) in zip(self, words, strict=True):
            token.head = self[head]
            if token.head is not token:
                token.head.children.append(token)
        self.noun_chunks = [Chunk(self[start : end + 1], self[end]) for start, end in chunks]


class Chunk(list):
    def __init__(self, tokens, root):
        super().__init__(tokens)
        self.root = root


DOCS = {
    "the man in a red shirt holds two dogs": Doc(
        [
            ("the", "DET", "det", 1),
            ("man", "NOUN", "nsubj", 6),
            ("in", "ADP", "prep", 1),
            ("a", "DET", "det", 5),
            ("red", "ADJ", "amod", 5),
            ("shirt", "NOUN", "pobj", 2),
            ("holds", "VERB", "ROOT", 6),
            ("two", "NUM", "nummod", 8),
            ("dogs", "NOUN", "dobj", 6),
        ],
        [(0, 1), (3, 5), (7, 8)],
    ),
    "it is to the left of the cat": Doc(
        [
            ("it", "PRON", "nsubj", 1),
            ("is", "AUX", "ROOT", 1),
            ("to", "ADP", "prep", 1),
            ("the", "DET", "det", 4),
            ("left", "NOUN", "pobj", 2),
            ("of", "ADP", "prep", 4),
            ("the", "DET", "det", 7),
            ("cat", "NOUN", "pobj", 5),
        ],
        [(0, 0), (3, 4), (6, 7)],
    ),
    "a cat is to the left of a dog": Doc(
        [
            ("a", "DET", "det", 1),
            ("cat", "NOUN", "nsubj", 2),
            ("is", "AUX", "ROOT", 2),
            ("to", "ADP", "prep", 2),
            ("the", "DET", "det", 5),
            ("left", "NOUN", "pobj", 3),
            ("of", "ADP", "prep", 5),
            ("a", "DET", "det", 8),
            ("dog", "NOUN", "pobj", 6),
        ],
        [(0, 1), (4, 5), (7, 8)],
    ),
}


def test_structure_by_spacy():
    parse = spacy_parser(DOCS.__getitem__)
    found = parse("the man in a red shirt holds two dogs")
    assert found.noun_phrases() == ["the man", "a red shirt", "two dogs"]
    assert found.attribute_pairs() == [("red", "shirt"), ("two", "dogs")]
    assert found.triples() == [("man", "in", "shirt"), ("man", "holds", "dogs")]
    assert parse("a cat is to the left of a dog").triples() == [("cat", "is to the left of", "dog")]
    pronoun = parse("it is to the left of the cat")
    assert (pronoun.noun_phrases(), pronoun.triples()) == (["the cat"], [])


def test_spacy_is_an_option():
    with pytest.raises(ImportError, match="python -m spacy download no_such_model"):
        spacy_parser("no_such_model")


STRUCTURE = TextStructure(
    "a cat by a dog by a sun",
    (Phrase((0, 5), (2, 5)), Phrase((9, 14), (11, 14)), Phrase((18, 23), (20, 23))),
    (Relation(0, 1, (6, 8)), Relation(1, 2, (15, 17))),
)


def test_columns():
    row = {"caption": " a cat by a dog by a sun ", "pseudo_captions": ["asleep"], "index": 7}
    row["structures"] = [STRUCTURE.to_dict(), TextStructure("asleep").to_dict()]
    assert row_structure(row, "a cat by a dog by a sun") == STRUCTURE
    assert row_structure(row, "asleep") == TextStructure("asleep")
    assert row_structure(row, "another", TextStructure) == TextStructure("another")
    tagged = {"caption": "a cat and a dog", "tags": tagger("a cat and a dog")}
    assert row_structure(tagged, "a cat and a dog").noun_phrases() == ["a cat", "a dog"]
    with pytest.raises(ValueError, match="row 7: column structures has 1 entries, the row has 2 captions"):
        row_structure(row | {"structures": [STRUCTURE.to_dict()]}, "asleep")
    with pytest.raises(ValueError, match="neither `structures` nor `tags`"):
        row_structure({"caption": "asleep"}, "asleep")


@pytest.mark.parametrize("span", [(0, 7), (-1, 2), (3, 3)])
def test_spans_lie_within_the_text(span):
    with pytest.raises(ValueError, match="does not lie within the 6 characters of 'asleep'"):
        TextStructure("asleep", (Phrase(span, (0, 1)),))
    with pytest.raises(ValueError, match="a relation of phrase 1"):
        TextStructure("asleep", (Phrase((0, 6), (0, 6)),), (Relation(0, 1, (0, 2)),))


def test_changed_words_fit_in():
    assert replaced("A cat sits on an old mat.", (17, 20), "new") == "A cat sits on a new mat."
    assert replaced("An owl is here. A cat too.", (3, 6), "cat") == "A cat is here. A cat too."
    assert replaced("Red cars", (0, 3), "blue") == "Blue cars"
    assert swapped("The cat is above an owl.", (0, 7), (17, 23)) == "An owl is above the cat."


def test_weights_of_phrases():
    assert phrase_weights(STRUCTURE) == [2 / 7, 3 / 7, 2 / 7]
    assert phrase_weights(STRUCTURE, "mean") == [1 / 3] * 3
    with pytest.raises(ValueError, match=r"pooling 'best' is unknown: choose one of \('graph', 'mean'\)"):
        phrase_weights(STRUCTURE, "best")


def test_parts_of_a_text():
    report = contrastive_report()
    parts = StructureSpans({STRUCTURE.text: STRUCTURE, "": TextStructure("")}.get, sentence=0.3, report=report)
    starts, ends, weights = zip(*parts(STRUCTURE.text), strict=True)
    assert (starts, ends) == ((0, 0, 9, 18), (23, 5, 14, 23))
    assert weights == pytest.approx([0.3, 0.2, 0.3, 0.2])
    assert parts("") == []
    assert report.counts()["caption without structure"] == 1
    assert StructureSpans(lambda text: STRUCTURE, sentence=1)(STRUCTURE.text) == [(0, 23, 1)]
    assert [p[:2] for p in StructureSpans(lambda text: STRUCTURE, sentence=0)("x")] == [(0, 5), (9, 14), (18, 23)]
    with pytest.raises(ValueError, match=r"expected a share in \[0, 1\], got 2"):
        StructureSpans(TextStructure, sentence=2)
    with pytest.raises(ValueError, match="pooling 'sum'"):
        StructureSpans(TextStructure, pooling="sum")
