"""The gallery marks the right answers, tells the place of a missed one, and cuts nothing."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFont
from torch.nn.functional import normalize

from hf_clipplus.data.mmvp_source import ImagePair
from hf_clipplus.evaluation import gallery
from hf_clipplus.evaluation.gallery import pair_sheet, retrieval_gallery

GREEN = ImageColor.getrgb(gallery.RIGHT)
TEXTS = [f"a square of colour {i}" for i in range(16)]
OWNER = torch.arange(8).repeat_interleave(2)


def embeddings(noise):
    rng = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(8, 32, generator=rng), dim=-1)
    return images, normalize(images[OWNER] + noise * torch.randn(16, 32, generator=rng), dim=-1)


def green(page):
    return int((np.asarray(page) == GREEN).all(-1).sum())


def draw(pictures, images, texts, **queries):
    return retrieval_gallery(pictures, TEXTS, images, texts, OWNER, **queries)


def test_right_answers_are_green_and_wrong_ones_not(pictures):
    images, texts = embeddings(0.05)
    for queries in ({"text_queries": [0, 5]}, {"image_queries": [0, 3]}):
        page = draw(pictures, images, texts, **queries)
        assert page.width == 1200
        assert green(page) > 2000
        assert green(draw(pictures, images, -texts, **queries)) == 0  # the right ones are now last


def test_the_frame_is_around_the_right_image(pictures):
    images, texts = embeddings(0.05)
    page = np.asarray(draw(pictures, images, texts, text_queries=[6]))  # the best image is the first, number 3
    ys, xs = np.nonzero((page == GREEN).all(-1))
    first = gallery.MARGIN + gallery.QUERY_WIDTH + gallery.GAP
    assert xs.min() == first
    assert xs.max() < first + (1200 - 2 * gallery.MARGIN - gallery.QUERY_WIDTH) / 5
    inside = page[(ys.min() + ys.max()) // 2 - 10, (xs.min() + xs.max()) // 2]
    assert tuple(inside) == ImageColor.getrgb("yellow")  # pictures[3]


def test_the_place_of_a_missed_answer():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    own = torch.tensor([False] * 5 + [True, True])
    assert gallery._place(scores, own, 5) == "best right one: number 6 of 7"
    assert gallery._place(scores, own, 6) == ""


def test_nothing_touches_the_margin(pictures):
    images, texts = embeddings(1.0)
    long = ["word " * 60, "W" * 300, "short"] + TEXTS[3:]
    wide = [Image.new("RGB", (300, 20), "red"), Image.new("RGB", (20, 300), "blue"), *pictures[2:]]
    queries = {"text_queries": [0, 1, 2], "image_queries": [0, 1], "title": "A title " * 30}
    for top in (3, 8):
        page = np.asarray(retrieval_gallery(wide, long, images, texts, OWNER, top=top, **queries))
        inner = page[gallery.MARGIN : -gallery.MARGIN, gallery.MARGIN : -gallery.MARGIN]
        assert (page == 255).all(-1).sum() - (inner == 255).all(-1).sum() == page[..., 0].size - inner[..., 0].size


@pytest.mark.parametrize("text", ["word " * 40, "W" * 200, "a " + "i" * 300 + " b", "", "one"])
def test_wrapping_keeps_every_letter_and_the_width(text):
    font = ImageFont.load_default(size=20)
    lines = gallery._wrap(text, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_wrong_inputs_are_named(pictures):
    images, texts = embeddings(0.1)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(pictures, images, texts)
    with pytest.raises(ValueError, match=r"text queries \[16\] are out of range, there are 16"):
        draw(pictures, images, texts, text_queries=[16])
    with pytest.raises(ValueError, match="7 images with 8 embeddings"):
        draw(pictures[:7], images, texts, text_queries=[0])
    with pytest.raises(ValueError, match="3 to 8"):
        draw(pictures, images, texts, text_queries=[0], top=20)


def test_pairs_stand_above_the_text_that_is_true_of_them(pictures):
    pairs = [
        ImagePair("colour", tuple(pictures[k : k + 2]), ("one", "two"), (k % 2 == 0, k % 2 == 1)) for k in range(4)
    ]
    plain, marked = pair_sheet(pairs, title="pairs"), pair_sheet(pairs, correct=[True, False, False, False])
    assert plain.width == 1200
    assert green(plain) == 0
    assert green(marked) > 2000
    turned = [ImagePair("colour", pair.images, pair.texts[::-1], pair.first_is_true[::-1]) for pair in pairs]
    assert (np.asarray(pair_sheet(turned, title="pairs")) == np.asarray(plain)).all()
    other = [ImagePair("colour", pair.images, pair.texts[::-1], pair.first_is_true) for pair in pairs]
    assert (np.asarray(pair_sheet(other, title="pairs")) != np.asarray(plain)).any()
    with pytest.raises(ValueError, match="no pairs to draw"):
        pair_sheet([])
    with pytest.raises(ValueError, match="for each of 4 pairs, got 1"):
        pair_sheet(pairs, correct=[True])
