"""timm's training augmentation `rand-m9-mstd0.5-inc1` and random erasing, with Pillow and a numpy generator."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

IMAGENET_LEVELS = (124, 116, 104)  # ImageNet's mean colour, which fills what a shift uncovers
HIGHEST = 10.0  # of the magnitude's scale
BILINEAR = Image.Resampling.BILINEAR

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (1909.13719): some operations out of 15, drawn with replacement, stronger with the magnitude.

    Args:
        magnitude: on a scale of 0 to 10.
        magnitude_std: standard deviation of the magnitude, drawn anew for each operation.
        operations: how many are drawn.
        p: probability with which a drawn operation is applied.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    operations: int = 2
    p: float = 0.5

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        for place in generator.integers(len(OPERATIONS), size=self.operations):
            if generator.random() < self.p:
                strength = generator.normal(self.magnitude, self.magnitude_std)
                image = OPERATIONS[place](image, float(np.clip(strength, 0, HIGHEST)) / HIGHEST, generator)
        return image


@dataclass(frozen=True)
class RandomErasing:
    """Random erasing (1708.04896): noise in a rectangle, every pixel drawn from ImageNet's mean and deviation.

    Args:
        p: probability.
        area: least and greatest share of the picture.
        aspect: least height/width of the rectangle; the greatest is its inverse.
    """

    p: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        if generator.random() >= self.p:
            return image
        for _ in range(10):
            area = image.width * image.height * generator.uniform(*self.area)
            aspect = np.exp(generator.uniform(np.log(self.aspect), -np.log(self.aspect)))
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < height < image.height and 0 < width < image.width:
                top, left = generator.integers(image.height - height + 1), generator.integers(image.width - width + 1)
                noise = generator.normal(IMAGENET_LEVELS, (58.4, 57.1, 57.4), (height, width, 3))
                erased = image.copy()
                erased.paste(Image.fromarray(noise.round().clip(0, 255).astype(np.uint8)), (int(left), int(top)))
                return erased
        return image


def _signed(value: float, generator: np.random.Generator) -> float:
    return -value if generator.random() < 0.5 else value


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR, fillcolor=IMAGENET_LEVELS)


def _rotate(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return image.rotate(_signed(30 * strength, generator), BILINEAR, fillcolor=IMAGENET_LEVELS)


def _shear_x(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return _affine(image, (1, _signed(0.3 * strength, generator), 0, 0, 1, 0))


def _shear_y(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, _signed(0.3 * strength, generator), 1, 0))


def _shift_x(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, _signed(0.45 * strength, generator) * image.width, 0, 1, 0))


def _shift_y(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _signed(0.45 * strength, generator) * image.height))


def _solarize_add(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    added = min(128, int(110 * strength))
    return image.point([min(255, level + added) if level < 128 else level for level in range(256)] * 3)


def _enhance(kind: type) -> Operation:
    def operation(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
        return kind(image).enhance(max(0.1, 1 + _signed(0.9 * strength, generator)))

    return operation


OPERATIONS: tuple[Operation, ...] = (
    lambda image, strength, generator: ImageOps.autocontrast(image),
    lambda image, strength, generator: ImageOps.equalize(image),
    lambda image, strength, generator: ImageOps.invert(image),
    _rotate,
    lambda image, strength, generator: ImageOps.posterize(image, max(1, 4 - int(4 * strength))),
    lambda image, strength, generator: ImageOps.solarize(image, 256 - min(256, int(256 * strength))),
    _solarize_add,
    *(_enhance(kind) for kind in (ImageEnhance.Color, ImageEnhance.Contrast)),
    *(_enhance(kind) for kind in (ImageEnhance.Brightness, ImageEnhance.Sharpness)),
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
)
