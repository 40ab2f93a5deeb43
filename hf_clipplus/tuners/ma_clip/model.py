"""The tuner of MA-CLIP, and what people call: attach adapters, seed them from AIM, export a self-contained model."""

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hf_clipplus.models.ma_clip import MACLIPForFewShotVideoClassification
from hf_clipplus.models.ma_clip.adapters_ma_clip import AdaptedEncoderLayer
from hf_clipplus.models.ma_clip.convert_ma_clip import aim_adapters
from hf_clipplus.tuners.base import UnmergeableTuner

from .config import MACLIPAdapterConfig
from .layer import PREFIX, MACLIPLayer, MACLIPPart, MACLIPPreNorm, Place

PARTS = r"(encoder\.layers\.\d+|pre_layrnorm)"
INSIDE, ALONE = rf"(.*\.)?vision_model\.{PARTS}", rf"(vision_model\.)?{PARTS}"
TOWER_OWNERS = (
    "clip",
    *(f"clipplus_{name}" for name in ("fff", "dreamlip", "longclip", "diva", "clip_fsar", "ma_clip")),
)
CAPTURING = "output_capturing_hook"  # transformers' own, which collects hidden states


class MACLIPTuner(UnmergeableTuner):
    """Puts `MACLIPLayer` around the layers of a CLIP vision tower, and `MACLIPPreNorm` before them."""

    prefix = PREFIX
    tuner_layer_cls = MACLIPPart
    target_module_mapping = {"clip_vision_model": ALONE} | dict.fromkeys(TOWER_OWNERS, INSIDE)

    def _prepare_model(self, peft_config: MACLIPAdapterConfig, model: nn.Module) -> None:
        tower = vision_tower(model)
        peft_config.adapted(len(tower.encoder.layers))
        if any(isinstance(layer, AdaptedEncoderLayer) for layer in tower.encoder.layers):
            raise TypeError("the model owns adapters already (config.adapters): take the base that they were made on.")
        if peft_config.text_dim is None:
            peft_config.text_dim = model.config.projection_dim
        check_base(peft_config, model, tower)

    @staticmethod
    def _check_target_module_exists(peft_config: MACLIPAdapterConfig, key: str) -> Any:
        found, name = check_target_module_exists(peft_config, key), key.rpartition(".")[2]
        if not found:
            return found
        if name == "pre_layrnorm":
            return peft_config.temporal_embedding
        return peft_config.layers is None or not name.isdigit() or int(name) in peft_config.layers

    def _wrap(self, target: nn.Module, adapter_name: str, config: MACLIPAdapterConfig, key: str) -> MACLIPPart:
        if isinstance(target, nn.LayerNorm):
            return MACLIPPreNorm(target, adapter_name, config)
        if not isinstance(target, CLIPEncoderLayer):
            raise TypeError(f"MA-CLIP's adapters sit in layers of CLIP, {key} is {type(target).__name__}.")
        layers, _, number = key.rpartition(".")
        return MACLIPLayer(target, adapter_name, config, Place(self.model.get_submodule(layers), int(number)))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        super()._replace_module(parent, child_name, new_module, child)
        if isinstance(child, CLIPEncoderLayer) and not _capturing(new_module):
            for number in _capturing(child):
                new_module._forward_hooks[number] = child._forward_hooks.pop(number)


def _capturing(module: nn.Module) -> list[int]:
    return [number for number, hook in module._forward_hooks.items() if hook.__name__ == CAPTURING]


def vision_tower(model: nn.Module) -> CLIPVisionModel:
    """The CLIP vision tower of a model.

    Raises:
        TypeError: it has none.
    """
    for module in model.modules():
        if isinstance(module, CLIPVisionModel):
            return module
    raise TypeError(f"MA-CLIP's adapters sit in the vision tower of a CLIP, {type(model).__name__} has none.")


def fingerprint(tower: CLIPVisionModel) -> str | None:
    """A short name of a tower's weights, the same in every precision; None for weights that are not there yet."""
    parts = (tower.embeddings.class_embedding, tower.embeddings.position_embedding.weight, tower.post_layernorm.weight)
    if any(part.device.type == "meta" for part in parts):
        return None
    values = torch.cat([part.detach().flatten().to("cpu", torch.bfloat16) for part in parts])
    return sha256(values.view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def check_base(config: MACLIPAdapterConfig, model: nn.Module, tower: CLIPVisionModel) -> None:
    """Refuse a base that the adapter was not made for; a new adapter remembers this one.

    Raises:
        ValueError: names both.
    """
    made_for = (config.auto_mapping or {}).get("base_model_class")
    own, name = fingerprint(tower), type(model).__name__
    if config.base_fingerprint is None:
        config.base_fingerprint = own
    if made_for not in (None, name) or own not in (None, config.base_fingerprint):
        raise ValueError(
            f"the adapter was made for {made_for or 'another base'} {config.base_model_name_or_path!r} (vision tower "
            f"{config.base_fingerprint}), this is {name} {getattr(model, 'name_or_path', '')!r} (vision tower {own})."
        )


def attach_ma_clip(model: PreTrainedModel | PeftModel, adapter_name: str = "default", **settings: Any) -> PeftModel:
    """Untrained adapters on a frozen model: its vision tower, and, of `MACLIPFor...`, the modules that go with them.

    Args:
        model: any CLIP of transformers or the zoo, or a PeftModel that has one, to add a further adapter.
        adapter_name: under which PEFT knows it; it becomes the active one.
        settings: of `MACLIPAdapterConfig`.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    known = {"num_frames": getattr(base.config, "num_frames", None)}
    known["modules_to_save"] = getattr(base, "trained_modules", None) or None
    config = MACLIPAdapterConfig(**{name: value for name, value in known.items() if value is not None} | settings)
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name=adapter_name)
    model.add_adapter(adapter_name, config)
    model.set_adapter(adapter_name)
    return model


def trainable_by_group(model: nn.Module) -> dict[str, int]:
    """Trainable parameters by what they belong to, each kind of adapter and each module of its own.

    Args:
        model: of any kind.
    """
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        _, own, rest = name.rpartition(PREFIX)
        group = rest.split(".")[0].removesuffix("_down").removesuffix("_up") if own else _module_of(name)
        found[group] = found.get(group, 0) + parameter.numel()
    return found


def _module_of(name: str) -> str:
    return name.removeprefix("base_model.model.").split(".")[0]


@torch.no_grad()
def seed_from_aim(model: PeftModel, state: Mapping[str, Tensor], adapter_name: str = "default") -> list[str]:
    """Start adapters from those of an AIM checkpoint.

    Args:
        model: with MA-CLIP adapters of AIM's width.
        state: tensors of the checkpoint, see `aim_adapters`.
        adapter_name: of the adapter to fill.

    Returns:
        Names of our tensors that AIM does not have, and that stay as they are: the text projection.

    Raises:
        ValueError: other shapes, a layer that one side has and the other has not, or no AIM adapter at all.
    """
    tower = vision_tower(model)
    own = {}
    for number, layer in enumerate(tower.encoder.layers):
        for container in getattr(layer, "adapter_layer_names", ()):
            if adapter_name in (found := getattr(layer, container)):
                stem = f"{number}.{container.removeprefix(PREFIX)}"
                own |= {f"{stem}.{name}": each for name, each in found[adapter_name].named_parameters()}
    if isinstance(tower.pre_layrnorm, MACLIPPreNorm):
        own["temporal_embedding"] = tower.pre_layrnorm.ma_clip_temporal_embedding[adapter_name]
    given = aim_adapters(state)
    left = sorted(name for name in own.keys() - given.keys() if "text_proj" in name)
    wrong = sorted((own.keys() ^ given.keys()) - set(left))
    wrong += sorted(name for name in own.keys() & given.keys() if own[name].shape != given[name].shape)
    if wrong:
        raise ValueError(f"AIM's adapters do not fit these: {wrong[:5]} are on one side only or of another shape.")
    for name in own.keys() & given.keys():
        own[name].copy_(given[name])
    return left


def export_ma_clip(model: PeftModel | MACLIPForFewShotVideoClassification) -> MACLIPForFewShotVideoClassification:
    """A self-contained copy: a model that owns its active adapter, needs no PEFT, and carries the same support set.

    Args:
        model: `MACLIPForFewShotVideoClassification` with adapters of PEFT.

    Raises:
        TypeError: another model, or one without adapters of MA-CLIP.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    parts = [module for module in base.modules() if isinstance(module, MACLIPLayer)]
    name = parts[0]._active() if parts else None
    if not isinstance(base, MACLIPForFewShotVideoClassification) or name is None:
        raise TypeError(
            f"expected a MACLIPForFewShotVideoClassification with active MA-CLIP adapters, got {type(base).__name__}."
        )
    config = type(base.config).from_dict(base.config.to_dict() | {"adapters": asdict(parts[0].settings[name])})
    config.name_or_path = base.config.name_or_path
    copy = MACLIPForFewShotVideoClassification(config).to(base.device, base.dtype)
    copy.load_state_dict(_owned(base.state_dict(), name))
    return copy.train(base.training)


def _owned(state: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """The tensors of a model with adapters of PEFT under the names that they have in one that owns them."""
    found = {}
    for key, value in state.items():
        stem, ours, rest = key.rpartition(f".{PREFIX}")
        if ours:
            kind, _, rest = rest.partition(".")
            if rest == adapter:
                found[f"{stem}.{kind}"] = value
            elif rest.startswith(f"{adapter}."):
                found[f"{stem}.adapters.{kind}.{rest.removeprefix(f'{adapter}.')}"] = value
        elif ".original_module." in key or ".modules_to_save." in key:
            if f".modules_to_save.{adapter}." in key:
                found[key.replace(f".modules_to_save.{adapter}.", ".")] = value
        else:
            found[key.replace(".base_layer.", ".")] = value
    return found
