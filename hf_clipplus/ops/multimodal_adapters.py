"""MA-CLIP's encoder layer: class tokens across frames, extra tokens across places, a branch beside the MLP.

Attention, norms and MLP are those of the frozen layer and come in as functions; an adapter is a pair of linear layers
(down, up). All but the adapters is CLIP's: without them and without extra tokens a layer is CLIP's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Adapter = tuple[nn.Linear, nn.Linear]


def bottleneck(values: Tensor, adapter: Adapter) -> Tensor:
    """`W_up gelu(W_down z + b_down) + b_up` with the exact GELU (AIM's code), without a skip.

    Args:
        values: `[..., D]`; cast to the adapter's type, and the result back.
        adapter: (down, up).
    """
    down, up = adapter
    return up(F.gelu(down(values.to(down.weight.dtype)))).to(values.dtype)


def global_temporal(
    class_tokens: Tensor, attend: Function, norm: Function, adapter: Adapter, entry: Adapter | None = None
) -> Tensor:
    """`x_ta = A_T(MSA(LN1(c)))`: what a frame's class token learns from those of the other frames.

    AIM's code does this with every token; its SSv2 setting has a further adapter with a skip before the attention.

    Args:
        class_tokens: `[V, T, D]`, the sequence that is attended is T.
        attend, norm: MSA and LN1 of the layer.
        adapter: A_T; entry: the one before the attention.

    Returns:
        `[V, T, D]`.
    """
    normed = norm(class_tokens)
    if entry is not None:
        normed = normed + bottleneck(normed, entry)
    return bottleneck(attend(normed), adapter)


def with_extra_tokens(tokens: Tensor, x_ta: Tensor | None, text: Tensor | None) -> Tensor:
    """`Z = [X ; x_ta ; text]`, the tokens of every frame with what they may look at besides.

    Args:
        tokens: `[V, T, N + 1, D]`.
        x_ta: `[V, T, D]` from `global_temporal`; None leaves it out.
        text: `[V, D]`, the projected class text of each video, the same for its frames; None leaves it out.

    Returns:
        `[V T, N + 1 + extra, D]`.
    """
    extra = [] if x_ta is None else [x_ta]
    extra += [] if text is None else [text[:, None].expand(-1, tokens.shape[1], -1)]
    return torch.cat([tokens, *(each[:, :, None].to(tokens.dtype) for each in extra)], dim=2).flatten(0, 1)


def hide_text(has_text: Tensor, frames: int, length: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores so that videos without text do not see the last token.

    Args:
        has_text: `[V]` bool.
        frames: T.
        length: tokens of a frame, the text token last.
        dtype: of the scores.

    Returns:
        `[V T, 1, length, length]`, 0 and -inf.
    """
    mask = torch.zeros(len(has_text), length, dtype=dtype, device=has_text.device)
    mask[:, -1].masked_fill_(~has_text, -torch.inf)
    return mask.repeat_interleave(frames, 0)[:, None, None].expand(-1, 1, length, -1)


def local_adaptation(tokens: Tensor, attend: Function, norm: Function, adapter: Adapter | None) -> Tensor:
    """`Z' = Z + a + A_S(a)` with `a = MSA(LN1(Z))`: the adapter has a skip around itself (AIM's code).

    Args:
        tokens: `[B, L, D]`.
        attend, norm: MSA and LN1 of the layer; MSA may give the first tokens only, and then so does this.
        adapter: A_S; None leaves it out.
    """
    attended = attend(norm(tokens))
    found = tokens[:, : attended.shape[1]] + attended
    return found if adapter is None else found + bottleneck(attended, adapter)


def joint_adaptation(
    tokens: Tensor,
    mlp: Function,
    norm: Function,
    adapter: Adapter | None,
    *,
    scale: float = 0.5,
    keep: Tensor | float = 1.0,
) -> Tensor:
    """`Y + MLP(LN2(Y)) + s A_J(LN2(Y))`: the adapter beside the MLP.

    Args:
        tokens: `[B, L, D]`.
        mlp, norm: MLP and LN2 of the layer.
        adapter: A_J; None leaves it out.
        scale: s (AIM's code: 0.5, on SSv2 1).
        keep: factor of the adapter's branch, for stochastic depth.
    """
    normed = norm(tokens)
    found = tokens + mlp(normed)
    return found if adapter is None else found + keep * scale * bottleneck(normed, adapter)


def drop_path(rows: int, rate: float, like: Tensor) -> Tensor:
    """Stochastic depth: 0 with probability `rate`, else 1 / (1 - rate), for each row; `[rows]`."""
    return torch.empty(rows, dtype=like.dtype, device=like.device).bernoulli_(1 - rate) / (1 - rate)
