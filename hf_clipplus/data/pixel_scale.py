"""From what a processor makes of images back to plain pixels in [0, 1], and forth again."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class PixelScale:
    """Mean and standard deviation by which a processor normalises.

    Args:
        mean, std: of each channel, for pixels in [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> "PixelScale":
        """The scale of a processor with an image processor, or of an image processor.

        Raises:
            ValueError: there is none, or it leaves pixels at 0 to 255.
        """
        images = getattr(processor, "image_processor", processor)
        if not hasattr(images, "do_normalize"):
            raise ValueError(f"{type(processor).__name__} does not say how it normalises images (do_normalize).")
        factor = images.rescale_factor if images.do_rescale else 1.0
        if abs(factor * 255 - 1) > 1e-3:
            raise ValueError(f"expected pixels scaled by 1/255, {type(images).__name__} scales them by {factor}.")
        if not images.do_normalize:
            return cls((0.0,) * 3, (1.0,) * 3)
        return cls(tuple(images.image_mean), tuple(images.image_std))

    def to_unit(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] of normalised ones, `[N, 3, H, W]`; what rounding left outside is clipped."""
        mean, std = self._like(pixel_values)
        return (pixel_values * std + mean).clamp(0, 1)

    def from_unit(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the processor makes of pixels in [0, 1], `[N, 3, H, W]`."""
        mean, std = self._like(pixels)
        return (pixels - mean) / std

    def _like(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor(part).to(pixels)[:, None, None] for part in (self.mean, self.std)]
