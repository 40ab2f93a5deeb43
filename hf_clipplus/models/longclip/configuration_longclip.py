"""Configuration of Long-CLIP."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from hf_clipplus.models.configuration_dual_encoder import DualEncoderConfig
from hf_clipplus.ops.components import COMPONENTS, LABEL_SMOOTHING
from hf_clipplus.ops.position import KEPT

SEGMENT_POOLINGS = ("mean", "length", "attention")


@strict
class LongCLIPConfig(DualEncoderConfig):
    """Long-CLIP (2403.15378): CLIP with 248 text positions, trained on long captions and their beginnings.

    Args:
        frozen_positions: first rows of the table of text positions that training leaves alone; 0: none.
        components: principal components of the images that short captions are matched with; batches of a process must
            be larger than this by two at least.
        label_smoothing: of both losses.
        short_loss_weight: weight of the loss of short captions.
        segment_pooling: what a text in segments is: "mean" of its segments, a mean weighted by their "length", or a
            trained "attention" over them that starts as the mean.
        loss_tile_size: rows per tile of the losses; None chooses.
    """

    model_type = "clipplus_longclip"
    keys_to_ignore_at_inference = ["statistics"]
    has_logit_bias = False
    sub_configs_defaults = DualEncoderConfig.sub_configs_defaults | {
        "text_config": SubConfigSpec(
            AutoConfig, model_type="clip_text_model", init_kwargs={"max_position_embeddings": 248}
        ),
    }

    frozen_positions: int = KEPT
    components: int = COMPONENTS
    label_smoothing: float = LABEL_SMOOTHING
    short_loss_weight: float | int = 1.0
    segment_pooling: str = "mean"
    loss_tile_size: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.segment_pooling not in SEGMENT_POOLINGS:
            raise ValueError(f"segment_pooling {self.segment_pooling!r} is unknown: choose one of {SEGMENT_POOLINGS}.")
        self.require_clip_towers()


__all__ = ["LongCLIPConfig"]
