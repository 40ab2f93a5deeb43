"""Images that already have the model's size, normalised at once: what the image processor gives, bit for bit, sooner.

transformers' Pillow processors convert, resize, crop, rescale and normalise one image after the other. Augmented crops
come at the model's size, so that only a table of 256 levels per channel is left to apply.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend


def prepare_images(image_processor: Any, images: Any, options: Mapping[str, Any]) -> BatchFeature:
    """`image_processor(images, **options)`, by the short way where there is one and no option says otherwise."""
    overridden = {key for key, value in options.items() if value is not None} - {"return_tensors"}
    ready = None if overridden else ready_pixel_values(image_processor, images)
    if ready is None:
        return image_processor(images, **options)
    return BatchFeature({"pixel_values": ready}, tensor_type=options.get("return_tensors"))


def ready_pixel_values(image_processor: Any, images: Any) -> np.ndarray | None:
    """`image_processor(images)["pixel_values"]` for RGB pictures of the model's size, or None where that is not so.

    Args:
        image_processor: any of transformers'; only the Pillow ones that rescale and normalise are known here.
        images: what a processor takes.

    Returns:
        float32 `[N, 3, H, W]`.
    """
    if not isinstance(image_processor, PilBackend) or not isinstance(images, Sequence) or not images:
        return None
    side = _side(image_processor)
    if side is None or any(
        type(image) is not Image.Image or image.mode != "RGB" or image.size != side for image in images
    ):
        return None
    levels = (np.arange(256, dtype=np.float64) * image_processor.rescale_factor).astype(np.float32)
    mean, std = (
        np.asarray(part, np.float32)[:, None] for part in (image_processor.image_mean, image_processor.image_std)
    )
    table = (levels - mean) / std  # [3, 256]
    pixels = np.stack([np.asarray(image) for image in images])
    return np.stack([table[channel][pixels[..., channel]] for channel in range(3)], axis=1)


def _side(processor: Any) -> tuple[int, int] | None:
    """(width, height) that resizing and cropping leave alone, None if anything else is done to an image."""
    plain = processor.do_rescale and processor.do_normalize and not getattr(processor, "do_pad", False)
    if not plain or len(np.ravel(processor.image_mean)) != 3 or len(np.ravel(processor.image_std)) != 3:
        return None
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if set(size) == {"height", "width"}:
        side = (size["width"], size["height"])
    elif set(size) == {"shortest_edge"} and crop and crop["height"] == crop["width"] == size["shortest_edge"]:
        side = (crop["width"], crop["height"])
    else:
        return None
    return side if crop is None or (crop["width"], crop["height"]) == side else None
