"""Reads images of every usual form as RGB and augments them with Pillow alone, reproducibly from a numpy generator."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .compose import Compose
from .rand_augment import RandAugment, RandomErasing


class UnreadableImageError(ValueError):
    """An image is missing, truncated or in no known format; the message names it."""


def load_image(value: Any, *, name: str | None = None) -> Image.Image:
    """The image as RGB, upright (EXIF orientation applied), transparency laid on white, 16-bit grey scaled to 8 bits.

    Args:
        value: a PIL image, a path or an fsspec address (`zip://a.png::images.zip`), encoded bytes, or a
            `{"bytes", "path"}` dict as `datasets.Image(decode=False)` yields (bytes first, else the path).
        name: what to call the image in an error; its path when not given.

    Raises:
        UnreadableImageError: the image is missing, empty, truncated or in no format that Pillow reads.
        TypeError: `value` is none of the above.
    """
    path = None
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes") or value.get("path")
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
    name = name or path or "an image without a name"
    if value is None or value == b"":
        raise UnreadableImageError(f"There is no image: {name} has neither bytes nor a path.")
    if not isinstance(value, Image.Image | str | os.PathLike | bytes):
        raise TypeError(
            f"An image must be a PIL image, a path, bytes or a bytes/path dict, got {type(value)} ({name})."
        )
    try:
        if isinstance(value, Image.Image):
            return _to_rgb(value)
        with _open(value) as file:
            return _to_rgb(Image.open(file))
    except MemoryError:
        raise
    except Exception as error:  # a corrupt file makes Pillow's decoders raise nearly anything
        raise UnreadableImageError(f"Cannot read {name}: {type(error).__name__}: {error}") from error


def _open(value: str | os.PathLike | bytes):
    if isinstance(value, bytes):
        return io.BytesIO(value)
    return fsspec.open(value, "rb") if "://" in os.fspath(value) else open(value, "rb")


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # "I;16" is 16-bit grey; "I" (32-bit) may hold either depth
        levels = np.asarray(image)
        levels = levels >> 8 if image.mode != "I" or levels.max() > 255 else levels
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, stretched to a square.

    Args:
        area: least and greatest share of the image's area.
        aspect: least and greatest width/height of the part; drawn uniformly on the logarithmic scale.
        size: side of the result in pixels; None keeps the resolution (side = root of the part's area), which leaves
            the one real resize to the image processor.
        resample: how the part is stretched.
    """

    area: tuple[float, float] = (0.7, 1.0)
    aspect: tuple[float, float] = (0.8, 1.25)
    size: int | None = None
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        left, top, width, height = self._box(image.width, image.height, generator)
        side = self.size or max(1, round((width * height) ** 0.5))
        box = (left, top, left + width, top + height)
        return image.resize((side, side), self.resample, box=box)

    def _box(self, width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * generator.uniform(*self.area)
            aspect = np.exp(generator.uniform(*np.log(self.aspect)))
            w, h = max(1, round((area * aspect) ** 0.5)), max(1, round((area / aspect) ** 0.5))
            if w <= width and h <= height:
                left, top = generator.integers(width - w, endpoint=True), generator.integers(height - h, endpoint=True)
                return int(left), int(top), w, h
        # No part of that area and aspect fits (a very long image): the largest central part of an allowed aspect.
        aspect = min(max(width / height, self.aspect[0]), self.aspect[1])
        w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        return (width - w) // 2, (height - h) // 2, w, h


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left and right with probability `p` (captions that say "left" or quote writing then no longer hold)."""

    p: float = 0.5

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return ImageOps.mirror(image) if generator.random() < self.p else image


@dataclass(frozen=True)
class Rotation:
    """Turns by up to `degrees` either way with probability `p`; the corners get the image's mean colour."""

    degrees: float = 10.0
    p: float = 1.0

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        if generator.random() >= self.p:
            return image
        mean = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        angle = generator.uniform(-self.degrees, self.degrees)
        return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=mean)


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue in random order, with probability `p`.

    Args:
        brightness, contrast, saturation: factors are drawn from `[max(0, 1 - x), 1 + x]`.
        hue: shift in turns of the colour wheel, drawn from `[-hue, hue]`, at most 0.5.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 1.0

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        if generator.random() >= self.p:
            return image
        strengths = (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (generator.uniform(max(0.0, 1 - x), 1 + x) for x in strengths)
        hue = generator.uniform(-self.hue, self.hue)
        changes: list[Callable[[Image.Image], Image.Image]] = [
            lambda image: ImageEnhance.Brightness(image).enhance(brightness),
            lambda image: ImageEnhance.Contrast(image).enhance(contrast),
            lambda image: ImageEnhance.Color(image).enhance(saturation),
            lambda image: _shift_hue(image, hue),
        ]
        for position in generator.permutation(len(changes)):
            image = changes[position](image)
        return image


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    shift = round(turns * 256)
    if shift == 0:
        return image
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class Grayscale:
    """Takes the colour away with probability `p`."""

    p: float = 0.2

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return ImageOps.grayscale(image).convert("RGB") if generator.random() < self.p else image


@dataclass(frozen=True)
class GaussianBlur:
    """Blurs with a standard deviation drawn from `sigma` (pixels), with probability `p`."""

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        if generator.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(generator.uniform(*self.sigma)))


def image_augmentation(preset: str, *, size: int | None = None) -> Compose:
    """A ready chain `(image, generator) -> image` for RGB images.

    Args:
        preset: "none"; "fff" (crop of 70-100% of the area, aspect 0.8-1.25, and a flip: the published recipe of
            FFF's baseline ALIP); "strong" (the same, then colour jitter, grey, blur as in DreamLIP's stronger
            pipeline, and a small rotation; colour words of a caption may then be wrong); "groupvit" (crop of 8-100%,
            flip, RandAugment `rand-m9-mstd0.5-inc1`, random erasing: GroupViT's published recipe); "dreamlip" (crop
            of 90-100%, bicubic: open_clip's, and the default of DreamLIP's published code).
        size: side in pixels of the cropped image, None to keep its resolution (see `RandomResizedCrop`).

    Raises:
        ValueError: there is no such preset.
    """
    weak = (RandomResizedCrop(size=size), HorizontalFlip())
    strong = (Rotation(p=0.3), ColorJitter(p=0.8), Grayscale(p=0.2), GaussianBlur(p=0.5))
    crop = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3), size, Image.Resampling.BILINEAR)
    groupvit = (crop, HorizontalFlip(), RandAugment(), RandomErasing())
    dreamlip = (RandomResizedCrop((0.9, 1.0), (3 / 4, 4 / 3), size, Image.Resampling.BICUBIC),)
    presets = {"none": (), "fff": weak, "strong": weak + strong, "groupvit": groupvit, "dreamlip": dreamlip}
    if preset not in presets:
        raise ValueError(f"Unknown image augmentation {preset!r}; choose one of {sorted(presets)}.")
    return Compose(presets[preset])
