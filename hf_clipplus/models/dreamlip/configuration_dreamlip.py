"""Configuration of DreamLIP."""

from math import log

from huggingface_hub.dataclasses import strict

from hf_clipplus.models.configuration_mined_positives import MinedPositivesConfig
from hf_clipplus.ops.patch_groups import GROUPING_NEGATIVES, WEIGHT_NORMALIZATIONS


@strict
class DreamLIPConfig(MinedPositivesConfig):
    """DreamLIP (2403.17007): CLIP towers, K captions per image, each tied to the patches that it describes.

    Args:
        contrastive_loss: of images and captions: "slot_softmax" (DreamLIP's), or "sigmoid" (FFF's), in which a caption
            may have several images: those of an equal caption, and mined ones.
        mining_features and what follows it: of the sigmoid loss, see `MinedPositivesConfig`.
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
    keys_to_ignore_at_inference = ["positives", "statistics"]
    contrastive_losses = ("slot_softmax", "sigmoid")

    contrastive_loss: str = "slot_softmax"
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

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.require_one_of("grouping_negatives", GROUPING_NEGATIVES)
        self.require_one_of("grouping_normalization", WEIGHT_NORMALIZATIONS)
        if self.contrastive_loss != "sigmoid" and self.mining_features is not None:
            raise ValueError(
                f"DreamLIPConfig.mining_features={self.mining_features!r} needs contrastive_loss='sigmoid': in "
                "DreamLIP's own loss a caption belongs to one image."
            )
        self.require_clip_towers()

    @property
    def has_logit_bias(self) -> bool:
        """Whether the loss has a bias."""
        return self.contrastive_loss == "sigmoid"


__all__ = ["DreamLIPConfig"]
