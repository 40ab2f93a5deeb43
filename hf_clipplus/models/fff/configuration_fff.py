"""Configuration of FFF."""

from math import log

from huggingface_hub.dataclasses import strict

from hf_clipplus.models.configuration_dual_encoder import DualEncoderConfig
from hf_clipplus.ops.contrastive import NORMALIZERS
from hf_clipplus.ops.positives import MINING_RULES, STT_MODES

MINING_FEATURES = ("precomputed", "frozen_model", "online")


@strict
class FFFConfig(DualEncoderConfig):
    """FFF ("Fixing Flawed Foundations in contrastive pre-training", 2405.10286): CLIP towers, sigmoid loss, mining.

    Thresholds, rule and feature source of the paper are not confirmed; the defaults are a starting point for features
    of OpenAI/OpenCLIP ViT-B models only. `hf_clipplus.training.calibrate` proposes values for any feature model.

    Args:
        contrastive_loss: "sigmoid" (FFF, SigLIP) or "softmax" (CLIP, the baseline).
        captions_per_image: pseudo-captions of one image in a batch, at most.
        use_raw_caption: "append" puts the raw caption before the pseudo-captions, "replace" drops it when there are
            pseudo-captions.
        mining_features: what positives are mined from. "precomputed": columns of the data set that reach the model as
            `mining_image_features` and `mining_text_features` (nothing is mined from rows without them);
            "frozen_model": a frozen CLIP that the trainer runs; "online": the model's own detached embeddings, after
            `mining_warmup_steps`; None: no mining, equal ids alone make positives.
        mining_model_name: the feature model that the thresholds were calibrated on.
        mining_warmup_steps: optimizer steps before online mining begins.
        mining_rule: "gated" or "plain", see `ops.positives.mine_positives`.
        stt_mode: "group_mean" or "caption_mean", see `ops.positives.mining_similarities`.
        p1, p1_gate, p2, p3: thresholds on image-text, gating image-text, image-image and text-text cosines.
        loss_normalizer: "per_image", "per_pair" or "per_anchor", see `ops.contrastive.sigmoid_loss`.
        loss_tile_size: images per tile of the loss; None chooses.
    """

    model_type = "clipplus_fff"
    keys_to_ignore_at_inference = ["positives", "statistics"]

    logit_scale_init_value: float | int = log(10)
    contrastive_loss: str = "sigmoid"
    captions_per_image: int = 5
    use_raw_caption: str = "append"
    mining_features: str | None = "precomputed"
    mining_model_name: str | None = None
    mining_warmup_steps: int = 2000
    mining_rule: str = "gated"
    stt_mode: str = "group_mean"
    p1: float = 0.27
    p1_gate: float = 0.24
    p2: float = 0.92
    p3: float = 0.99
    loss_normalizer: str = "per_image"
    loss_tile_size: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for field, allowed in (
            ("contrastive_loss", ("sigmoid", "softmax")),
            ("use_raw_caption", ("append", "replace")),
            ("mining_features", (None, *MINING_FEATURES)),
            ("mining_rule", MINING_RULES),
            ("stt_mode", STT_MODES),
            ("loss_normalizer", NORMALIZERS),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"FFFConfig.{field}={getattr(self, field)!r} is unknown: choose one of {allowed}.")


__all__ = ["FFFConfig"]
