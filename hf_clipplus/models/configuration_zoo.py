"""What the configurations of all variants share."""

import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

CODE_ENTRIES = ("auto_map", "custom_pipelines")


@strict
class ZooConfig(PreTrainedConfig):
    """A configuration that keeps what holds on other machines too.

    A repository may hold the code of its model (`hub.bundle`). The package's own classes do not use it and
    `save_pretrained` of theirs does not copy it, so what they save must not point to it. Nor is it of use to others in
    which folder of this machine a part of the model once was.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if __name__.startswith("hf_clipplus."):  # the copy of this file in a bundle is what transformers looks for
            config_dict = {key: value for key, value in config_dict.items() if key not in CODE_ENTRIES}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        for part in found.values():
            if isinstance(part, dict) and os.path.isabs(part.get("_name_or_path") or ""):
                del part["_name_or_path"]
        return found
