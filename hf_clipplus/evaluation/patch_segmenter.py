"""Segmentation by a model's patch features: every patch is named by its own similarity to the class names.

It imports nothing of the evaluation, so that a model's bundle can take it along.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.models.groupvit.segmentation_groupvit import GroupViTPlusSegmentation, windows

SCALE = 40.0  # of the cosines, before the softmax over classes


class PatchSegmenter:
    """A model with patch features behind the two methods that segmentation asks for.

    Args:
        model: has `encode_text` and `get_patch_features(pixel_values)`.
    """

    def __init__(self, model: nn.Module):
        self.model, self.device = model, model.device

    def class_embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[N, D]`: the normalised mean of the normalised embeddings of a class's prompts, `[N, T, L]` ids."""
        with evaluation_mode(self.model):
            embeds = self.model.encode_text(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        return F.normalize(embeds.unflatten(0, input_ids.shape[:2]).mean(1), dim=-1)

    def segment(
        self,
        pixel_values: Sequence[Tensor],
        class_embeds: Tensor,
        *,
        background_threshold: float | None = None,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        output_scores: bool = False,
    ) -> list[GroupViTPlusSegmentation]:
        """Label every pixel of pictures of any sizes with one of N classes.

        Args:
            pixel_values: `[3, H, W]` each; a side shorter than a window is padded with 0, which is the mean colour.
            class_embeds: `[N, D]`, L2-normalised.
            background_threshold: probability below which a pixel is background, class 0 of the result.
            target_sizes: (height, width) of each result; the size of its `pixel_values` when None.
            output_scores: give the probabilities too; the background's is what the best class lacks to 1.
        """
        targets = target_sizes or [picture.shape[-2:] for picture in pixel_values]
        return [
            self._segment_one(picture, class_embeds, background_threshold, tuple(target), output_scores)
            for picture, target in zip(pixel_values, targets, strict=True)
        ]

    def _segment_one(self, picture, class_embeds, threshold, target, output_scores) -> GroupViTPlusSegmentation:
        scores = (SCALE * patch_scores(self.model, picture, class_embeds, target)).softmax(0)
        best, labels = scores.max(0)
        if threshold is not None:
            labels = torch.where(best < threshold, 0, labels + 1)
            scores = torch.cat([1 - best[None], scores])
        return GroupViTPlusSegmentation(labels, scores if output_scores else None)


def patch_scores(
    model: nn.Module,
    picture: Tensor,
    text_embeds: Tensor,
    size: tuple[int, int],
    *,
    guide_embeds: Tensor | None = None,
) -> Tensor:
    """Where texts are in a picture of any size: cosines `[N, h, w]` of texts and patches, one for every pixel.

    Between the centres of patches they are interpolated; where windows overlap they are averaged.

    Args:
        model: a dual encoder with `get_patch_features(pixel_values)`.
        picture: `[3, H, W]`; a side shorter than a window is padded with 0, which is the mean colour.
        text_embeds: `[N, D]`, L2-normalised.
        size: (height, width) of the result.
        guide_embeds: `[1, D]`, the text that chooses the crops of finer vision; the class token's choice when None.
    """
    side = picture_side(model.config)
    height, width = picture.shape[-2:]
    picture = F.pad(picture, (0, max(0, side - width), 0, max(0, side - height)))
    boxes = windows(*picture.shape[-2:], crop_size=side, stride=side // 2)
    crops = torch.stack([picture[:, y1:y2, x1:x2] for y1, y2, x1, x2 in boxes])
    with evaluation_mode(model):
        options = {} if guide_embeds is None else {"guide_embeds": guide_embeds.to(model.device)}
        patches = model.get_patch_features(crops.to(model.device, model.dtype), **options).float()
    grid = model.patch_grid(side, side)
    scores = (patches @ text_embeds.to(patches).T).transpose(1, 2).unflatten(2, grid)
    scores = F.interpolate(scores, size=(side, side), mode="bilinear", align_corners=False)
    total = scores.new_zeros(len(text_embeds), *picture.shape[-2:])
    count = total.new_zeros(total.shape[1:])
    for score, (y1, y2, x1, x2) in zip(scores, boxes, strict=True):
        total[:, y1:y2, x1:x2] += score
        count[y1:y2, x1:x2] += 1
    scores = (total / count)[:, :height, :width]
    if size == (height, width):
        return scores
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
