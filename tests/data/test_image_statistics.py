"""Colour and texture as labels, and the way from a processor's pixels back to plain ones."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from hf_clipplus.data.image_statistics import TEXTURE_CODES, colour_histogram, texture_histogram
from hf_clipplus.data.pixel_scale import PixelScale


def test_colours_are_counted():
    pixels = torch.zeros(2, 3, 4, 8)
    pixels[0, 0] = 1.0  # red
    pixels[0, :, :, 6:] = torch.tensor([0.3, 0.6, 0.9])[:, None, None]
    found = colour_histogram(pixels)
    assert found.shape == (2, 64)
    assert found[0].nonzero().flatten().tolist() == [(1 * 4 + 2) * 4 + 3, 3 * 16]
    assert found[0, [27, 48]].tolist() == [0.25, 0.75]
    assert found[1, 0] == 1.0
    assert colour_histogram(pixels, levels=2).shape == (2, 8)


def test_textures_differ_where_colours_do_not():
    draw = torch.Generator().manual_seed(0)
    stripes = (torch.arange(32) % 8 < 4).float().expand(3, 32, 32)
    mixed = stripes.flatten(1)[:, torch.randperm(1024, generator=draw)].view(3, 32, 32)
    flat = torch.full((3, 32, 32), 0.5)
    turned = stripes.transpose(1, 2)
    pixels = torch.stack([stripes, mixed, flat, turned])
    colours, textures = colour_histogram(pixels), texture_histogram(pixels)
    assert torch.equal(colours[0], colours[1])
    assert textures.shape == (4, 2, TEXTURE_CODES)
    torch.testing.assert_close(textures.sum(-1), torch.ones(4, 2))
    assert (textures[0] - textures[1]).abs().sum() > 0.5
    assert textures[2, 0].max() == 1.0
    assert (textures[0] - textures[3]).abs().sum() < 0.1  # invariant to rotation
    grey = texture_histogram(pixels * 0.5 + 0.2)
    torch.testing.assert_close(grey, textures, atol=1e-6, rtol=0)  # and to brightness and contrast


def test_texture_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ImportError, match=r"hf-clipplus\[texture\]"):
        texture_histogram(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("kind", [CLIPImageProcessorPil, SiglipImageProcessorPil])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_pixels_come_back(kind, do_normalize):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    processor = kind(do_resize=False, do_center_crop=False, do_normalize=do_normalize)
    pixel_values = torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"]))
    scale = PixelScale.of(processor)
    pixels = scale.to_unit(pixel_values)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(pixels, expected.float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(scale.from_unit(pixels), pixel_values, atol=1e-5, rtol=0)


def test_processors_that_say_nothing():
    with pytest.raises(ValueError, match="object does not say"):
        PixelScale.of(object())
    with pytest.raises(ValueError, match="1/255"):
        PixelScale.of(CLIPImageProcessorPil(do_rescale=False))
