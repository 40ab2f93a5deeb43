"""False captions: none is true of its scene, the rules for texts, what is counted, and their batch."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hf_clipplus.data.clipart_canvas import COLOUR_NAMES
from hf_clipplus.data.clipart_scenes import COPIES, NUMBERS, SceneWorld, place_of, scene_sentences
from hf_clipplus.data.clipart_text import CLASS_NAMES, plural
from hf_clipplus.data.collators import ContrastiveCollator, contrastive_report
from hf_clipplus.data.hard_negatives import (
    KINDS,
    HardNegatives,
    HardNegativeSelection,
    WordFrequencies,
    caption_reader,
    same_words,
    text_reader,
)
from hf_clipplus.data.nouns import NounPromptCollator
from hf_clipplus.data.scene_facts import SceneChanges, SceneFacts, scene_reader
from hf_clipplus.data.seeding import item_generator
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.data.text_structure import structure_of_tags
from hf_clipplus.models.fff import FFFProcessor
from hf_clipplus.training.scratch import train_tokenizer

SIZE = 100
# of each class, names that are plural, that have a colour, that are part of another, that are another class
NAMES = {
    "cat": ["tiger", "black cat", "cat"],
    "vehicle": ["car", "red car", "fire truck"],
    "piece of clothing": ["pants", "red hat", "hat"],
    "celestial body": ["sun", "the earth", "orange sun"],
    "flower": ["rose", "sun flower", "cactus"],
    "road sign": ["arrow", "two way crosses"],
    "musical item": ["drum", "ukulele"],
    "bird": ["owl", "owl on a branch"],
}
COLOURS = ("red", "orange", "green", "blue", "purple", "black", "white", "brown", "colourful", "black and white")
BACKGROUNDS = ("white", "black", "light blue", "dark red", "beige")
IS_ALSO = {("cat", "mammal"), ("vehicle", "boat"), ("vehicle", "tool"), ("road sign", "safety sign")}
MIXED = ("colourful", "black and white")
ALL_COLOURS = (*COLOUR_NAMES, *MIXED)
ITEM = re.compile(rf"(an?|{'|'.join(NUMBERS)}) (.+)")


def make_scene(rng):
    """A row of facts, and its true captions: what `SceneWorld` says of such objects, without drawing them."""
    objects = []
    classes = rng.permutation(list(NAMES))[: rng.integers(1, 5)]
    for group, name in enumerate(classes):
        count, noun = 1 + int(rng.choice(3, p=COPIES)), str(rng.choice(NAMES[name]))
        for _ in range(count):
            (x, y), (w, h) = rng.integers(0, 70, 2), rng.integers(5, 30, 2)
            box = tuple(int(side) for side in (x, y, x + w, y + h))
            facts = {"name": noun, "class_name": str(name), "colour": str(rng.choice(COLOURS)), "box": box}
            objects.append(facts | {"place": place_of(box, SIZE), "group": group, "count": count})
    background = str(rng.choice(BACKGROUNDS))
    row = {"objects": objects, "background": background, "image": SimpleNamespace(height=SIZE)}
    return row, scene_sentences(objects, background, SIZE)


def is_true(text, row):
    """Whether a sentence in the forms of the scenes' own is true: looked up in the facts, form by form."""
    objects = row["objects"]

    def called(noun):
        return [
            item
            for item in objects
            if noun == item["class_name"] or (item["class_name"], noun) in IS_ALSO or item["name"].endswith(noun)
        ]

    def centre(item):
        x0, y0, x1, y1 = item["box"]
        return (x0 + x1) / 2 / row["image"].height, (y0 + y1) / 2 / row["image"].height

    def stands(item, place):
        x, y = centre(item)
        wanted = [("left", x < 0.4), ("right", x > 0.6), ("top", y < 0.4), ("bottom", y > 0.6)]
        return all(holds for word, holds in wanted if word in place) and (
            "middle" not in place or max(abs(x - 0.5), abs(y - 0.5)) < 0.23
        )

    if found := re.fullmatch(r"(?:A picture of|There is|There are) (.+)\.", text):
        nouns = {item[key] for item in objects for key in ("name", "class_name")} | set(CLASS_NAMES)
        singular = {plural(noun): noun for noun in nouns}
        for part in re.split(r", | and ", found.group(1)):
            said = ITEM.fullmatch(part)
            number, words = said.groups() if said and part not in nouns else ("a", part)
            count = NUMBERS.index(number) if number in NUMBERS else 1
            noun = words if count == 1 else singular[words]
            if count not in {item["count"] for item in called(noun)}:
                return False
        return True
    if found := re.fullmatch(r"The background is (.+)\.", text):
        return found.group(1) == row["background"]
    if found := re.fullmatch(r"The (.+) is (to the left of|to the right of|above|below) the (.+)\.", text):
        one, relation, other = found.groups()
        axis, sign = int(relation in ("above", "below")), 1 if relation in ("above", "to the left of") else -1
        pairs = [(a, b) for a in called(one) for b in called(other) if a is not b]
        return any(sign * centre(a)[axis] < sign * centre(b)[axis] for a, b in pairs)
    if found := re.fullmatch(r"(?:an?|one) (?:drawing of )?(.+) is ((?:in|on|at) the .+)\.", text, re.IGNORECASE):
        words, place = found.groups()
        readings = [(None, words)]  # "red car" is a name, or a car that is red
        readings += [(colour, words[len(colour) + 1 :]) for colour in ALL_COLOURS if words.startswith(f"{colour} ")]
        return any(
            stands(item, place) and colour in (None, item["colour"], *(ALL_COLOURS if item["colour"] in MIXED else ()))
            for colour, noun in readings
            for item in called(noun)
        )
    raise AssertionError(f"nobody can judge {text!r}")


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(np.random.default_rng(number)) for number in range(1260)]


def test_no_false_caption_is_true_of_its_scene(scenes):
    made = dict.fromkeys(KINDS, 0)
    for number, (row, captions) in enumerate(scenes):
        assert all(is_true(caption, row) for caption in captions)
        for kind in KINDS if number < 60 else [None]:
            hard = HardNegatives(2 if kind else 8, kinds=[kind] if kind else KINDS, reader=scene_reader)
            selection = hard(row, captions, item_generator(0, 0, number, 3))
            for text in selection.texts:
                assert not is_true(text, row), (text, row)
            made[kind or KINDS[0]] += len(selection.texts)
    assert sum(made.values()) >= 10_000
    assert all(made[kind] >= 20 for kind in ("relation", "count", "colour", "place", "object")), made


def test_the_truth_function_finds_true_captions(scenes, monkeypatch):
    monkeypatch.setattr(SceneFacts, "denies", lambda self, text: True)
    hard = HardNegatives(3, reader=scene_reader)
    drawn = [(row, hard(row, captions, item_generator(0, 0, i))) for i, (row, captions) in enumerate(scenes[:150])]
    assert sum(is_true(text, row) for row, selection in drawn for text in selection.texts) > 5


def test_rows_of_real_scenes():
    world = SceneWorld("train", image_size=48, length=12)
    for number in range(12):
        row = world[number]
        facts = SceneFacts(row)
        assert not any(facts.denies(caption) for caption in row["sentences"])
        assert not facts.denies(" ".join(row["sentences"]))
        selection = HardNegatives(3, reader=caption_reader())(row, row["sentences"], item_generator(0, 0, number))
        assert (len(selection.texts), selection.missing) == (3, 0)
        for text in selection.texts:
            assert text not in row["sentences"]
            assert facts.denies(text)
            assert facts.denies(" ".join([*row["sentences"], text]))


def scene(*objects, background="white"):
    """A row of (name, class, colour, centre) objects."""
    names = [name for name, *_ in objects]
    rows = [
        {"name": name, "class_name": class_name, "colour": colour, "box": (x - 5, y - 5, x + 5, y + 5)}
        | {"count": names.count(name), "group": names.index(name)}
        for name, class_name, colour, (x, y) in objects
    ]
    return {"objects": rows, "background": background, "image": SimpleNamespace(height=SIZE)}


TWO_CARS = scene(
    ("car", "vehicle", "red", (10, 10)),
    ("car", "vehicle", "red", (85, 50)),
    ("tiger", "cat", "colourful", (50, 90)),
    background="light blue",
)


@pytest.mark.parametrize(
    ("text", "false"),
    [
        ("One red car is on the right.", False),
        ("One red car is on the left.", False),  # the one in the corner
        ("One red car is at the bottom.", True),
        ("One orange car is on the right.", False),  # nearly red
        ("One blue car is on the right.", True),
        ("A black car is on the right.", False),  # outlines are black
        ("A blue tiger is at the bottom.", False),  # of many colours
        ("There are two cars.", False),
        ("There is a car.", True),
        ("There is a boat.", False),  # some vehicles are
        ("There is a mammal.", False),
        ("There is a bird.", True),
        ("A picture of three cars and a tiger.", True),
        ("The car is to the right of the tiger.", False),  # one of them
        ("The car is below the tiger.", True),
        ("The tiger is above the red car.", True),
        ("The background is light grey.", False),  # nearly light blue
        ("The background is dark red.", True),
        ("A picture of two cars on a dark red background.", True),
        ("A red car is upside down.", True),
        ("The car is upside down.", True),
        ("The car is the right way up.", False),
        ("IMG_0042", False),
    ],
)
def test_what_is_plainly_false(text, false):
    assert SceneFacts(TWO_CARS).denies(text) == false


def test_every_kind_of_change():
    caption = (
        "A picture of two cars and a tiger. A red car is in the top left. A blue owl is at the bottom. "
        "The car is above the owl. The owl is the right way up."
    )
    row = scene(
        ("car", "vehicle", "red", (10, 10)), ("owl", "bird", "blue", (50, 90)), ("tiger", "cat", "black", (90, 10))
    )
    row["objects"][0]["count"] = 2
    changes = SceneChanges(SceneFacts(row), caption)
    said = {kind: getattr(changes, kind)() for kind in KINDS}
    assert any("A blue car is in the top left. A red owl" in text for text in said["attributes"])
    assert any("A red car is at the bottom. A blue owl is in the top left" in text for text in said["attributes"])
    assert any("The car is below the owl." in text for text in said["relation"])
    assert any("The owl is above the car." in text for text in said["relation"])
    assert any("A picture of a car and a tiger." in text for text in said["count"])
    assert any("An orange car" in text for text in said["colour"])
    assert any("A red car is in the middle" in text for text in said["place"])
    assert any("The owl is upside down." in text for text in said["orientation"])
    assert any("A blue insect is at the bottom" in text for text in said["object"])
    assert any("A picture of two insects and a tiger." in text for text in said["object"])


TAGGED = {
    "a big red dog sits behind a small blue car on the left": "DT JJ JJ NN VBZ IN DT JJ JJ NN IN DT NN",
    "two cats next to a dog": "CD NNS JJ TO DT NN",
    "one of the two cats": "CD IN DT CD NNS",
    "a red and white boat": "DT JJ CC JJ NN",
    "a pink car and a red house": "DT JJ NN CC DT JJ NN",
    "dogs above cats": "NNS IN NNS",
    "a horse facing left": "DT NN VBG VBN",
    "a dog above a dog": "DT NN IN DT NN",
    "asleep": "JJ",
    "a red car": "DT JJ NN",
}


def parse(text):
    return structure_of_tags(text, list(zip(text.split(), TAGGED[text].split(), strict=True)))


def changed(kind, caption, *others, objects=()):
    row = {"caption": caption, "pseudo_captions": list(others)}
    (changes,) = text_reader(parse, objects)(row, [caption])
    return getattr(changes, kind)()


def test_rules_for_texts_alone():
    dog = "a big red dog sits behind a small blue car on the left"
    assert changed("attributes", dog) == [
        "a small red dog sits behind a big blue car on the left",
        "a big blue dog sits behind a small red car on the left",
    ]
    assert changed("attributes", "a pink car and a red house") == []
    assert changed("attributes", "a red and white boat") == changed("colour", "a red and white boat") == []
    assert changed("place", dog) == ["a big red dog sits behind a small blue car on the right"]
    assert changed("place", dog, "a cat on the right") == []
    found = changed("colour", dog, "a green tree")
    assert "a big yellow dog sits behind a small blue car on the left" in found
    assert not any("green" in text or "pink dog" in text or "black" in text for text in found)
    assert changed("count", "two cats next to a dog", "three of them") == [
        f"{number} cats next to a dog" for number in ("four", "five", "six")
    ]
    assert changed("count", "one of the two cats") == []
    assert changed("relation", "two cats next to a dog") == []
    assert changed("relation", "dogs above cats") == changed("relation", "a dog above a dog") == []
    assert changed("orientation", "a horse facing left") == ["a horse facing right"]
    assert changed("object", dog) == []
    assert changed("object", "two cats next to a dog", "a horse", objects=["cat", "dog", "horse", "owl"]) == [
        "two owls next to a dog",
        "two cats next to an owl",
    ]


def test_relations_of_texts_alone(monkeypatch):
    monkeypatch.setitem(TAGGED, "a dog is behind a car", "DT NN VBZ IN DT NN")
    assert changed("relation", "a dog is behind a car") == ["a dog is in front of a car", "a car is behind a dog"]
    assert changed("relation", "a dog is behind a car", "something in front of it") == ["a car is behind a dog"]


def test_number_kinds_and_reader_are_checked():
    with pytest.raises(ValueError, match=r"\['size'\] are unknown: choose among \('attributes', 'relation'"):
        HardNegatives(kinds=["colour", "size"], reader=scene_reader)
    for wrong in ({"number": 0}, {"kinds": []}):
        with pytest.raises(ValueError, match="a number of at least 1 and a kind"):
            HardNegatives(**wrong, reader=scene_reader)
    with pytest.raises(ValueError, match="SceneFacts need rows of SceneWorld"):
        HardNegatives(reader=scene_reader)({"caption": "x"}, ["x"], np.random.default_rng(0))


def test_what_could_not_be_made_is_counted():
    hard = HardNegatives(2, kinds=["colour", "count"], reader=text_reader(parse))
    selection = hard(
        {"caption": "a red car", "pseudo_captions": ["asleep"]}, ["a red car", "asleep"], np.random.default_rng(0)
    )
    assert (len(selection.texts), selection.missing, selection.unreadable) == (2, 0, 1)
    selection = hard({"caption": "asleep"}, ["asleep"], np.random.default_rng(0))
    assert selection == ([], 2, 1)
    assert hard({"caption": ""}, [], np.random.default_rng(0)) == ([], 2, 0)


def test_same_words():
    assert same_words("The cat, and a dog.") == same_words("a Cat and the dog")
    assert same_words("a cat") != same_words("a dog")


@pytest.fixture(scope="module")
def processor():
    texts = ["a picture of two cats and a dog on the left", "there is one red car in the middle", *CLASS_NAMES] * 3
    tokenizer = train_tokenizer(texts, vocab_size=640, context=16)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return FFFProcessor(images, tokenizer)


def picture_rows(count=4):
    rows = []
    for number in range(count):
        row, captions = make_scene(np.random.default_rng(number))
        image = Image.new("RGB", (SIZE, SIZE), "red")
        rows.append(
            row | {"image": image, "caption": "title", "pseudo_captions": captions, "index": number, "epoch": 0}
        )
    return rows


def collate(processor, rows, number=2, report=None, **options):
    hard = HardNegatives(number, reader=caption_reader())
    return ContrastiveCollator(processor, seed=1, hard_negatives=hard, report=report, **options)(rows)


def test_batch(processor):
    rows = picture_rows()
    batch = collate(processor, rows, captions_per_image=2)
    plain = ContrastiveCollator(processor, seed=1, captions_per_image=2)(rows)
    true = batch["caption_owner"] >= 0
    assert batch["caption_owner"][~true].tolist() == [-1] * int((~true).sum())
    assert torch.equal(batch["caption_owner"][true], plain["caption_owner"])
    width = plain["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][true][:, :width], plain["input_ids"])
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) > len(plain["input_ids"]) + 4
    again = collate(processor, rows[::-1], captions_per_image=2)
    assert sorted(batch["input_ids"].tolist()) == sorted(again["input_ids"].tolist())
    later = collate(processor, [row | {"epoch": 1} for row in rows], captions_per_image=2)
    assert later["input_ids"].tolist() != batch["input_ids"].tolist()


def test_ids_and_features_are_of_captions_only(processor):
    rows = picture_rows()
    for row in rows:
        row["mining_image_features"], row["image_id"] = np.ones(3), 5
        row["mining_text_features"] = np.ones((1 + len(row["pseudo_captions"]), 3))
    batch = collate(processor, rows, equal_texts_are_positive=True)
    captions = int((batch["caption_owner"] >= 0).sum())
    assert len(batch["caption_ids"]) == len(batch["mining_text_features"]) == captions < len(batch["caption_owner"])


def test_captions_of_the_batch_are_no_negatives(processor):
    """A false caption that another image of the batch has, and one that is cut before the word that differs."""
    row = picture_rows(1)[0]
    long = "one red car in the middle and a dog on the left and " * 3
    made = {0: ["A Dog."], 1: ["a cat", long + "a cat"]}

    def hard(row, captions, generator):
        return HardNegativeSelection(made[row["index"]], 0, 0)

    rows = [row | {"index": 0, "caption": "a cat", "pseudo_captions": [long + "a dog"]}]
    rows.append(row | {"index": 1, "caption": "a dog.", "pseudo_captions": []})
    report = contrastive_report()
    batch = ContrastiveCollator(processor, hard_negatives=hard, report=report)(rows)
    assert batch["caption_owner"].tolist() == [0, 0, 1]
    assert report.counts()["hard negative like a caption of its batch"] == 3


def test_report(processor):
    rows = [row | {"caption": "IMG_0042", "pseudo_captions": []} for row in picture_rows()]
    report = contrastive_report()
    batch = collate(processor, rows, report=report)
    assert batch["caption_owner"].tolist() == [0, 1, 2, 3]
    assert report.counts()["missing hard negative"] == 8
    assert report.counts()["caption without structure"] == 4
    assert "row 0" in report.names("missing hard negative")


def test_sub_captions_have_false_ones(processor):
    batch = collate(processor, picture_rows(), choose=SubCaptions(captions_per_image=3))
    assert (batch["caption_owner"] >= 0).sum() == 12
    assert (batch["caption_owner"] == -1).sum() > 4


def test_what_cannot_go_together(processor):
    hard = HardNegatives(reader=caption_reader())
    with pytest.raises(ValueError, match="cannot go with augment_text"):
        ContrastiveCollator(processor, hard_negatives=hard, augment_text=lambda text, generator: text)
    with pytest.raises(ValueError, match="GroupViT takes no hard negatives"):
        NounPromptCollator(processor, hard_negatives=hard)


def test_words_are_as_frequent_as_in_true_captions():
    """Without frequencies every colour is put in as often; with them the usual ones are."""
    rng = np.random.default_rng(0)
    colours = rng.choice(["red", "green", "turquoise"], p=[0.75, 0.2, 0.05], size=2000)

    def reader(row, captions):
        colours = ("red", "green", "turquoise")
        return [
            SimpleNamespace(
                caption=text,
                readable=True,
                colour=lambda text=text: [f"a {c} cat" for c in colours if c not in text],
                is_false=lambda _: True,
            )
            for text in captions
        ]

    captions = [f"a {colour} cat" for colour in colours]
    words = WordFrequencies(captions)
    assert words.weights("a red cat and a green dog", ["a green cat and a red dog"]) == [1]
    (rarer,), (usual,) = words.weights("a red cat", ["a green cat"]), words.weights("a green cat", ["a red cat"])
    assert usual == 1 / rarer > 3
    shares = {}
    for name, frequencies in (("alike", None), ("usual", words)):
        hard = HardNegatives(kinds=["colour"], reader=reader, frequencies=frequencies)
        texts = [text for caption in captions for text in hard({}, [caption], rng).texts]
        shares[name] = np.mean(["turquoise" in text for text in texts])
    assert shares["alike"] > 0.4
    assert shares["usual"] < 0.2
