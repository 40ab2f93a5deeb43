"""Configuration of APE and the other few-shot heads."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from hf_clipplus.models.configuration_zoo import ZooConfig

HEAD_NAMES = ("zero_shot", "tip", "tip_f", "ape", "gda", "proker")


@strict
class APEConfig(ZooConfig):
    """A CLIP-like backbone and a few-shot head on its image features (APE: 2304.01195).

    `APEForImageClassification.fit` sets everything but the backbone.

    Args:
        backbone_config: configuration (or a dict with `model_type`) of any model with `get_image_features` and
            `get_text_features`, of transformers or of the zoo; CLIP's ViT-B/32 when left alone.
        head: "zero_shot", "tip" (Tip-Adapter), "tip_f" (its keys were trained), "ape", "gda" or "proker".
        feature_dim: width of the joint space; None takes the backbone's.
        cache_size: images in the cache.
        num_channels: refined channels of APE.
        text_scale: what the cosines with the text classifier are multiplied by; 100 in OpenAI's CLIP.
        alpha: weight of the cache term.
        beta: sharpness of the affinities.
        gamma: exponent of a key's difficulty (APE); already part of the stored values.
        strength: lambda of ProKeR; already part of the stored coefficients.
        channel_weights: (w0, w1) of APE's criterion.
        fit_report: what `fit` did: protocol, validation accuracy, shots, prompts, warnings.
    """

    model_type = "clipplus_ape"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="clip")}

    backbone_config: dict | PreTrainedConfig | None = None
    head: str = "zero_shot"
    feature_dim: int | None = None
    cache_size: int = 0
    num_channels: int = 0
    text_scale: float | int = 100.0
    alpha: float | int = 1.0
    beta: float | int = 1.0
    gamma: float | int = 0.1
    strength: float | int = 1.0
    channel_weights: list[float] | tuple[float, ...] = (0.5, 0.5)
    fit_report: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.head not in HEAD_NAMES:
            raise ValueError(f"APEConfig.head={self.head!r} is unknown: choose one of {', '.join(HEAD_NAMES)}.")
        if self.feature_dim is None:
            self.feature_dim = _joint_width(self.backbone_config)


def _joint_width(backbone: PreTrainedConfig) -> int:
    """Width of the joint space: CLIP-like models name it, SigLIP's towers end in it."""
    if hasattr(backbone, "has_siglip_towers") and backbone.has_siglip_towers:
        return backbone.vision_config.hidden_size
    return getattr(backbone, "projection_dim", None) or backbone.vision_config.hidden_size


__all__ = ["APEConfig"]
