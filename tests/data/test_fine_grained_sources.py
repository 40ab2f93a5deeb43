"""Winoground's and SugarCrepe's form: every layout is read, and what is missing is named."""

import json

import datasets
import pytest
from PIL import Image

from hf_clipplus.data.images import load_image
from hf_clipplus.data.sugarcrepe_source import read_sugarcrepe
from hf_clipplus.data.winoground_source import read_winoground

COLOURS = ("red", "blue", "green", "white")
ROWS = [
    {
        "id": k,
        "image_0": f"ex_{k}_img_0",
        "image_1": f"ex_{k}_img_1",
        "caption_0": f"{COLOURS[2 * k]} it is",
        "caption_1": f"it is {COLOURS[2 * k + 1]}",
        "tag": f"Adjective-{k}",
        "collapsed_tag": "Object",
    }
    for k in range(2)
]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k, colour in enumerate(COLOURS):
        Image.new("RGB", (4, 4), colour).save(folder / f"ex_{k // 2}_img_{k % 2}.png")
    return folder


def write_lines(folder, rows):
    (folder / "examples.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return folder


def check(pairs, pattern="Object"):
    assert [pair.texts for pair in pairs] == [(row["caption_0"], row["caption_1"]) for row in ROWS]
    assert [pair.pattern for pair in pairs] == [pattern] * 2 if pattern else True
    assert all(pair.first_is_true == (True, False) for pair in pairs)
    found = [load_image(image).getpixel((0, 0)) for pair in pairs for image in pair.images]
    assert found == [(255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)]


def test_winoground_as_published(tmp_path, images):
    check(read_winoground(write_lines(tmp_path, ROWS)))
    tagged = read_winoground(tmp_path, tag="tag")
    assert [pair.pattern for pair in tagged] == ["Adjective-0", "Adjective-1"]
    assert read_winoground(write_lines(tmp_path, [ROWS[0] | {"collapsed_tag": ""}]))[0].pattern == "all"


@pytest.mark.parametrize("embedded", [True, False])
def test_winoground_in_parquet(tmp_path, images, embedded):
    rows = [dict(row) for row in ROWS]
    for row in rows:
        for name in ("image_0", "image_1"):
            file = images / f"{row[name]}.png"
            row[name] = {"bytes": file.read_bytes(), "path": None} if embedded else f"images/{row[name]}.png"
    made = datasets.Dataset.from_list(rows)
    if embedded:
        made = made.cast_column("image_0", datasets.Image()).cast_column("image_1", datasets.Image())
    made.to_parquet(tmp_path / "test.parquet")
    check(read_winoground(tmp_path / "test.parquet"))
    check(read_winoground(tmp_path))


def test_what_winoground_lacks_is_named(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="no data set of Winoground's form"):
        read_winoground(images)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a parquet file"):
        read_winoground(tmp_path / "nothing" / "here")
    with pytest.raises(ValueError, match="has no column 'caption_1'; it has"):
        read_winoground(write_lines(tmp_path, [{k: v for k, v in ROWS[0].items() if k != "caption_1"}]))
    with pytest.raises(ValueError, match="has no column 'size'"):
        read_winoground(write_lines(tmp_path, ROWS), tag="size")
    with pytest.raises(ValueError, match=r"row 1 of .* has no caption_0"):
        read_winoground(write_lines(tmp_path, [ROWS[0], ROWS[1] | {"caption_0": ""}]))
    with pytest.raises(ValueError, match="holds no pairs"):
        read_winoground(write_lines(tmp_path, []))
    (images / "ex_1_img_0.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 images are missing: ex_1_img_0"):
        read_winoground(write_lines(tmp_path, ROWS))
    (tmp_path / "examples.jsonl").write_text('{"image_0": "a"\n')
    with pytest.raises(ValueError, match=r"line 1 of .* is no JSON"):
        read_winoground(tmp_path)


def test_sugarcrepe(tmp_path, images):
    entry = {"filename": "ex_0_img_0.png", "caption": "it is red", "negative_caption": "it is blue"}
    (tmp_path / "swap_att.json").write_text(json.dumps({"0": entry, "2": entry | {"caption": "red"}}))
    (tmp_path / "add_obj.json").write_text(json.dumps([entry | {"filename": "ex_0_img_1.png"}]))
    choices = read_sugarcrepe(tmp_path, images)
    assert [choice.category for choice in choices] == ["add_obj", "swap_att", "swap_att"]
    assert [choice.caption for choice in choices] == ["it is red", "it is red", "red"]
    assert choices[1].negative == "it is blue"
    assert load_image(choices[0].image).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(FileNotFoundError, match=r"expected <category>\.json"):
        read_sugarcrepe(images, images)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        read_sugarcrepe(tmp_path, tmp_path / "none")
    (tmp_path / "add_obj.json").write_text(json.dumps([entry | {"filename": "gone.png"}]))
    with pytest.raises(FileNotFoundError, match=r"1 images are missing: .*gone\.png"):
        read_sugarcrepe(tmp_path, images)
    (tmp_path / "add_obj.json").write_text(json.dumps({"7": {"filename": "a.png", "caption": "b"}}))
    with pytest.raises(ValueError, match=r"entry 7 of .*add_obj\.json: expected texts filename"):
        read_sugarcrepe(tmp_path, images)
    for text in ("[", "{}", '"text"'):
        (tmp_path / "add_obj.json").write_text(text)
        with pytest.raises(ValueError, match=r"add_obj\.json"):
            read_sugarcrepe(tmp_path, images)
