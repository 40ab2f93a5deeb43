"""`SceneWorld`: masks, boxes, counts, places and colours are true."""

import hashlib

import numpy as np
import pytest
import torch

from hf_clipplus.data import clipart_canvas as canvas
from hf_clipplus.data import clipart_scenes as scenes
from hf_clipplus.data.clipart import CLASS_NAMES, Drawing, load_drawings
from hf_clipplus.data.clipart_scenes import PLACES, SceneWorld, place_of, scene_sentences
from hf_clipplus.data.clipart_text import plural

SIZE = 96
COLOURS = {"red": (230, 20, 20), "blue": (20, 20, 220), "green": (20, 150, 30), "yellow": (250, 230, 20)}


def first(rows):
    return rows[0]


def digest(row):
    return hashlib.sha256(np.asarray(row["image"]).tobytes() + row["mask"].tobytes()).hexdigest(), row["sentences"]


def blocks():
    """Drawings of known colour, one for each of four classes."""
    made = []
    for k, (colour, rgb) in enumerate(COLOURS.items()):
        image = np.full((60, 40 + 10 * k, 4), 255, dtype=np.uint8)
        image[..., :3] = rgb
        made.append(
            Drawing(
                index=100 + k,
                id=colour,
                image=image,
                alt_text=f"title {k}",
                name=f"thing{'abcd'[k]}",
                keywords=(),
                category="tools",
                author="me",
                class_name=CLASS_NAMES[k],
            )
        )
    return made


@pytest.fixture(scope="module")
def world():
    return SceneWorld("train", image_size=SIZE, length=150)


@pytest.fixture(scope="module")
def rows(world):
    return [world[i] for i in range(0, len(world), 2)]


def recompose(row, drawings):
    """The picture and the owner of each pixel, laid anew from the objects' description."""
    background = canvas.BACKGROUND_NAMES.index(row["background"])
    picture = canvas.plain(SIZE, canvas.BACKGROUND_RGB[background])
    owner = np.full((SIZE, SIZE), -1)
    areas = []
    for place, item in enumerate(row["objects"]):
        sprite = canvas.scaled(drawings[item["drawing_index"]].mips, item["longest"])
        left, top = item["corner"]
        canvas.paste(picture, sprite, left, top)
        solid = sprite[..., 3] >= scenes.MASK_ALPHA
        owner[top : top + sprite.shape[0], left : left + sprite.shape[1]][solid] = place
        areas.append(solid.sum())
    return picture, owner, areas


def test_masks_boxes_and_visibility_agree_with_a_recomposition(world, rows):
    drawings = {d.index: d for d in world.drawings}
    for row in rows:
        picture, owner, areas = recompose(row, drawings)
        assert (picture == np.asarray(row["image"])).all()
        want = np.zeros((SIZE, SIZE), dtype=np.uint8)
        for place, item in enumerate(row["objects"]):
            ys, xs = np.nonzero(owner == place)
            assert item["box"] == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert len(ys) >= scenes.MIN_VISIBLE * areas[place]
            want[ys, xs] = 1 + CLASS_NAMES.index(item["class_name"])
        assert row["mask"].dtype == np.uint8
        assert (row["mask"] == want).all()
        assert row["class_names"] == sorted({CLASS_NAMES[v - 1] for v in np.unique(row["mask"]) if v})


def test_counts_and_groups_are_true(rows):
    assert {len(row["objects"]) for row in rows} == {2, 3, 4, 5}
    repeated = 0
    for row in rows:
        by_group = {}
        for item in row["objects"]:
            by_group.setdefault(item["group"], []).append(item)
        assert len({members[0]["class_name"] for members in by_group.values()}) == len(by_group)
        for members in by_group.values():
            assert {item["count"] for item in members} == {len(members)}
            assert len({item["drawing_index"] for item in members}) == 1
            if len(members) > 1:
                repeated += 1
                number = scenes.NUMBERS[len(members)]
                assert f"There are {number} {plural(members[0]['class_name'])}." in row["sentences"]
                assert f"{number} {plural(members[0]['name'])}" in row["sentences"][0]
    assert repeated > 10


def test_places_are_true(rows):
    seen = set()
    for row in rows:
        for item, sentence in zip(row["objects"], row["sentences"][1:], strict=False):
            x0, y0, x1, y1 = item["box"]
            column, line = min(2, int(3 * (x0 + x1) / 2 / SIZE)), min(2, int(3 * (y0 + y1) / 2 / SIZE))
            assert item["place"] == PLACES[line][column]
            assert sentence.endswith(f"{item['place']}.")
            seen.add(item["place"])
    assert seen == {place for line in PLACES for place in line}
    assert place_of((0, 0, 10, 10), 90) == "in the top left"
    assert place_of((40, 80, 50, 90), 90) == "at the bottom"


def test_colours_are_measured_from_the_visible_pixels():
    world = SceneWorld(blocks(), image_size=SIZE, length=60, objects=(2, 4))
    for i in range(len(world)):
        row = world[i]
        for place, item in enumerate(row["objects"]):
            assert item["colour"] == list(COLOURS)[item["drawing_index"] - 100]
            called = item["class_name"] if place % 2 else item["name"]
            assert any(f"{item['colour']} {called} is {item['place']}." in s for s in row["sentences"])


def test_relations_are_true():
    def at(name, box):
        return {"name": name, "class_name": name, "colour": "red", "place": "x", "box": box, "group": name, "count": 1}

    left, right, low = at("cat", (0, 0, 10, 10)), at("bird", (60, 5, 70, 15)), at("map", (2, 70, 12, 80))
    assert "The cat is to the left of the bird." in scene_sentences([left, right], "white", 90)
    assert "The bird is to the right of the cat." in scene_sentences([right, left], "white", 90)
    assert "The map is below the cat." in scene_sentences([low, left], "white", 90)
    assert "The background is white." in scene_sentences([left, right], "white", 90)
    near = scene_sentences([left, at("tool", (4, 4, 14, 14))], "white", 90)
    assert not any("left of" in s or "above" in s or "below" in s for s in near)


def test_captions(rows):
    titles = {d.alt_text for d in load_drawings("train")}
    kinds = []
    for row in rows:
        assert row["long_caption"] == " ".join(row["sentences"])
        assert len(set(row["pseudo_captions"])) == len(row["pseudo_captions"]) >= 4
        assert set(row["pseudo_captions"]) == set(row["sentences"])
        names = {item["name"] for item in row["objects"]}
        if set(row["caption"].split(" and ")) <= names:
            kinds.append("names")
        else:
            kinds.append("useless" if row["caption"] in scenes.USELESS_TITLES else "alt_text")
            assert row["caption"] in titles | set(scenes.USELESS_TITLES)
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("useless", "alt_text", "names")}
    assert abs(shares["useless"] - scenes.USELESS_RATE) < 0.15, shares
    assert shares["alt_text"] > 0.1
    assert shares["names"] > 0.2


def test_no_test_drawing_in_a_train_scene_and_the_reverse(rows):
    test = {d.index for d in load_drawings("test")}
    assert not test & {item["drawing_index"] for row in rows for item in row["objects"]}
    held = SceneWorld("test", image_size=48, length=10, train=False)
    assert {item["drawing_index"] for i in range(10) for item in held[i]["objects"]} <= test


def test_rows_depend_on_seed_epoch_and_index_only(world):
    again = SceneWorld("train", image_size=SIZE, length=150)
    want = [digest(world[i]) for i in range(30, 40)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(again, range(30, 40)), num_workers=2, collate_fn=first
    )
    assert [digest(row) for row in loader] == want
    again.set_epoch(1)
    assert all(digest(again[i])[0] != kept[0] for i, kept in zip(range(30, 40), want, strict=True))
    assert again[0]["image_id"] == 150
    fixed = SceneWorld("test", image_size=SIZE, length=10, train=False)
    before = digest(fixed[3])
    fixed.set_epoch(1)
    assert digest(fixed[3]) == before
    assert fixed[3]["image_id"] == 3


def test_too_many_objects_are_refused():
    with pytest.raises(ValueError, match=r"<= 4, the number of classes with drawings, got \(2, 5\)"):
        SceneWorld(blocks())
    crowded = SceneWorld(blocks(), objects=(4, 4), image_size=1)
    with pytest.raises(ValueError, match="found no place for 4 to 4 objects on 1 pixels"):
        _ = [crowded[i] for i in range(20)]
