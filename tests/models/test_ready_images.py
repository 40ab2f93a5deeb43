"""The quick way for images of the model's size gives the image processor's numbers, bit for bit, or stands back."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from hf_clipplus import FFFProcessor
from hf_clipplus.models.ready_images import ready_pixel_values


def noise(width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


SQUARE = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(**SQUARE),
        CLIPImageProcessorPil(**SQUARE, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], rescale_factor=1 / 100),
        SiglipImageProcessorPil(size={"height": 24, "width": 24}),
    ],
)
def test_equal_to_the_image_processor(processor):
    images = [noise(24, 24), noise(24, 24).rotate(90)]
    expected = processor(images, return_tensors="np")["pixel_values"]
    got = ready_pixel_values(processor, images)
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({}, [noise(24, 24), noise(24, 25)]),
        ({}, [noise(24, 24, "L")]),
        ({}, [np.zeros((24, 24, 3), np.uint8)]),
        ({}, noise(24, 24)),
        ({"do_normalize": False}, [noise(24, 24)]),
        ({"do_rescale": False}, [noise(24, 24)]),
        ({"crop_size": {"height": 20, "width": 20}}, [noise(24, 24)]),
        ({"size": {"shortest_edge": 30}}, [noise(24, 24)]),
    ],
)
def test_stands_back_from_anything_else(options, images):
    assert ready_pixel_values(CLIPImageProcessorPil(**(SQUARE | options)), images) is None


def test_the_processor_takes_the_quick_way_and_obeys_overrides(tokenizer, monkeypatch):
    processor = FFFProcessor(CLIPImageProcessorPil(**SQUARE), tokenizer)
    images = [noise(24, 24)]
    stock = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    plain = processor.image_processor(images, return_tensors="pt", do_normalize=False)["pixel_values"]
    assert torch.equal(processor(images=images, return_tensors="pt", do_normalize=False)["pixel_values"], plain)
    monkeypatch.setattr(CLIPImageProcessorPil, "__call__", lambda *_, **__: pytest.fail("the slow way"))
    assert torch.equal(processor(images=images, return_tensors="pt")["pixel_values"], stock)
