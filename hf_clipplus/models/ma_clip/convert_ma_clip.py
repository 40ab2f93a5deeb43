"""Reads the adapters of an AIM checkpoint, which MA-CLIP's are modelled on; MA-CLIP itself published no weights."""

import re
from collections.abc import Mapping

from torch import Tensor

_ADAPTER = re.compile(r"transformer\.resblocks\.(\d+)\.(\w+_Adapter(?:_in)?)\.D_fc([12])\.(weight|bias)")
_KINDS = {"T_Adapter_in": "temporal_in", "T_Adapter": "temporal", "S_Adapter": "local", "MLP_Adapter": "joint"}
_ENDS = {"1": "down", "2": "up"}


def aim_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AIM's adapters under our names.

    Args:
        state: tensors of a checkpoint, with or without the prefix `backbone.`; its frozen CLIP is not looked at.

    Returns:
        `<layer>.<temporal|temporal_in|local|joint>_<down|up>.<weight|bias>`, and `temporal_embedding [1, T, D]`.

    Raises:
        ValueError: no adapter is in it, or one of an unknown kind.
    """
    found = {}
    for key, value in state.items():
        name = key.removeprefix("backbone.")
        if match := _ADAPTER.fullmatch(name):
            layer, kind, end, part = match.groups()
            if kind not in _KINDS:
                raise ValueError(f"AIM has adapters {', '.join(_KINDS)}, the checkpoint has {key}.")
            found[f"{layer}.{_KINDS[kind]}_{_ENDS[end]}.{part}"] = value
        elif name == "temporal_embedding":
            found[name] = value
    if not any("." in name for name in found):
        raise ValueError("the checkpoint has no adapters of AIM (transformer.resblocks.<i>.T_Adapter.D_fc1.weight).")
    return found
