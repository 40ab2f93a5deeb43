"""A text's similarity to each patch, drawn over the picture."""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from hf_clipplus.data.images import load_image
from hf_clipplus.models.configuration_finer_vision import FinerVision, picture_side
from hf_clipplus.models.groupvit.processing_groupvit import GroupViTPlusProcessor

from .encode import encode_texts
from .patch_segmenter import patch_scores

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


def text_heat_map(model: nn.Module, processor: Any, image, text: str) -> Tensor:
    """Where a text is in a picture: its cosine with every pixel, `[h, w]` of the picture, see `patch_scores`.

    The picture's shorter side is as long as the side that the model was made for, with finer vision of its largest
    scale. Crops go where the text is, not the class token.

    Args:
        model, processor: with `get_patch_features` (DreamLIP).
        image: what `load_image` reads, of any size.
        text: of any length.
    """
    side = picture_side(model.config)
    pictures = GroupViTPlusProcessor(processor.image_processor, processor.tokenizer)
    inputs = pictures.segmentation_inputs([load_image(image)], short_side=side)
    embeds = encode_texts(model, processor, [text])
    settings = FinerVision.of(model.config)
    guide = embeds if settings is not None and settings.crops else None
    return patch_scores(model, inputs["pixel_values"][0], embeds, inputs["target_sizes"][0], guide_embeds=guide)[0]
