"""Models from nothing: the first layer fitted to the images."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipplus.training.scratch import build_fff, train_tokenizer, whiten_patches


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a tiger", "two green boats"] * 3, vocab_size=520, context=8)


def pictures(count):
    """Smooth, coloured, far from white noise: their patches vary mostly in mean colour."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        yield coarse.resize((48, 48), Image.Resampling.BICUBIC)


def first_tokens(model, processor, images):
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.vision_model.embeddings(pixels)[:, 1:].flatten(0, 1)


def test_whitened_tokens_have_mean_zero_and_even_variances(tokenizer):
    torch.manual_seed(0)
    model, processor = build_fff("tiny", tokenizer)
    images = list(pictures(300))
    model.vision_model.embeddings.position_embedding.weight.data.zero_()
    before = first_tokens(model, processor, images)
    whiten_patches(model, processor, images, ridge=0.0)
    after = first_tokens(model, processor, images)
    leading = [torch.linalg.eigvalsh(tokens.T.cov()).flip(0)[:20] for tokens in (before, after)]
    assert leading[0][19] < 0.05 * leading[0][0], "random filters mostly show the mean colour"
    torch.testing.assert_close(leading[1], torch.ones(20), rtol=0.01, atol=0)
    assert after.mean(0).abs().max() < 1e-3


def test_only_so_many_images_are_looked_at(tokenizer):
    model, processor = build_fff("tiny", tokenizer)
    images = pictures(10)
    whiten_patches(model, processor, images, limit=7)
    assert len(list(images)) <= 3


def test_whitening_needs_images(tokenizer):
    model, processor = build_fff("tiny", tokenizer)
    with pytest.raises(ValueError, match="at least one image"):
        whiten_patches(model, processor, [])
