"""A text's similarity to each patch, drawn over the picture."""

import numpy as np
from PIL import Image

from hf_clipplus.data.images import load_image

COLD, HOT = (20, 30, 90), (255, 90, 20)


def heat_map_overlay(image, similarity, *, opacity: float = 0.6) -> Image.Image:
    """The picture under its heat map: cold colours at the least similar patch, hot ones at the most.

    Args:
        image: what `load_image` reads, of the aspect that the model saw.
        similarity: `[h, w]`, one text of `DreamLIPModel.patch_similarity`.
        opacity: of the heat map, in [0, 1].

    Raises:
        ValueError: `similarity` is no matrix, or not finite.
    """
    heat = np.asarray(similarity, dtype=np.float32)
    if heat.ndim != 2 or not np.isfinite(heat).all():
        raise ValueError(f"similarity: expected a finite matrix [h, w], got shape {list(heat.shape)}.")
    picture = load_image(image)
    low, high = heat.min(), heat.max()
    share = (heat - low) / max(high - low, 1e-12)
    share = np.asarray(Image.fromarray(share, mode="F").resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    colours = (1 - share) * np.float32(COLD) + share * np.float32(HOT)
    drawn = (1 - opacity) * np.asarray(picture, dtype=np.float32) + opacity * colours
    return Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))
