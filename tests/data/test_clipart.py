"""The embedded drawings: splits, names, classes, captions, and `CaptionWorld`."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipplus.data import clipart_canvas as canvas
from hf_clipplus.data.clipart import (
    CLASS_NAMES,
    FOLDER_VARIABLE,
    CaptionWorld,
    Drawing,
    class_of,
    load_drawings,
    query_captions,
)
from hf_clipplus.data.clipart_text import clean_keywords, clean_name, plural, with_article


def first(rows):
    return rows[0]


def pixels(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def drawing(rgba, **fields):
    facts = {
        "index": 7,
        "id": "x",
        "alt_text": "X",
        "name": "ball",
        "keywords": ("toy",),
        "category": "recreation/toys",
    }
    return Drawing(image=np.asarray(rgba, dtype=np.uint8), author="me", class_name=None, **{**facts, **fields})


def test_splits_share_no_drawing_by_id_nor_by_pixels():
    train, held, test = (load_drawings(split) for split in ("train", "validation", "test"))
    assert len(train) + len(held) == len(load_drawings("train+validation"))
    assert 0.07 < len(held) / (len(train) + len(held)) < 0.13
    for key in (lambda d: d.index, lambda d: d.id, lambda d: pixels(d.image)):
        seen = {key(d) for d in train + held}
        assert not seen & {key(d) for d in test}
    assert not {d.index for d in train} & {d.index for d in held}
    together = {(d.author.lower(), d.name.rstrip("0123456789")) for d in train}
    assert not together & {(d.author.lower(), d.name.rstrip("0123456789")) for d in held}


def test_drawings_are_decoded_once_and_whole():
    again = load_drawings("test")
    assert all(a is b for a, b in zip(load_drawings("test"), again, strict=True))
    assert again is not load_drawings("test")  # a caller's list is his own
    for d in again:
        assert d.image.dtype == np.uint8
        assert d.image.shape[2] == 4
        assert d.image[..., 3].any()
        assert d.name == d.name.strip().lower() != ""


def test_errors_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"train\+validation, test, got 'dev'"):
        load_drawings("dev")
    with pytest.raises(FileNotFoundError, match=FOLDER_VARIABLE):
        load_drawings("train", tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CaptionWorld("test")
    with pytest.raises(IndexError, match="row below 1, got 1"):
        CaptionWorld([drawing(np.full((8, 8, 4), 255))])[1]


@pytest.mark.parametrize(
    ("stem", "title", "author", "name"),
    [
        ("stylized teddy bear gera", "Stylized Teddy Bear", "Gerald G.", "stylized teddy bear"),
        ("dog drawn with strai", "Dog 01 Drawn With Straight Lines", "Gerald G.", "dog drawn with straight lines"),
        ("balloon white aj", "balloons-aj", "AJ Ashton", "balloon white"),
        ("esperimento chimico arch", "Esperimento chimico", "Architetto Francesco Rollandin", "esperimento chimico"),
        ("harp mo", "Harp", "mo", "harp"),
        ("apple wedge bw", "R16 sibmission", "Gerald G.", "apple wedge"),
        ("tigre05", "tigre05", "Architetto Francesco Rollandin", "tigre"),
        ("8ball", "8ball", "someone", "8ball"),
        ("", "Jonathon's Duck", "Jonathon Love", "duck"),
        ("arrow sergio luiz arauj", "arrow", "Sérgio Luiz Araújo Silva", "arrow"),
        ("", "", "", "bird"),
    ],
)
def test_clean_name(stem, title, author, name):
    assert clean_name(stem, title=title, author=author, category="animals/birds") == name


def test_clean_keywords_and_articles():
    kept = clean_keywords(
        ["signs_and_symbols", "11", "architetto francesco rollandin", "cat", "cat"], author="", name="x"
    )
    assert kept == ("signs and symbols", "cat")
    assert [
        with_article(n)
        for n in ("tiger", "apple", "fried eggs", "the moon", "glass", "stack of books", "one way sign")
    ] == [
        "a tiger",
        "an apple",
        "fried eggs",
        "the moon",
        "a glass",
        "a stack of books",
        "a one way sign",
    ]
    assert [plural(n) for n in ("bee", "piece of clothing", "savoury dish", "celestial body", "fruit", "thongs")] == [
        "bees",
        "pieces of clothing",
        "savoury dishes",
        "celestial bodies",
        "fruits",
        "drawings of thongs",
    ]


def test_classes_have_enough_drawings():
    assert 15 <= len(CLASS_NAMES) <= 25
    for split, least in (("train", 8), ("test", 3)):
        counts = {name: sum(d.class_name == name for d in load_drawings(split)) for name in CLASS_NAMES}
        assert min(counts.values()) >= least, counts
    assert class_of("animals/mammals/big_cats") == "cat"
    assert class_of("transportation", ["roadsign"]) == "road sign"
    assert class_of("unsorted") is None


def test_captions_are_distinct_and_come_from_the_drawing():
    world = CaptionWorld("train", captions=5)
    counts = []
    for i in range(0, len(world), 7):
        row, source = world[i], world.drawings[i]
        made = row["pseudo_captions"]
        counts.append(len(made))
        assert len(set(made)) == len(made) <= 5
        known = {source.name, *source.keywords}
        assert all(any(word in caption for word in known) for caption in made)
        assert row["caption"] == source.alt_text
        assert row["image_id"] == source.index
    assert min(counts) >= 4


def test_queries_are_fixed():
    white = np.full((8, 8, 4), 255)
    tiger = drawing(
        white, name="tiger", keywords=("cat", "feline", "zoo", "wild"), category="animals/mammals/big_cats"
    )
    assert query_captions(tiger) == ["tiger", "a big cat: tiger (cat, feline, zoo)"]
    assert query_captions(drawing(white, keywords=(), category="unsorted")) == ["ball", "ball"]
    assert query_captions(drawing(white, name="rain bird", keywords=(), category="animals/birds"))[1] == "rain bird"


def test_train_rows_depend_on_seed_epoch_and_index_only():
    a, b = (CaptionWorld("train", plain_share=0) for _ in range(2))
    other = CaptionWorld("train", plain_share=0, seed=1)
    _ = [a[i] for i in range(5)]  # rows asked for before change nothing
    rows = range(20, 40)
    assert [pixels(a[i]["image"]) for i in rows] == [pixels(b[i]["image"]) for i in rows]
    assert [a[i]["pseudo_captions"] for i in rows] == [b[i]["pseudo_captions"] for i in rows]
    first_epoch = [(pixels(a[i]["image"]), a[i]["pseudo_captions"]) for i in rows]
    assert all(pixels(other[i]["image"]) != kept for i, (kept, _) in zip(rows, first_epoch, strict=True))
    a.set_epoch(1)
    assert all(pixels(a[i]["image"]) != kept for i, (kept, _) in zip(rows, first_epoch, strict=True))
    assert sum(a[i]["pseudo_captions"] != kept for i, (_, kept) in zip(rows, first_epoch, strict=True)) > 15
    a.set_epoch(0)
    assert [(pixels(a[i]["image"]), a[i]["pseudo_captions"]) for i in rows] == first_epoch


def test_eval_rows_are_fixed_centred_and_on_white():
    square = np.full((20, 40, 4), 255, dtype=np.uint8)
    square[..., :3] = (200, 0, 0)
    world = CaptionWorld([drawing(square)], train=False, image_size=50)
    before = world[0]
    picture = np.asarray(before["image"])
    red = (picture == (200, 0, 0)).all(-1)
    rows, columns = np.nonzero(red)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (2, 47, 14, 36)  # 45 x 22, aspect kept
    assert (picture[~red] == 255).all()
    world.set_epoch(3)
    assert pixels(world[0]["image"]) == pixels(picture)
    assert world[0]["pseudo_captions"] == before["pseudo_captions"]


def test_a_white_drawing_is_never_shown_on_white():
    white = drawing(np.full((12, 30, 4), 255))
    for train in (True, False):
        world = CaptionWorld([white], train=train, image_size=32)
        for epoch in range(10):
            world.set_epoch(epoch)
            assert np.asarray(world[0]["image"]).std() > 10


def test_persistent_workers_see_the_epoch_and_change_nothing():
    world = CaptionWorld("validation", image_size=32)
    loader = torch.utils.data.DataLoader(world, num_workers=2, persistent_workers=True, collate_fn=first)
    for epoch in range(2):
        world.set_epoch(epoch)
        got = [(row["image_id"], pixels(row["image"]), row["pseudo_captions"]) for row in loader]
        alone = CaptionWorld("validation", image_size=32)
        alone.set_epoch(epoch)
        want = [alone[i] for i in range(len(alone))]
        assert got == [(row["image_id"], pixels(row["image"]), row["pseudo_captions"]) for row in want]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((250, 10, 10), "red"),
        ((10, 10, 230), "blue"),
        ((20, 150, 30), "green"),
        ((250, 230, 20), "yellow"),
        ((255, 140, 0), "orange"),
        ((110, 60, 20), "brown"),
        ((255, 120, 180), "pink"),
        ((130, 20, 140), "purple"),
        ((5, 5, 5), "black"),
        ((250, 250, 250), "white"),
        ((128, 128, 128), "grey"),
    ],
)
def test_colour_of_known_drawings(rgb, name):
    image = np.zeros((40, 40, 4), dtype=np.uint8)
    image[5:35, 5:35] = (*rgb, 255)
    image[:5, :, :3] = (0, 255, 0)  # transparent: must not vote
    assert drawing(image).colour == name


def test_colour_sees_past_outlines_and_names_mixtures():
    outlined = np.zeros((40, 40, 4), dtype=np.uint8)
    outlined[..., 3] = 255
    outlined[6:34, 6:34, :3] = (230, 20, 20)
    assert drawing(outlined).colour == "red"  # half of it is a black outline
    outlined[6:34, 6:34, :3] = 255
    assert drawing(outlined).colour == "black and white"
    bands = np.full((30, 30, 4), 255, dtype=np.uint8)
    for k, rgb in enumerate(((255, 0, 0), (0, 0, 255), (0, 160, 0))):
        bands[10 * k : 10 * k + 10, :, :3] = rgb
    assert drawing(bands).colour == "colourful"
    with pytest.raises(ValueError, match="at least one visible pixel"):
        canvas.colour_name(np.zeros((4, 3), dtype=np.uint8), np.zeros(4))


def test_paste_blends_by_alpha_and_cuts_at_the_edge():
    half = np.zeros((4, 4, 4), dtype=np.uint8)
    half[...] = (255, 0, 0, 128)
    sprite = np.asarray(canvas.premultiplied(half)[0])
    picture = canvas.plain(6, np.array([0, 0, 255], dtype=np.uint8))
    canvas.paste(picture, sprite, -2, 4)
    want = np.asarray(
        Image.alpha_composite(Image.new("RGBA", (4, 4), (0, 0, 255, 255)), Image.fromarray(half, "RGBA"))
    )
    assert np.abs(picture[4:, :2].astype(int) - want[0, 0, :3]).max() <= 1
    picture[4:, :2] = (0, 0, 255)
    assert (picture == (0, 0, 255)).all()
    canvas.paste(picture, sprite, 6, 0)  # wholly outside
    assert (picture == (0, 0, 255)).all()


def test_lab_of_known_colours():
    lab = canvas.srgb_to_lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [53.24, 80.09, 67.2], [0, 0, 0]], atol=0.15)


def test_a_share_of_train_pictures_is_plain():
    world, plain = CaptionWorld("train"), CaptionWorld("train", train=False)
    same = [pixels(world[i]["image"]) == pixels(plain[i]["image"]) for i in range(200)]
    assert 0.65 < sum(same) / len(same) < 0.85
