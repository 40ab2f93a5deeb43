"""Retrieval with ragged captions against sorting by hand, chance levels, and what it refuses."""

from math import comb

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator, retrieval_recall

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")  # of the `pictures` fixture


@pytest.fixture
def rows(pictures):
    """Eight rows with 1, 2 or 3 captions."""
    prompts = ("a {}", "a photo of a {}", "{} on paper")
    return [
        {"image": picture, "captions": [prompt.format(colour) for prompt in prompts[: 1 + i % 3]]}
        for i, (picture, colour) in enumerate(zip(pictures, COLOURS, strict=True))
    ]


def test_ragged_captions_equal_sorting_by_hand(clip, rows):
    result = RetrievalEvaluator(rows, ks=(1, 3))(*clip)
    captions = [caption for row in rows for caption in row["captions"]]
    owner = np.repeat(np.arange(8), [len(row["captions"]) for row in rows])
    images, texts = encode_images(*clip, [row["image"] for row in rows]), encode_texts(*clip, captions)
    scores = (images.double() @ texts.double().T).numpy()  # [8, 15]
    for k in (1, 3):
        top = np.argsort(-scores, axis=1)[:, :k]
        assert result[f"image_to_text_R@{k}"] == pytest.approx((owner[top] == np.arange(8)[:, None]).any(1).mean())
        top = np.argsort(-scores.T, axis=1)[:, :k]
        assert result[f"text_to_image_R@{k}"] == pytest.approx((top == owner[:, None]).any(1).mean())
    assert (result["images"], result["captions"], result["blank_captions"]) == (8, 15, 0)


def test_image_to_text_needs_any_own_caption_and_text_to_image_each():
    # Image 0 owns texts 0 (right) and 1 (far off); image 1 owns text 2.
    images = torch.eye(2, 3)
    texts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.9, 0.4], [0.0, 1.0, 0.0]])
    result = retrieval_recall(images, texts, torch.tensor([0, 0, 1]), (1,))
    assert result["image_to_text_R@1"] == 1
    assert result["text_to_image_R@1"] == pytest.approx(2 / 3)


def test_chance_levels_are_exact_and_a_constant_model_reaches_just_them():
    counts = [1, 5, 2, 3]
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    constant = torch.ones(1, 3) / 3**0.5
    result = retrieval_recall(constant.expand(4, 3), constant.expand(11, 3), owner, (1, 3, 10))
    for k in (1, 3, 10):
        chance = np.mean([1 - comb(11 - count, k) / comb(11, k) for count in counts])
        assert result[f"chance_image_to_text_R@{k}"] == pytest.approx(chance)
        assert result[f"image_to_text_R@{k}"] == pytest.approx(chance)
        assert result[f"chance_text_to_image_R@{k}"] == pytest.approx(min(k, 4) / 4)
        assert result[f"text_to_image_R@{k}"] == pytest.approx(min(k, 4) / 4)


def test_shuffled_captions_change_nothing():
    rng = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(40, 8, generator=rng), dim=-1)
    owner = torch.arange(40).repeat_interleave(5)
    texts = normalize(images[owner] + torch.randn(200, 8, generator=rng), dim=-1)
    order = torch.randperm(200, generator=rng)
    plain = retrieval_recall(images, texts, owner)
    assert 0.1 < plain["text_to_image_R@1"] < 0.9
    assert retrieval_recall(images, texts[order], owner[order], tile=17) == plain


def test_captions_of_several_columns_without_blanks(pictures):
    rows = [
        {"image": pictures[0], "caption": "red", "pseudo": ["a red square", " "]},
        {"image": pictures[1], "caption": None, "pseudo": ["green"]},
    ]
    evaluator = RetrievalEvaluator(rows, ["caption", "pseudo"])
    assert evaluator.captions == ["red", "a red square", "green"]
    assert evaluator.owner.tolist() == [0, 0, 1]
    assert evaluator.blank_captions == 2
    assert RetrievalEvaluator(rows[:1], "caption").captions == ["red"]


def test_wrong_inputs_are_named(pictures):
    rows = [{"image": None, "captions": captions} for captions in (["a"], [], ["b"], [""], None)]
    with pytest.raises(ValueError, match=r"3 of 5 rows have no caption in \['captions'\]: rows 1, 3, 4"):
        RetrievalEvaluator(rows)
    with pytest.raises(ValueError, match="no rows"):
        RetrievalEvaluator([])
    with pytest.raises(KeyError, match="no column 'caption'"):
        RetrievalEvaluator(rows, "caption")
    with pytest.raises(KeyError, match="no column 'picture'"):
        RetrievalEvaluator(rows[:1], image_column="picture")
