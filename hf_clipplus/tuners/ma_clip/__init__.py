"""MA-CLIP (2308.01532) as a PEFT method: adapters across frames, across places and beside the MLP of a CLIP tower."""

from hf_clipplus.tuners.registration import register

from .config import MACLIPAdapterConfig
from .layer import MACLIPLayer
from .model import MACLIPTuner, attach_ma_clip, export_ma_clip, seed_from_aim, trainable_by_group

register("ma_clip", MACLIPAdapterConfig, MACLIPTuner)

__all__ = [
    "MACLIPAdapterConfig",
    "MACLIPLayer",
    "MACLIPTuner",
    "attach_ma_clip",
    "export_ma_clip",
    "seed_from_aim",
    "trainable_by_group",
]
