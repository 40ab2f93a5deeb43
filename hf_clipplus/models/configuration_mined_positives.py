"""Configuration of dual encoders whose positives come from owners, equal ids and mined similarities."""

from huggingface_hub.dataclasses import strict

from hf_clipplus.ops.contrastive import NORMALIZERS
from hf_clipplus.ops.positives import MINING_RULES, STT_MODES

from .configuration_dual_encoder import DualEncoderConfig

MINING_FEATURES = ("precomputed", "frozen_model", "online")


@strict
class MinedPositivesConfig(DualEncoderConfig):
    """What FFF adds to a dual encoder's configuration, for every variant that takes its positives and loss.

    Thresholds, rule and feature source of the paper are not confirmed; the defaults are a starting point for features
    of OpenAI/OpenCLIP ViT-B models only. `hf_clipplus.training.calibrate` proposes values for any feature model.

    Class attributes:
        contrastive_losses: what `contrastive_loss` may be.

    Args:
        contrastive_loss: "sigmoid" (FFF, SigLIP), or another of `contrastive_losses`.
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

    contrastive_losses = ("sigmoid", "softmax")

    contrastive_loss: str = "sigmoid"
    mining_features: str | None = None
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
            ("contrastive_loss", self.contrastive_losses),
            ("mining_features", (None, *MINING_FEATURES)),
            ("mining_rule", MINING_RULES),
            ("stt_mode", STT_MODES),
            ("loss_normalizer", NORMALIZERS),
        ):
            self.require_one_of(field, allowed)

    def require_one_of(self, field: str, allowed: tuple) -> None:
        """Raises ValueError when the value of a field is unknown."""
        if getattr(self, field) not in allowed:
            raise ValueError(
                f"{type(self).__name__}.{field}={getattr(self, field)!r} is unknown: choose one of {allowed}."
            )
