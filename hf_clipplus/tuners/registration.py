"""Makes a method known to PEFT under a new type."""

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def ensure_peft_type(name: str) -> PeftType:
    """The member `name` of `PeftType`, added if it is not there.

    The enum is closed, and everything of PEFT and transformers that reads an adapter goes through it; a plain string
    in its place fails in transformers' own adapter loading.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    type.__setattr__(PeftType, name, member)  # EnumType's own would refuse
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    return member


def register(name: str, config_class: type[PeftConfig], tuner_class: type[BaseTuner]) -> None:
    """Register a method under `name` (lower case), once."""
    if ensure_peft_type(name.upper()) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=tuner_class, prefix=tuner_class.prefix)
