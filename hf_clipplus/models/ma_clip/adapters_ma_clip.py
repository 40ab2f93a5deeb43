"""Adapters in the layers of a CLIP vision tower: their settings, the adapted forward pass, and layers that own them.

`adapted_forward` serves the layers here, which belong to a self-contained model, and those of the PEFT method
(`tuners.ma_clip`), which wrap the layers of any model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hf_clipplus.ops.multimodal_adapters import (
    Adapter,
    drop_path,
    global_temporal,
    hide_text,
    joint_adaptation,
    local_adaptation,
    with_extra_tokens,
)

from ..pooled_layer import CLIPPooledEncoderLayer, attend_at

ADAPTATIONS = ("temporal", "local", "joint")
STD = 0.02  # of what does not start at 0 (AIM's code)


@dataclass
class AdapterSettings:
    """What the adapters of one model are; every default that the paper does not confirm can be changed here.

    Args:
        adapter_ratio: inner width over the tower's (AIM's; MA-CLIP's is not confirmed).
        joint_scale: s, weight of the joint adapter (AIM's; not confirmed).
        adaptations: which of "temporal", "local" and "joint" have adapters. Without "temporal" there is no temporal
            token; without "local" the frozen attention still sees the extra tokens.
        text_in_local: whether the class text of a support video is one more token.
        text_dim: width of the text features; None takes the joint space's.
        text_proj_shared: one projection of the texts for all layers, or one in each (not confirmed).
        num_frames: frames of a video, where a call does not say it; frames are folded into the batch.
        layers: numbers of the adapted layers; None takes all (not confirmed).
        temporal_embedding: a learned `[1, num_frames, D]` on all tokens before the first layer, as AIM has it; without
            one only the alignment sees the order of frames.
        num_temporal_adapters: 2 puts a further adapter before the temporal attention (AIM on SSv2).
        drop_path: stochastic depth of the temporal and the joint branch, in the last layer; grows linearly with depth.
    """

    adapter_ratio: float = field(default=0.25, metadata={"help": "Inner width of the adapters over the tower's."})
    joint_scale: float = field(default=0.5, metadata={"help": "Weight of the joint adapter beside the MLP."})
    adaptations: list[str] = field(
        default_factory=lambda: list(ADAPTATIONS), metadata={"help": "Which adapters there are."}
    )
    text_in_local: bool = field(
        default=True, metadata={"help": "Support videos see their class text inside the tower."}
    )
    text_dim: int | None = field(default=None, metadata={"help": "Width of the text features."})
    text_proj_shared: bool = field(
        default=True, metadata={"help": "One text projection for all layers, or one in each."}
    )
    num_frames: int = field(default=8, metadata={"help": "Frames of a video, where a call does not say it."})
    layers: list[int] | None = field(default=None, metadata={"help": "Adapted layers; None takes all."})
    temporal_embedding: bool = field(
        default=False, metadata={"help": "A learned embedding of the frame's number before the first layer."}
    )
    num_temporal_adapters: int = field(
        default=1, metadata={"help": "2 puts a further adapter before the temporal attention."}
    )
    drop_path: float = field(default=0.0, metadata={"help": "Stochastic depth of the last layer's adapter branches."})

    def check(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            ValueError: names the setting.
        """
        unknown = sorted(set(self.adaptations) - set(ADAPTATIONS))
        if unknown or not self.adaptations:
            raise ValueError(f"adaptations={self.adaptations}: choose one or more of {', '.join(ADAPTATIONS)}.")
        if not self.adapter_ratio > 0 or not 0 <= self.drop_path < 1 or self.num_frames < 1:
            raise ValueError("adapter_ratio must be above 0, drop_path in [0, 1), num_frames at least 1.")
        if self.num_temporal_adapters not in (1, 2):
            raise ValueError(f"num_temporal_adapters={self.num_temporal_adapters}: AIM has 1 or 2.")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise ValueError(f"layers={self.layers}: give numbers of layers from 0, or None for all.")

    def adapter_names(self) -> list[str]:
        """Stems of the adapters of one layer."""
        second = ["temporal_in"] if "temporal" in self.adaptations and self.num_temporal_adapters == 2 else []
        return second + [name for name in ADAPTATIONS if name in self.adaptations]

    def has_text_proj(self, layer: int, layers: int) -> bool:
        """Whether layer number `layer` of `layers` owns a text projection."""
        return self.text_in_local and (not self.text_proj_shared or layer == self.adapted(layers)[0])

    def adapted(self, layers: int) -> list[int]:
        """The adapted of `layers` layers.

        Raises:
            ValueError: a number that is no layer.
        """
        chosen = sorted(set(range(layers) if self.layers is None else self.layers))
        if chosen[-1] >= layers:
            raise ValueError(f"layers={self.layers}, but the tower has layers 0..{layers - 1}.")
        return chosen

    def drop_rate(self, layer: int, layers: int) -> float:
        """Stochastic depth of one layer."""
        return self.drop_path * layer / max(layers - 1, 1)

    @classmethod
    def of(cls, other: Any) -> "AdapterSettings":
        """The settings among the attributes of another object."""
        return cls(**{each.name: getattr(other, each.name) for each in fields(cls)})


def linear_layers(settings: AdapterSettings, dim: int, layer: int, layers: int) -> dict[str, nn.Linear]:
    """New linear layers of one adapted layer by name; every adapter gives 0.

    Args:
        settings: see `AdapterSettings`.
        dim: width of the tower.
        layer, layers: number of the layer, and how many the tower has.
    """
    inner, found = max(1, int(settings.adapter_ratio * dim)), {}
    for name in settings.adapter_names():
        found |= {f"{name}_down": nn.Linear(dim, inner), f"{name}_up": nn.Linear(inner, dim)}
    if settings.has_text_proj(layer, layers):
        found["text_proj"] = nn.Linear(settings.text_dim, dim)
    for name, linear in found.items():
        init_linear(name, linear)
    return found


@torch.no_grad()
def init_linear(name: str, linear: nn.Linear) -> None:
    """AIM's start: `up` layers 0, the others a truncated normal; skips tensors that were loaded or are on meta."""
    if linear.weight.device.type == "meta":
        return
    if name.endswith("_up"):
        init.zeros_(linear.weight)
    else:
        init.trunc_normal_(linear.weight, std=STD)
    init.zeros_(linear.bias)


def frames_of_batch(rows: int, num_frames: int) -> int:
    """Videos in a batch of frames.

    Raises:
        ValueError: `num_frames` does not divide the batch.
    """
    if num_frames < 1 or rows % num_frames:
        raise ValueError(
            f"a batch of {rows} frames does not consist of videos of num_frames={num_frames}: fold the frames of each "
            "video into the batch, [V T, 3, H, W], and pass num_frames=T."
        )
    return rows // num_frames


def adapted_forward(
    layer: CLIPEncoderLayer,
    hidden_states: Tensor,
    linears: Mapping[str, nn.Linear],
    settings: AdapterSettings,
    *,
    drop_rate: float,
    num_frames: int | None = None,
    text_tokens: Tensor | None = None,
    has_text: Tensor | None = None,
    pooled_positions: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """One layer of MA-CLIP: the frozen layer's own parts, with adapters.

    Args:
        layer: the frozen layer.
        hidden_states: `[V T, N + 1, D]`, the class token first.
        linears: of `linear_layers`; with "text_proj" for the texts.
        settings: see `AdapterSettings`.
        drop_rate: stochastic depth of this layer, in training.
        num_frames: T; None takes the settings'.
        text_tokens: `[V, C]`, class text features; None in the query branch.
        has_text: `[V]` bool, videos that may see theirs; None for all.
        pooled_positions: `[V T]` zeros: only the class token is wanted, every other token of the result is 0.
        kwargs: of the attention.

    Raises:
        ValueError: `num_frames` does not divide the batch, or not one text for each video.
    """
    frames = settings.num_frames if num_frames is None else num_frames
    videos = frames_of_batch(len(hidden_states), frames)
    tokens = hidden_states.unflatten(0, (videos, frames))
    pairs: dict[str, Adapter] = {
        name: (linears[f"{name}_down"], linears[f"{name}_up"]) for name in settings.adapter_names()
    }
    mask = None

    def attend(values: Tensor) -> Tensor:
        return layer.self_attn(hidden_states=values, attention_mask=mask, **kwargs)[0]

    keep_temporal = keep_joint = 1.0
    if drop_rate and layer.training:
        keep_temporal, keep_joint = (drop_path(videos, drop_rate, hidden_states)[:, None, None] for _ in range(2))
        keep_joint = keep_joint.repeat_interleave(frames, 0)
    x_ta = text = None
    if "temporal" in pairs:
        entry = pairs.get("temporal_in")
        x_ta = keep_temporal * global_temporal(tokens[:, :, 0], attend, layer.layer_norm1, pairs["temporal"], entry)
    if text_tokens is not None and settings.text_in_local:
        if text_tokens.shape != (videos, settings.text_dim):
            raise ValueError(
                f"text_tokens must be [{videos}, {settings.text_dim}], one for each video, got "
                f"{list(text_tokens.shape)}."
            )
        text = linears["text_proj"](text_tokens.to(linears["text_proj"].weight.dtype)).to(hidden_states.dtype)
    extended = with_extra_tokens(tokens, x_ta, text)
    if text is not None and has_text is not None:
        mask = hide_text(has_text, frames, extended.shape[1], extended.dtype)

    def attend_from_class_token(values: Tensor) -> Tensor:
        return attend_at(layer.self_attn, values, pooled_positions, mask)[:, None]

    attend_locally = attend if pooled_positions is None else attend_from_class_token
    extended = local_adaptation(extended, attend_locally, layer.layer_norm1, pairs.get("local"))
    selected = extended[:, : hidden_states.shape[1]]
    scale = settings.joint_scale
    found = joint_adaptation(selected, layer.mlp, layer.layer_norm2, pairs.get("joint"), scale=scale, keep=keep_joint)
    return F.pad(found, (0, 0, 0, hidden_states.shape[1] - found.shape[1]))


def add_frame_embedding(hidden_states: Tensor, embedding: Tensor) -> Tensor:
    """Add AIM's temporal embedding: `[V T, N + 1, D]` tokens plus `[1, T, D]` by the frame's number."""
    videos = frames_of_batch(len(hidden_states), embedding.shape[1])
    return hidden_states + embedding[0].to(hidden_states.dtype).repeat(videos, 1)[:, None]


class AdaptedEncoderLayer(CLIPEncoderLayer):
    """A layer that owns adapters, beside CLIP's own parts under their own names; see `adapt_tower`."""

    settings: AdapterSettings
    drop_rate: float
    may_pool: bool  # the last layer, see `models.pooled_layer`
    text_owner: "list[AdaptedEncoderLayer]"  # in a list, so that it is no submodule
    is_adapted = True

    @property
    def sees_text(self) -> bool:
        """Whether support videos see their class text here."""
        return self.settings.text_in_local

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        pooled_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """See `adapted_forward`, which takes `kwargs`."""
        linears = dict(self.adapters.items())
        if self.settings.text_in_local:
            linears["text_proj"] = self.text_owner[0].adapters["text_proj"]
        return adapted_forward(
            self,
            hidden_states,
            linears,
            self.settings,
            drop_rate=self.drop_rate,
            pooled_positions=pooled_positions if self.may_pool else None,
            **kwargs,
        )


class AdaptedPreLayerNorm(nn.LayerNorm):
    """The norm before the first layer, with AIM's temporal embedding before it."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(add_frame_embedding(hidden_states, self.temporal_embedding))


def adapt_tower(tower: nn.Module, settings: AdapterSettings) -> None:
    """Give the layers of a `CLIPVisionModel` adapters of their own; CLIP's weights keep their names."""
    settings.check()
    layers, dim = tower.encoder.layers, tower.config.hidden_size
    chosen = settings.adapted(len(layers))
    for number in chosen:
        layer = layers[number]
        layer.may_pool = isinstance(layer, CLIPPooledEncoderLayer)
        layer.__class__ = AdaptedEncoderLayer
        layer.adapters = nn.ModuleDict(linear_layers(settings, dim, number, len(layers)))
        layer.settings, layer.drop_rate = settings, settings.drop_rate(number, len(layers))
        layer.text_owner = [layers[chosen[0]] if settings.text_proj_shared else layer]
    if settings.temporal_embedding:
        tower.pre_layrnorm.__class__ = AdaptedPreLayerNorm
        tower.pre_layrnorm.temporal_embedding = nn.Parameter(torch.zeros(1, settings.num_frames, dim))


__all__ = ["AdapterSettings"]
