"""The layer over the frames of a video that the few-shot models' temporal modules are made of."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class TemporalLayer(GradientCheckpointingLayer):
    """Attention with one norm before it, shared by queries and keys, and a feed-forward network with none.

    Args:
        dim: width; heads: must divide it.
        ffn_dim: inner width of the feed-forward network.
        attention_dropout, ffn_dropout: on the attention's output, and twice in the network.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, *, attention_dropout: float, ffn_dropout: float):
        super().__init__()
        if dim % heads:
            raise ValueError(f"projection_dim {dim} is no multiple of {heads} temporal_heads.")
        self.heads = heads
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)
        self.attention_dropout, self.ffn_dropout = attention_dropout, ffn_dropout

    def forward(self, hidden_states: Tensor, context: Tensor | None = None) -> Tensor:
        """`[B, L, D]`, attending to `context [B, M, D]`, or to itself."""
        asking = self.norm(hidden_states)
        asked = asking if context is None else self.norm(context)
        query, keys, values = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(asking), self.k_proj(asked), self.v_proj(asked))
        )
        attended = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        hidden_states = hidden_states + F.dropout(self.out_proj(attended), self.attention_dropout, self.training)
        inner = F.dropout(F.gelu(self.fc1(hidden_states)), self.ffn_dropout, self.training)
        return hidden_states + F.dropout(self.fc2(inner), self.ffn_dropout, self.training)
