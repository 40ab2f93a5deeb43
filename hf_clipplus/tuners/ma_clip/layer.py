"""The layers of MA-CLIP: an encoder layer with adapters by name, and the norm before the first layer."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hf_clipplus.models.ma_clip.adapters_ma_clip import (
    AdapterSettings,
    adapted_forward,
    add_frame_embedding,
    linear_layers,
)
from hf_clipplus.models.pooled_layer import CLIPPooledEncoderLayer
from hf_clipplus.tuners.base import UnmergeableLayer

from .config import MACLIPAdapterConfig

PREFIX = "ma_clip_"
ADAPTERS = ("temporal_in", "temporal", "local", "joint")
OF_VIDEOS = ("num_frames", "text_tokens", "has_text")
LINEARS = (*(f"{name}_{end}" for name in ADAPTERS for end in ("down", "up")), "text_proj")
WHY_NOT_MERGED = (
    "MA-CLIP's adapters add tokens and branches and cannot be merged into CLIP's weights: export_ma_clip gives a "
    "self-contained model that owns them."
)


class MACLIPPart(UnmergeableLayer):
    """What both kinds of layer are to PEFT."""

    why_not_merged = WHY_NOT_MERGED


class MACLIPLayer(CLIPEncoderLayer, MACLIPPart):
    """A CLIP encoder layer plus MA-CLIP adapters by name; disabled it is the layer.

    It is a `CLIPEncoderLayer` so that transformers collects its hidden states and checkpoints its activations. One
    flat container holds the linear layers of one kind, as PEFT needs them: `ma_clip_temporal_down[name]`, ...
    """

    adapter_layer_names = tuple(PREFIX + name for name in LINEARS)
    other_param_names = ("settings", "drop_rates", "text_owners")

    def __init__(self, base_layer: CLIPEncoderLayer, adapter_name: str, config: MACLIPAdapterConfig, place: "Place"):
        nn.Module.__init__(self)
        self.start(base_layer, adapter_name)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.settings: dict[str, AdapterSettings] = {}
        self.drop_rates: dict[str, float] = {}
        self.text_owners: dict[str, MACLIPLayer] = {}
        self.place = place
        for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            if name in base_layer.__dict__:
                setattr(self, name, base_layer.__dict__[name])
        self.train(base_layer.training)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MACLIPAdapterConfig) -> None:
        """Add an adapter, which gives 0 until it is trained or loaded."""
        base, (number, count) = self.base_layer, (self.place.number, self.place.count)
        weight = base.layer_norm1.weight
        for name, linear in linear_layers(config, len(weight), number, count).items():
            getattr(self, PREFIX + name)[adapter_name] = linear.to(dtype=weight.dtype)
        self.settings[adapter_name] = AdapterSettings.of(config)
        self.drop_rates[adapter_name] = config.drop_rate(number, count)
        if config.text_in_local:
            first = config.adapted(count)[0] if config.text_proj_shared else number
            self.text_owners[adapter_name] = self if first == number else self.place.layers[first]
        self._move_adapter_to_device_of_base_layer(adapter_name, device=weight.device)
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is active."""
        return self._active() is not None

    @property
    def sees_text(self) -> bool:
        """Whether support videos see their class text here."""
        return (name := self._active()) is not None and self.settings[name].text_in_local

    def _active(self) -> str | None:
        return self.one_active(self.settings)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        pooled_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `adapted_forward`, which takes `kwargs`; what is about videos is dropped when no adapter is active."""
        name = self._active()
        if isinstance(self.base_layer, CLIPPooledEncoderLayer):  # the last layer of the zoo's towers
            kwargs["pooled_positions"] = pooled_positions
        if name is None:  # forward, not the call: hooks and checkpointing are this layer's
            kwargs = {each: value for each, value in kwargs.items() if each not in OF_VIDEOS}
            return self.base_layer.forward(hidden_states, attention_mask, **kwargs)
        linears = {each: getattr(self, PREFIX + each) for each in LINEARS}
        linears = {each: container[name] for each, container in linears.items() if name in container}
        if name in self.text_owners:
            linears["text_proj"] = self.text_owners[name].ma_clip_text_proj[name]
        return adapted_forward(
            self.base_layer,
            hidden_states,
            linears,
            self.settings[name],
            drop_rate=self.drop_rates[name],
            **kwargs,
        )


class Place:
    """Where a layer stands in its tower.

    Args:
        layers: of the tower, wrapped ones included.
        number: of the layer.
    """

    def __init__(self, layers: nn.ModuleList, number: int):
        self.layers, self.number, self.count = layers, number, len(layers)


class MACLIPPreNorm(nn.Module, MACLIPPart):
    """The norm before the first layer, with AIM's temporal embedding before it, by adapter."""

    adapter_layer_names = (f"{PREFIX}temporal_embedding",)

    def __init__(self, base_layer: nn.LayerNorm, adapter_name: str, config: MACLIPAdapterConfig):
        super().__init__()
        self.start(base_layer, adapter_name)
        self.ma_clip_temporal_embedding = nn.ParameterDict()
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MACLIPAdapterConfig) -> None:
        """Add an adapter, which is 0 until it is trained or loaded."""
        embedding = torch.zeros(1, config.num_frames, len(self.base_layer.weight))
        self.ma_clip_temporal_embedding[adapter_name] = nn.Parameter(embedding)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor) -> Tensor:
        name = self.one_active(self.ma_clip_temporal_embedding)
        if name is not None:
            hidden_states = add_frame_embedding(hidden_states, self.ma_clip_temporal_embedding[name])
        return self.base_layer(hidden_states)
