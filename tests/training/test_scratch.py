"""Models from nothing: the first layer fitted to the images."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipplus.training.scratch import build_fff, sine_positions, train_tokenizer, whiten_patches


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


def test_sine_positions_tell_row_and_column_at_the_size_of_the_patches(tokenizer):
    torch.manual_seed(0)
    model, _ = build_fff("tiny", tokenizer)
    weight = model.vision_model.embeddings.position_embedding.weight
    class_token = weight[0].clone()
    weight.data[1:].zero_()
    sine_positions(model, amplitude=0.5)
    positions = weight.detach()[1:]
    assert torch.equal(weight[0], class_token), "the class token has no place"
    torch.testing.assert_close(positions.std(), torch.tensor(0.5), rtol=1e-3, atol=0)
    side = 6
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    truth = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    known = torch.cat([positions, torch.ones(side * side, 1)], 1)
    found = known @ torch.linalg.lstsq(known, truth, driver="gelsd").solution
    assert torch.linalg.matrix_rank(known) <= 13 < len(known)
    assert (found - truth).abs().max() < 0.2
