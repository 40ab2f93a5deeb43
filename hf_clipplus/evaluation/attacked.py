"""Images attacked against a zero-shot classifier, to tell its accuracy under attack beside the clean one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_clipplus.data.images import load_image
from hf_clipplus.data.pixel_scale import PixelScale
from hf_clipplus.data.seeding import item_generator
from hf_clipplus.ops.attack import attack_pixels

from .encode import encode_batches, image_forward, to_model


@dataclass(frozen=True)
class PixelAttack:
    """How images are attacked.

    Args:
        radius: greatest change of a pixel, in grey levels of 255.
        steps: gradients per image.
        seed: of the random starts; each depends on its row too, and on nothing else.

    Raises:
        ValueError: a radius that is not positive, or no steps.
    """

    radius: float = 2.0
    steps: int = 10
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.radius < 256 or self.steps < 1:
            raise ValueError(f"expected a positive radius (below 256) and at least one step, got {self}.")


def encode_attacked_images(
    model: nn.Module,
    processor: Any,
    images: Sequence,
    targets: Tensor,
    classifier: Tensor,
    attack: PixelAttack,
    **options: Any,
) -> Tensor:
    """Embeddings of images that were changed so that another class fits better than their own.

    The gradient is that of the margin, the greatest cosine with another class less the one with the right class, which
    does not vanish where a classifier is sure. An image keeps its clean form where the attack found none with a higher
    margin, so that the accuracy is never above the clean one. In evaluation mode; no parameter gets a gradient.

    Args:
        model, processor, images: see `encode_images`.
        targets: `[images]`, the class of each image.
        classifier: `[dim, classes]`, of `zero_shot_classifier`.
        attack: radius, steps and seed.
        options: `batch_size`, `autocast_dtype`, `progress` of `encode_images`.

    Returns:
        `[images, dim]` float32 on the CPU, L2-normalised.

    Raises:
        ValueError: fewer than two classes, or see `PixelScale.of`.
    """
    if classifier.shape[1] < 2:
        raise ValueError("an attack needs at least two classes, got 1.")
    scale, forward = PixelScale.of(processor), image_forward(model)

    def encode(rows: list[int]) -> Tensor:
        inputs = to_model(processor(images=[load_image(images[row]) for row in rows], return_tensors="pt"), model)
        pixel_values, labels = inputs["pixel_values"], targets[rows].to(classifier.device)

        def embeds_of(pixel_values: Tensor) -> Tensor:
            return forward(inputs | {"pixel_values": pixel_values}).float()

        def margins(embeds: Tensor) -> Tensor:
            cosines = normalize(embeds, dim=-1) @ classifier.to(embeds.device)  # [N, classes]
            right = torch.zeros_like(cosines, dtype=torch.bool)
            right[torch.arange(len(labels)), labels] = True
            return cosines.masked_fill(right, -torch.inf).amax(1) - cosines[right]

        def loss_of(pixels: Tensor) -> Tensor:
            return margins(embeds_of(scale.from_unit(pixels).to(pixel_values.dtype))).sum()

        pixels = scale.to_unit(pixel_values.float())
        noise = [item_generator(attack.seed, 0, row).random(pixels.shape[1:], np.float32) for row in rows]
        noise = 2 * torch.from_numpy(np.stack(noise)).to(pixels) - 1
        with torch.enable_grad():
            found = attack_pixels(loss_of, pixels, noise, radius=attack.radius / 255, steps=attack.steps)
        clean, attacked = embeds_of(pixel_values), embeds_of(scale.from_unit(found).to(pixel_values.dtype))
        return torch.where((margins(attacked) > margins(clean))[:, None], attacked, clean)

    return encode_batches(model, range(len(images)), encode, "attacked images", **options)
