"""The last layer of a CLIP tower for its pooled token alone, where nobody reads the other tokens.

In the last layer the other tokens serve only as keys and values: their queries, their output projection and their MLP
reach nothing that is pooled. Leaving them out changes no number but by rounding, and the cost of that layer to about a
sixth; of a tower of twelve layers that is 7%, of a tower of one layer most of it.
"""

import torch
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, eager_attention_forward

SUPPORTED_ATTENTION = ("sdpa", "eager")
CLIP_TOWERS = ("clip_text_model", "clip_vision_model")


class CLIPPooledEncoderLayer(CLIPEncoderLayer):
    """`CLIPEncoderLayer` that can compute its output at one position of each row only."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        pooled_positions: torch.Tensor | None = None,
        is_causal: bool = False,
        **kwargs,
    ) -> torch.Tensor:
        """As `CLIPEncoderLayer`; with `pooled_positions` every other position of the result is 0.

        Args:
            hidden_states: `[B, L, C]`.
            attention_mask: None, or `[B, 1, L, L]` as the attention wants it.
            pooled_positions: `[B]` int64.
            is_causal: whether a position sees none after it, where there is no mask that says so.
        """
        if pooled_positions is None:
            return super().forward(hidden_states, attention_mask, is_causal=is_causal, **kwargs)
        found = attend_at(
            self.self_attn, self.layer_norm1(hidden_states), pooled_positions, attention_mask, is_causal=is_causal
        )
        place = (torch.arange(len(found), device=found.device), pooled_positions)
        pooled = hidden_states[place] + found
        pooled = pooled + self.mlp(self.layer_norm2(pooled))
        return pooled.new_zeros(hidden_states.shape).index_put(place, pooled)


def attend_at(
    attention: CLIPAttention,
    normed: torch.Tensor,
    positions: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """What a layer's attention gives at one position of each row, `[B, C]`.

    Args:
        attention: of the layer.
        normed: `[B, L, C]`, all positions, which are looked at.
        positions: `[B]` int64.
        attention_mask: None, or `[B or 1, 1, L, L]`, added to the scores (or bool).
        is_causal: whether a position sees none after it, where there is no mask that says so.
    """
    batch, length, _ = normed.shape
    place = (torch.arange(batch, device=normed.device), positions)
    if attention_mask is not None:
        attention_mask = attention_mask.expand(batch, -1, -1, -1)[place[0], :, positions][:, :, None]
    elif is_causal:
        seen = torch.arange(length, device=normed.device) <= positions[:, None]
        attention_mask = seen[:, None, None]
    query, key, value = (
        projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projected in (attention.q_proj(normed[place][:, None]), attention.k_proj(normed), attention.v_proj(normed))
    )
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    dropout = attention.dropout if attention.training else 0.0
    found, _ = attend(
        attention, query, key, value, attention_mask, scaling=attention.scale, dropout=dropout, is_causal=False
    )
    return attention.out_proj(found.flatten(1))


def allow_pooling(tower: torch.nn.Module) -> None:
    """Let a CLIP tower's last layer take `pooled_positions`; weights, names and results stay what they are."""
    if len(tower.encoder.layers):
        tower.encoder.layers[-1].__class__ = CLIPPooledEncoderLayer


def only_pooled(config: PreTrainedConfig, tower: PreTrainedConfig) -> bool:
    """Whether the tower of a configuration is CLIP's, and nobody wants more of it than the pooled token."""
    wanted = (each.output_hidden_states or each.output_attentions for each in (config, tower))
    return tower.model_type in CLIP_TOWERS and not any(wanted)


def can_pool(config: PreTrainedConfig, tower: PreTrainedConfig) -> bool:
    """Whether the last layer of this tower, if `allow_pooling` was called, may leave out what is not pooled."""
    return only_pooled(config, tower) and tower._attn_implementation in SUPPORTED_ATTENTION


def first_positions(pixel_values: torch.Tensor) -> torch.Tensor:
    """`pooled_positions` of a vision tower: its class token, `[N, 3, H, W] -> [N]`."""
    return torch.zeros(len(pixel_values), dtype=torch.int64, device=pixel_values.device)
