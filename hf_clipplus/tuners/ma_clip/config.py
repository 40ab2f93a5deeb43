"""Configuration of MA-CLIP's adapters."""

from dataclasses import dataclass, field

from peft import PeftConfig

from hf_clipplus.models.ma_clip import AdapterSettings
from hf_clipplus.tuners.registration import ensure_peft_type


@dataclass
class MACLIPAdapterConfig(AdapterSettings, PeftConfig):
    """MA-CLIP's adapters as a PEFT method; settings as in `AdapterSettings`, and below what PEFT needs.

    Args:
        base_fingerprint: of the base's vision tower; set when an adapter is made, compared when it is put on a base.
        target_modules: the layers of a CLIP vision tower, by the model's type when left alone.
        exclude_modules: modules to leave alone.
        modules_to_save: further modules to train and save; `attach_ma_clip` names those of the model.
    """

    base_fingerprint: str | None = field(default=None, metadata={"help": "Of the base's vision tower."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers of a CLIP vision tower."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("MA_CLIP")
        self.check()
