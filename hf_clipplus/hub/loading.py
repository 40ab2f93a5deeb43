"""Loads any model or adapter of the zoo with its processor, and refuses what would stay random."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoConfig, PreTrainedModel

from hf_clipplus.catalogue import VARIANTS
from hf_clipplus.tuners.base import load_strictly


class NotOfTheZooError(ValueError):
    """A model is there, but none of the zoo."""


def load_from_zoo(name: str) -> tuple[PreTrainedModel | PeftModel, Any]:
    """A model of the zoo, or an adapter on one, in eval mode, with its processor.

    Args:
        name: folder or Hub id.

    Raises:
        OSError: nothing can be loaded from there.
        NotOfTheZooError: it is no model of the zoo.
        ValueError: weights are missing.
    """
    adapter = _adapter_config(name)
    config = AutoConfig.from_pretrained(name if adapter is None else adapter.base_model_name_or_path)
    kind = type(config).model_type
    variant = next((each for each in VARIANTS if kind == f"clipplus_{each.id}"), None)
    if variant is None:
        raise NotOfTheZooError(f"{name} is of type {kind!r}, which is no model of the zoo; `convert` may make it one.")
    processor = variant.load(variant.processor).from_pretrained(name)
    source = name if adapter is None else adapter.base_model_name_or_path
    model, info = variant.load(variant.model).from_pretrained(source, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{source} lacks {len(missing)} weights, which would stay random: {missing[:5]}.")
    if adapter is not None:
        model = load_strictly(model, name)
    return model.eval(), processor


def _adapter_config(name: str) -> PeftConfig | None:
    if Path(name).is_dir() and not (Path(name) / "adapter_config.json").is_file():
        return None
    try:
        return PeftConfig.from_pretrained(name)
    except ValueError:  # a Hub id without an adapter
        return None
