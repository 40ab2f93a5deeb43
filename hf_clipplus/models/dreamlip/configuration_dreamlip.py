"""Configuration of DreamLIP."""

from math import log

from huggingface_hub.dataclasses import strict

from hf_clipplus.models.configuration_dual_encoder import DualEncoderConfig
from hf_clipplus.ops.patch_groups import GROUPING_NEGATIVES, WEIGHT_NORMALIZATIONS


@strict
class DreamLIPConfig(DualEncoderConfig):
    """DreamLIP (2403.17007): CLIP towers, K captions per image, each tied to the patches that it describes.

    Args:
        captions_per_image: K, the raw caption included.
        multi_caption_weight: weight of the loss between images and captions.
        use_grouping_loss: tie captions to patches; the model then has `patch_projection` and `logit_scale_local`,
            which inference by image and text embeddings does not use.
        grouping_loss_weight: weight of that loss.
        grouping_negatives: "batch", "within_image" or "cross_image", see `ops.patch_groups.grouping_loss`.
        max_grouping_negatives: images that a caption is held against with "cross_image"; None: all of the batch.
        grouping_normalization: "minmax" or "softmax", see `ops.patch_groups.patch_weights`.
        grouping_threshold: below which a patch has no share; negative means 1 / patches. The published code's default
            is 0 (nothing is cut off), the paper's value is not confirmed.
        use_circle_loss: add `ops.patch_groups.circle_loss`.
        loss_tile_size: rows per tile of the losses; None chooses.
    """

    model_type = "clipplus_dreamlip"
    keys_to_ignore_at_inference = ["statistics"]
    has_logit_bias = False

    logit_scale_init_value: float | int = log(1 / 0.07)
    captions_per_image: int = 7
    multi_caption_weight: float | int = 1.0
    use_grouping_loss: bool = True
    grouping_loss_weight: float | int = 1.0
    grouping_negatives: str = "batch"
    max_grouping_negatives: int | None = None
    grouping_normalization: str = "minmax"
    grouping_threshold: float | int = -1.0
    use_circle_loss: bool = False
    loss_tile_size: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for field, allowed in (
            ("grouping_negatives", GROUPING_NEGATIVES),
            ("grouping_normalization", WEIGHT_NORMALIZATIONS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"DreamLIPConfig.{field}={getattr(self, field)!r} is unknown: choose one of {allowed}."
                )
        self.require_clip_towers()


__all__ = ["DreamLIPConfig"]
