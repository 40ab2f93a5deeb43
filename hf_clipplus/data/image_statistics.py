"""Labels that every image brings along: its colours and its texture, as histograms."""

import numpy as np
import torch

COLOUR_LEVELS = 4  # of each channel: 64 colours
TEXTURE_RADII = (1, 2)
TEXTURE_NEIGHBOURS = 8
TEXTURE_CODES = TEXTURE_NEIGHBOURS + 2  # rotation-invariant uniform patterns, and one for all others
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's grey


def colour_histogram(pixels: torch.Tensor, levels: int = COLOUR_LEVELS) -> torch.Tensor:
    """Share of each colour among an image's pixels, `[N, levels^3]`, rows sum to 1.

    Args:
        pixels: `[N, 3, H, W]` in [0, 1].
        levels: equal parts of each channel; colour (r, g, b) has number (r levels + g) levels + b.
    """
    parts = (pixels.detach().float() * levels).long().clamp(0, levels - 1).flatten(2)
    codes = (parts[:, 0] * levels + parts[:, 1]) * levels + parts[:, 2]  # [N, H W]
    counts = torch.zeros(len(codes), levels**3, device=codes.device)
    return counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=counts.dtype)) / codes.shape[1]


def texture_histogram(pixels: torch.Tensor) -> torch.Tensor:
    """Shares of the local binary patterns of an image's grey levels (Ojala et al. 2002), `[N, radii, 10]`.

    By scikit-image on the CPU, one image after the other.

    Args:
        pixels: `[N, 3, H, W]` in [0, 1].

    Raises:
        ImportError: scikit-image is not installed.
    """
    local_binary_pattern = texture_function()
    weights = torch.tensor(LUMA, device=pixels.device)
    grey = torch.einsum("nchw,c->nhw", pixels.detach().float(), weights).mul(255).round().clamp(0, 255)
    found = np.empty((len(grey), len(TEXTURE_RADII), TEXTURE_CODES), np.float32)
    for row, image in enumerate(grey.to("cpu", torch.uint8).numpy()):
        for place, radius in enumerate(TEXTURE_RADII):
            codes = local_binary_pattern(image, TEXTURE_NEIGHBOURS, radius, method="uniform")
            codes = codes[radius:-radius, radius:-radius].astype(np.int64)  # at the border neighbours are missing
            found[row, place] = np.bincount(codes.ravel(), minlength=TEXTURE_CODES) / codes.size
    return torch.from_numpy(found).to(pixels.device)


def texture_function():
    """scikit-image's local binary patterns.

    Raises:
        ImportError: it is not installed; names the extra that brings it.
    """
    try:
        from skimage.feature import local_binary_pattern
    except ImportError as error:
        raise ImportError(
            "The label 'texture' needs scikit-image: pip install 'hf-clipplus[texture]' (or leave it out)."
        ) from error
    return local_binary_pattern
