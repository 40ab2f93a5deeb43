"""Fine-grained pairs: each sentence is true of its own picture alone, and one thing differs; checked on the pixels."""

import re

import numpy as np
import pytest

from hf_clipplus.data import clipart_canvas as canvas
from hf_clipplus.data.clipart import load_drawings
from hf_clipplus.data.clipart_facts import TURNS
from hf_clipplus.data.clipart_scenes import NUMBERS, place_of
from hf_clipplus.data.clipart_text import plural, with_article
from hf_clipplus.data.fine_grained_scenes import KINDS, compose, fine_grained_pairs, scene_rows
from hf_clipplus.data.hard_negatives import HardNegatives
from hf_clipplus.data.scene_facts import SceneFacts, scene_reader, scene_tagger
from hf_clipplus.data.text_structure import tagged_parser

SIZE, PAIRS = 96, 10

# a drawing of one may be called the other
NEVER_TOGETHER = ({"cat", "mammal"}, {"boat", "vehicle"}, {"fruit", "dessert", "savoury dish"}, {"fruit", "flower"})


@pytest.fixture(scope="module")
def pairs():
    return fine_grained_pairs("test", image_size=SIZE, pairs_per_kind=PAIRS)


def seen(pair, number, part):
    """What the pixels of one part of a picture say: its box, its colour, and how many pixels are its own."""
    parts = pair.parts[number]
    with_it = np.asarray(compose(parts, pair.background, SIZE)).astype(int)
    without = np.asarray(compose([p for p in parts if p is not part], pair.background, SIZE)).astype(int)
    rows, columns = np.nonzero((with_it != without).any(-1))
    colours = with_it[rows, columns]
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return box, canvas.colour_name(colours, np.ones(len(colours))), len(rows)


def is_true(text, pair, number):
    """Whether a sentence holds for a picture, read anew from the sentence."""
    parts = pair.parts[number]
    by_noun = {part.drawing.class_name: part for part in parts}
    if listing := re.fullmatch(r"A picture of (.+)\.", text):
        counted = (
            with_article(noun) if len(p.centres) == 1 else f"{NUMBERS[len(p.centres)]} {plural(noun)}"
            for noun, p in by_noun.items()
        )
        return sorted(counted) == sorted(listing[1].split(" and "))
    if related := re.fullmatch(r"The (.+) is (above|below|to the left of|to the right of) the (.+)\.", text):
        boxes = [seen(pair, number, by_noun[related[k]])[0] for k in (1, 3)]
        (x0, y0), (x1, y1) = (((a + c) / 2, (b + d) / 2) for a, b, c, d in boxes)
        return {"above": y0 < y1, "below": y0 > y1, "to the left of": x0 < x1, "to the right of": x0 > x1}[related[2]]
    if turned := re.fullmatch(rf"The (.+) is ({'|'.join(TURNS)})\.", text):
        return by_noun[turned[1]].turns == TURNS.index(turned[2])
    if placed := re.fullmatch(r"The (.+) is (.+)\.", text):
        return place_of(seen(pair, number, by_noun[placed[1]])[0], SIZE) == placed[2]
    colour, noun, place = re.fullmatch(r"An? (\w+) (.+) is ((?:on|in|at) .+)\.", text).groups()
    box, measured, _ = seen(pair, number, by_noun[noun])
    return (measured, place_of(box, SIZE)) == (colour, place)


def test_each_sentence_is_true_of_its_own_picture_alone(pairs):
    assert [pair.pattern for pair in pairs[::PAIRS]] == list(KINDS)
    for pair in pairs:
        truths = [[is_true(text, pair, number) for number in (0, 1)] for text in pair.texts]
        assert truths == [[True, False], [False, True]], (pair.pattern, pair.texts)


def test_rows_to_train_on_tell_the_truth_and_their_false_captions_do_not(pairs):
    rows = scene_rows(pairs)
    assert len(rows) == 2 * len(pairs)
    for number, row in enumerate(rows):
        pair, side = pairs[number // 2], number % 2
        assert row["image"] is pair.images[side]
        assert row["caption"] == pair.texts[side]
        assert row["sentences"][-1] == f"The background is {pair.background}."
        assert len(row["sentences"]) >= 4
        assert row["pseudo_captions"] == row["sentences"]
        for text in row["sentences"][:-1]:
            if text[0] != "A" or text.startswith("A picture") or text in pair.texts:  # else a colour that nobody chose
                assert is_true(text, pair, side), text
            assert not SceneFacts(row).denies(text), text
        kinds = ("relation", "count", "place", "orientation", "object")  # a colour beside the main one may be true too
        hard = HardNegatives(5, kinds=kinds, reader=scene_reader)
        made = hard(row, row["sentences"][:-1], np.random.default_rng(number)).texts
        assert len(made) == 5
        for text in made:
            assert not _holds(text, pair, side), text


def test_the_tagger_of_scenes_finds_things_and_what_is_said_of_them():
    parse = tagged_parser(scene_tagger)
    assert parse("A picture of two desserts and a mammal.").noun_phrases() == ["two desserts", "a mammal"]
    related = parse("The light blue cat is to the left of the fruit.")
    assert related.attribute_pairs() == [("light", "cat"), ("blue", "cat")]
    assert related.triples() == [("cat", "is to the left of", "fruit")]
    assert parse("The tool is the right way up.").noun_phrases() == ["The tool"]


def _holds(text, pair, number):
    """`is_true`, where a thing that is not there makes a sentence false."""
    try:
        return is_true(text, pair, number)
    except KeyError:
        return False


def test_one_thing_differs_and_the_pictures_show_what_the_parts_say(pairs):
    fields = {
        "colour": "colour",
        "count": "centres",
        "position": "centres",
        "orientation": "turns",
        "object": "drawing",
    }
    for pair in pairs:
        first, second = pair.parts
        for image, parts in zip(pair.images, pair.parts, strict=True):
            assert (np.asarray(image) == np.asarray(compose(parts, pair.background, SIZE))).all()
        assert (np.asarray(pair.images[0]) != np.asarray(pair.images[1])).any()
        if pair.pattern == "relation":
            assert [part.drawing for part in first] == [part.drawing for part in second]
            assert [part.centres for part in first] == [part.centres for part in second][::-1]
            words = [sorted(text.lower().strip(".").split()) for text in pair.texts]
            assert words[0] == words[1]
            continue
        assert first[1] == second[1]
        apart = [name for name in vars(first[0]) if getattr(first[0], name) != getattr(second[0], name)]
        assert apart == [fields[pair.pattern]]
        counts = [len(parts[0].centres) for parts in pair.parts]
        assert (counts[0] != counts[1]) == (pair.pattern == "count")
        if pair.pattern == "count":
            pixels = [seen(pair, number, pair.parts[number][0])[2] for number in (0, 1)]
            assert pixels[0] / counts[0] == pytest.approx(pixels[1] / counts[1], rel=0.15)


def test_classes_exclude_one_another(pairs):
    for pair in pairs:
        names = {part.drawing.class_name for parts in pair.parts for part in parts}
        assert len(names) == (3 if pair.pattern == "object" else 2)
        assert not any(len(group & names) > 1 for group in NEVER_TOGETHER)


def test_held_out_drawings_only_and_the_seed_decides(pairs):
    held_out = {drawing.index for drawing in load_drawings("test")}
    assert {part.drawing.index for pair in pairs for parts in pair.parts for part in parts} <= held_out
    again = fine_grained_pairs("test", image_size=SIZE, pairs_per_kind=3, kinds=["relation", "colour"])
    kept = [pair for kind in ("relation", "colour") for pair in [p for p in pairs if p.pattern == kind][:3]]
    for one, same in zip(kept, again, strict=True):
        assert one.texts == same.texts
        assert (np.asarray(one.images) == np.asarray(same.images)).all()
    other = fine_grained_pairs("test", image_size=SIZE, pairs_per_kind=3, kinds=["relation"], seed=1)
    assert [pair.texts for pair in other] != [pair.texts for pair in again[:3]]


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match=r"kinds \['size'\] are unknown: choose among colour, count"):
        fine_grained_pairs("test", kinds=["size"])
