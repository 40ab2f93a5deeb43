"""Configuration of OpenAI's modified ResNet, the vision tower of CLIP RN50."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class CLIPResNetConfig(PreTrainedConfig):
    """CLIP's ResNet: a stem of three convolutions, average pooling instead of strides, attention pooling at the end.

    Args:
        width: channels after the stem; the stages have 1, 2, 4 and 8 times as many inside, four times that outside.
        depths: bottlenecks of each stage.
        num_attention_heads: of the attention pooling; None takes one per 64 channels (32 in RN50).
        image_size: side of the picture, pixels, a multiple of 32.
        projection_dim: width of the joint space, in which the tower ends itself.
        initializer_range: standard deviation of the random start of the pooling's positions, times sqrt(channels).
    """

    model_type = "clipplus_clip_resnet"
    base_config_key = "vision_config"

    width: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    num_attention_heads: int | None = None
    image_size: int = 224
    projection_dim: int = 1024
    num_channels: int = 3
    initializer_range: float = 1.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"CLIPResNetConfig.depths={self.depths}: expected four stages of at least one block.")
        if self.image_size % 32:
            raise ValueError(f"CLIPResNetConfig.image_size={self.image_size} is no multiple of 32.")
        if self.hidden_size % self.heads:
            raise ValueError(f"CLIPResNetConfig: {self.hidden_size} channels are no multiple of {self.heads} heads.")

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return 32 * self.width

    @property
    def heads(self) -> int:
        """Heads of the attention pooling."""
        return self.num_attention_heads or max(1, self.hidden_size // 64)


__all__ = ["CLIPResNetConfig"]
