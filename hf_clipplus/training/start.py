"""How training starts from a checkpoint: in float32, and with nothing left random that should have been read."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_clipplus.models.finer_vision import FUSION_PREFIX

ENCODER = Path(__file__).resolve().parents[2] / "examples" / "checkpoints" / "clipart-clip"


def load_to_train(
    model_class: type[PreTrainedModel], name: str, *, added: tuple[str, ...] = (), **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """A model of a checkpoint, in float32 whatever it is stored in: steps of a usual rate are lost in half precision.

    Args:
        model_class: of the model.
        name: folder or Hub id.
        added: names, or starts of names, of weights that the checkpoint need not have; the projection of finer vision,
            which starts as the mean, is always one.
        options: of `from_pretrained`, fields of the configuration among them.

    Returns:
        The model, and the names of the weights that the checkpoint lacks.

    Raises:
        OSError: `name` is neither a folder nor a Hub id (never random weights).
        ValueError: the checkpoint lacks other weights.
    """
    model, info = model_class.from_pretrained(name, output_loading_info=True, dtype=torch.float32, **options)
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith((*added, FUSION_PREFIX))):
        raise ValueError(f"{name} lacks weights that would stay random: {missing[:5]}")
    return model, set(info["missing_keys"])
