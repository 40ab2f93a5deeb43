"""Published caption files joined to pictures: by URL, by path, whatever the columns, and what is left out."""

import csv

import pytest
from PIL import Image

from hf_clipplus.data.images import load_image
from hf_clipplus.data.long_caption_files import (
    image_table,
    long_caption_report,
    read_captions_beside_images,
    read_long_captions,
)
from hf_clipplus.data.sub_captions import SubCaptions


def write_csv(path, columns, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    write_csv(folder / "table.csv", ["path", "url"], [["0.png", "http://x/a.jpg"], ["1.png", "http://x/b.jpg"]])
    return folder


def test_rows_are_joined_by_url(pictures, tmp_path):
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    write_csv(
        files[0],
        ["longSV_captions", "Image Path", "raw_caption"],  # another order, and columns missing
        [
            ['It runs.\nIt is "brown", says he', "http://x/b.jpg", "nan"],
            ["It sits", "http://x/gone.jpg", "a cat"],
            ["", "http://x/a.jpg", "  "],
        ],
    )
    write_csv(files[1], ["longSV_captions", "Image Path", "raw_caption"], [["", "http://x/a.jpg", "1.50"]])
    report = long_caption_report()
    images = image_table(pictures / "table.csv")
    rows = read_long_captions(files, images, report=report, cache_dir=str(tmp_path / "cache"))
    assert [row["caption"] for row in rows] == ["nan", "1.50"]
    assert load_image(rows[0]["image"]).getpixel((0, 0)) == (1, 0, 0)
    assert SubCaptions().pool(rows[0]) == ["It runs", 'It is "brown", says he']
    assert {kind: count for kind, count in report.counts().items() if count} == {
        "caption without image": 1,
        "image without captions": 1,
    }
    assert report.names("caption without image") == ["http://x/gone.jpg"]


def test_rows_are_joined_by_path(pictures, tmp_path):
    write_csv(tmp_path / "a.csv", ["Image Path", "shortLLA_captions"], [["1.png", "a dog"], ["http://x/b.jpg", "a"]])
    rows = read_long_captions(tmp_path / "a.csv", pictures, cache_dir=str(tmp_path / "cache"))
    assert [row["shortLLA_captions"] for row in rows] == ["a dog"]
    assert rows[0]["image"] == str(pictures / "1.png")


def test_other_files_are_refused(pictures, tmp_path):
    write_csv(tmp_path / "a.csv", ["Image Path", "text"], [["1.png", "a dog"]])
    with pytest.raises(ValueError, match="expected the column 'Image Path'"):
        read_long_captions(tmp_path / "a.csv", pictures, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="no column"):
        image_table(tmp_path / "a.csv")


def test_texts_beside_pictures(tmp_path):
    for folder in ("image", "caption"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "image" / "7.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "image" / "8.jpg")
    for stem, text in (("7", "A long text.\nnot read"), ("8", "\n"), ("9", "no picture")):
        (tmp_path / "caption" / f"{stem}.txt").write_text(text)
    report = long_caption_report()
    rows = read_captions_beside_images(tmp_path, report=report)
    assert rows == [{"image": str(tmp_path / "image" / "7.jpg"), "caption": "A long text."}]
    assert report.names("caption file without image") == ["9.txt"]
    assert report.names("empty caption file") == ["8.txt"]
