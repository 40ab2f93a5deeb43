"""What the configurations of all variants share."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

CODE_ENTRIES = ("auto_map", "custom_pipelines")
# why a variant does not have the field `finer_vision` of the dual encoders
WITHOUT_FINER_VISION = {
    "clipplus_groupvit": "its tower takes larger pictures as they are, and groups of two tiles have nothing in common",
    "clipplus_ape": "its backbone may have it: set it in backbone_config, or in the model that from_clip takes",
    "clipplus_clip_fsar": "it compares whole frames, and its temporal module takes one token a frame",
    "clipplus_ma_clip": "it compares whole frames, and its adapters mix the tokens of one frame",
}


@strict
class ZooConfig(PreTrainedConfig):
    """A configuration that keeps what holds on other machines too, and refuses enhancements that it does not have.

    A repository may hold the code of its model (`hub.bundle`). The package's own classes do not use it and
    `save_pretrained` of theirs does not copy it, so what they save must not point to it. Nor is it of use to others in
    which folder of this machine a part of the model once was.
    """

    def __post_init__(self, **kwargs):
        if kwargs.get("finer_vision") is not None:
            reason = WITHOUT_FINER_VISION.get(self.model_type, "only the dual encoders have it")
            raise ValueError(f"{type(self).__name__} has no finer_vision: {reason}.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if "finer_vision" in kwargs:  # transformers would set it afterwards, unchecked
            config_dict = config_dict | {"finer_vision": kwargs.pop("finer_vision")}
        if __name__.startswith("hf_clipplus."):  # the copy of this file in a bundle is what transformers looks for
            config_dict = {key: value for key, value in config_dict.items() if key not in CODE_ENTRIES}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        for part in found.values():
            if isinstance(part, dict) and os.path.isabs(part.get("_name_or_path") or ""):
                del part["_name_or_path"]
        return found
