"""What the configurations of the few-shot video models share: two CLIP towers, the alignment, a stored support set."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from hf_clipplus.ops.alignment import ALIGNMENTS

from .configuration_zoo import ZooConfig

VISION_TOWERS = ("clip_vision_model", "clipplus_clip_resnet")
INFERENCE_MODES = ("visual", "text", "combined")


@strict
class FewShotVideoConfig(ZooConfig):
    """Two CLIP towers, and how videos are compared.

    Args:
        text_config: of a CLIP text tower; ViT-B/16's when left alone.
        vision_config: of a CLIP ViT or of CLIP's ResNet (`model_type` "clipplus_clip_resnet").
        projection_dim: width of the joint space; a ResNet ends in it by itself.
        num_frames: frames of a video that the processor samples; the model takes any number.
        alignment: "otam", "bimhm" or "mean", see `ops.alignment`.
        otam_lambda, both_directions: of OTAM.
        cosine_eps: added to the product of norms in every cosine distance.
        merge: "before" averages the shots of a class before the temporal module, "after" behind it.
        prompt_template: text of a class, `{}` stands for its name.
        freeze_text: the text tower is not trained, and its features of a list of classes are computed once.
        freeze_vision: the vision tower is not trained.
        support_shape: of the support set that the model carries, `[rows, frames]`; None without one. Its classes are
            the model's labels (`id2label`).
        initializer_factor: scale of the projections' random initialisation.
    """

    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="clip_text_model"),
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", init_kwargs={"patch_size": 16}),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    num_frames: int = 8
    alignment: str = "otam"
    otam_lambda: float | int = 0.5
    both_directions: bool = True
    cosine_eps: float | int = 0.01
    merge: str = "before"
    prompt_template: str = "a photo of {}"
    freeze_text: bool = True
    freeze_vision: bool = False
    support_shape: list[int] | tuple[int, ...] | None = None
    initializer_factor: float | int = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        name = type(self).__name__
        if self.text_config.model_type != "clip_text_model":
            raise ValueError(f"{name}.text_config: tower type {self.text_config.model_type!r} is not supported.")
        if self.vision_config.model_type not in VISION_TOWERS:
            raise ValueError(
                f"{name}.vision_config: tower type {self.vision_config.model_type!r} is not supported; use one of "
                f"{', '.join(VISION_TOWERS)}."
            )
        if self.has_resnet and self.vision_config.projection_dim != self.projection_dim:
            raise ValueError(
                f"{name}.projection_dim={self.projection_dim}, but the ResNet ends in "
                f"{self.vision_config.projection_dim} channels."
            )
        for field, known in (("alignment", self.alignments), ("merge", self.merges)):
            if getattr(self, field) not in known:
                raise ValueError(f"{name}.{field}={getattr(self, field)!r}: choose one of {', '.join(known)}.")
        if self.num_frames < 1 or not self.otam_lambda > 0:
            raise ValueError(f"{name}: num_frames must be at least 1 and otam_lambda above 0.")
        if "{}" not in self.prompt_template:
            raise ValueError(f"{name}.prompt_template={self.prompt_template!r} has no place {{}} for the class name.")

    @property
    def alignments(self) -> tuple[str, ...]:
        """The metrics that the model knows."""
        return ALIGNMENTS

    @property
    def merges(self) -> tuple[str, ...]:
        """Where the shots of a class may be averaged."""
        return ("before", "after")

    @property
    def has_resnet(self) -> bool:
        """Whether the vision tower is CLIP's ResNet."""
        return self.vision_config.model_type == "clipplus_clip_resnet"


__all__ = ["FewShotVideoConfig"]
