"""Configuration of GroupViT."""

from math import log

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from hf_clipplus.models.configuration_zoo import ZooConfig
from hf_clipplus.ops.grouping import MULTI_LABEL_FORMS

# The text tower of the released models; transformers' CLIPTextConfig has CLIP's own, twice as wide
RELEASED_TEXT = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 0,
}


@strict
class GroupViTPlusVisionConfig(PreTrainedConfig):
    """The image encoder: stages of transformer blocks over tokens and group tokens, each but the last ending in a
    grouping block that merges the tokens into groups. The defaults are those of the released two-stage model.

    Args:
        hidden_size: width C of the first stage (of all, with `embed_factors` of 1).
        depths: blocks of each stage.
        num_attention_heads: heads of every stage, or one number per stage.
        num_group_tokens: learned group tokens of each stage; 0 for a stage without grouping (always the last).
        num_output_groups: groups that each grouping stage leaves.
        embed_factors: width of each stage over C; None: all 1, as in every release.
        image_size: side of a training image in pixels; the position embedding has (image_size // patch_size)^2
            entries and is stretched for any other size and aspect.
        patch_size, num_channels, hidden_act, layer_norm_eps: as in transformers' ViT.
        mlp_ratio: inner width of a block's MLP over its width.
        assign_mlp_ratio: the same for the grouping block's MLP over tokens and its MLP over channels.
        drop_path_rate: of the last block in training; it rises linearly from 0 at the first.
        hard_assignment: a token belongs to one group (straight-through gradient) instead of to all in parts.
        assign_gumbel: add Gumbel noise to the assignment in training. The paper's soft ablation has neither.
        assign_eps: added to the size of a group when its tokens are averaged, see `ops.grouping.merge_weights`.
        sum_assign: sum the tokens of a group instead of averaging.
        initializer_range: standard deviation of the first weights.
    """

    model_type = "clipplus_groupvit_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 384
    depths: list[int] | tuple[int, ...] = (6, 3, 3)
    num_attention_heads: int | list[int] | tuple[int, ...] = 6
    num_group_tokens: list[int] | tuple[int, ...] = (64, 8, 0)
    num_output_groups: list[int] | tuple[int, ...] = (64, 8)
    embed_factors: list[int | float] | tuple[int | float, ...] | None = None
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    mlp_ratio: float | int = 4.0
    assign_mlp_ratio: list[int | float] | tuple[int | float, ...] = (0.5, 4.0)
    drop_path_rate: float | int = 0.1
    hard_assignment: bool = True
    assign_gumbel: bool = True
    assign_eps: float | int = 1.0
    sum_assign: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        stages = len(self.depths)
        per_stage = {"num_group_tokens": stages, "num_output_groups": stages - 1, "assign_mlp_ratio": 2}
        if isinstance(self.num_attention_heads, list | tuple):
            per_stage["num_attention_heads"] = stages
        if self.embed_factors is not None:
            per_stage["embed_factors"] = stages
        for name, expected in per_stage.items():
            if len(getattr(self, name)) != expected:
                raise ValueError(
                    f"GroupViTPlusVisionConfig.{name}={getattr(self, name)}: expected {expected} entries for "
                    f"{stages} stages (depths={self.depths})."
                )
        if self.num_group_tokens[-1] != 0 or not all(self.num_group_tokens[:-1]):
            raise ValueError(
                f"GroupViTPlusVisionConfig.num_group_tokens={self.num_group_tokens}: every stage but the last groups "
                "(more than 0 tokens), the last does not (0)."
            )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise ValueError(f"GroupViTPlusVisionConfig: width {width} is no multiple of its {heads} heads.")

    @property
    def num_hidden_layers(self) -> int:
        """Transformer blocks of all stages."""
        return sum(self.depths)

    @property
    def widths(self) -> list[int]:
        """Width of each stage."""
        return [int(self.hidden_size * factor) for factor in self.embed_factors or [1] * len(self.depths)]

    @property
    def heads(self) -> list[int]:
        """Attention heads of each stage."""
        heads = self.num_attention_heads
        return [heads] * len(self.depths) if isinstance(heads, int) else list(heads)


@strict
class GroupViTPlusConfig(ZooConfig):
    """GroupViT (2202.11094): an image encoder that groups, CLIP's text transformer, and two projectors.

    Args:
        text_config: `CLIPTextConfig` or a dict of its fields; the released model's when left alone.
        vision_config: `GroupViTPlusVisionConfig` or a dict of its fields.
        projection_dim: width of the joint space.
        projection_intermediate_dim: inner width of the projectors.
        logit_scale_init_value: log of both inverse temperatures at the start.
        prompts_per_image: K, prompts beside the caption of each image; 0 turns the multi-label loss off.
        share_temperature: one learned scale for both losses (the paper) instead of two (the published code).
        multi_label_loss_weight: of the multi-label loss.
        multi_label_form: "mean_of_logs" (the published code) or "log_of_sum" (the paper), see
            `ops.grouping.multi_label_loss`.
    """

    model_type = "clipplus_groupvit"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="clip_text_model"),
        "vision_config": GroupViTPlusVisionConfig,
    }
    keys_to_ignore_at_inference = ["statistics"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    projection_intermediate_dim: int = 4096
    logit_scale_init_value: float | int = log(1 / 0.07)
    prompts_per_image: int = 3
    share_temperature: bool = False
    multi_label_loss_weight: float | int = 1.0
    multi_label_form: str = "mean_of_logs"

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = dict(RELEASED_TEXT)
        super().__post_init__(**kwargs)
        if self.multi_label_form not in MULTI_LABEL_FORMS:
            raise ValueError(
                f"GroupViTPlusConfig.multi_label_form={self.multi_label_form!r}: choose one of {MULTI_LABEL_FORMS}."
            )
        if self.prompts_per_image < 0:
            raise ValueError(f"GroupViTPlusConfig.prompts_per_image={self.prompts_per_image} must not be negative.")

    @property
    def has_multi_label_scale(self) -> bool:
        """Whether the multi-label loss has a scale of its own."""
        return self.prompts_per_image > 0 and not self.share_temperature


__all__ = ["GroupViTPlusConfig", "GroupViTPlusVisionConfig"]
