"""Configuration of two towers in one space, which the contrastive variants extend."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_finer_vision import FinerVision
from .configuration_zoo import ZooConfig

TEXT_TOWERS = ("clip_text_model", "siglip_text_model")
VISION_TOWERS = ("clip_vision_model", "siglip_vision_model")


@strict
class DualEncoderConfig(ZooConfig):
    """Two tower configurations and what joins them.

    Args:
        text_config, vision_config: configurations (or dicts with a `model_type`) of CLIP or SigLIP towers; CLIP's
            ViT-B/32 when left alone.
        projection_dim: width of the joint space for CLIP towers; SigLIP towers end in it by themselves.
        logit_scale_init_value: log of the inverse temperature at the start.
        logit_bias_init_value: bias of the sigmoid loss at the start, sign of SigLIP's Algorithm 1.
        initializer_factor: scale of the projections' random initialisation.
        finer_vision: scales and crops at which pictures are looked at, fields of `FinerVision`; None: every picture
            once and whole. The processor must give pictures of that size, see `finer_vision.fit_pictures`.
    """

    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="clip_text_model"),
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
    }

    has_logit_bias = True  # whether the variant's loss has a bias

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    logit_bias_init_value: float | int = -10.0
    initializer_factor: float = 1.0
    finer_vision: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.finer_vision is not None:
            settings = FinerVision.read(self.finer_vision)
            settings.check_tower(self.vision_config)
            self.finer_vision = settings.to_dict()
        for name, config, known in (
            ("text_config", self.text_config, TEXT_TOWERS),
            ("vision_config", self.vision_config, VISION_TOWERS),
        ):
            if config.model_type not in known:
                raise ValueError(
                    f"{type(self).__name__}.{name}: tower type {config.model_type!r} is not supported; "
                    f"use one of {sorted(known)}."
                )

    @property
    def has_siglip_towers(self) -> bool:
        """Whether the towers are SigLIP's, which end in the joint space themselves."""
        return self.text_config.model_type.startswith("siglip")

    @property
    def joint_dim(self) -> int:
        """Width of the joint space."""
        return self.vision_config.hidden_size if self.has_siglip_towers else self.projection_dim

    def require_clip_towers(self) -> None:
        """For variants that need a class token among patch tokens, and texts pooled at their end token.

        Raises:
            ValueError: the towers are SigLIP's.
        """
        if "siglip" in self.text_config.model_type + self.vision_config.model_type:
            raise ValueError(f"{type(self).__name__} needs CLIP towers, got SigLIP's.")
