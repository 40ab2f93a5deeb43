"""Texts of one batch encoded in groups of like length, each cut behind its longest text: exact, and little padding.

Only for towers that pool at the end token under a causal mask (CLIP's): what stands behind the end token cannot reach
the embedding there.
"""

from collections import Counter
from collections.abc import Callable
from itertools import accumulate

import torch

# What one more call of a tower costs, in tokens: on a CPU some microseconds a token stand against a few milliseconds
# of Python and small kernels; an accelerator needs far more tokens before it is busy.
OVERHEAD_TOKENS = {"cpu": 256, "accelerator": 8192}


def text_lengths(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """The number of tokens up to and with the one that CLIP pools at, `[C]`.

    Args:
        input_ids: `[C, L]`.
        eos_token_id: 2, as published CLIP configurations say, means the highest id of the row; a row without the end
            token pools at its first token, as in transformers.
    """
    if eos_token_id == 2:
        return input_ids.argmax(-1) + 1
    return input_ids.eq(eos_token_id).int().argmax(-1) + 1


def cut_points(lengths: list[int], overhead: int) -> list[int]:
    """The lengths at which the cheapest groups end, ascending; the last is the longest.

    A group costs (texts in it) x (its longest) + `overhead`; the least total is found by dynamic programming over the
    different lengths.
    """
    counts = sorted(Counter(lengths).items())
    below = [0, *accumulate(count for _, count in counts)]  # texts shorter than the i-th length
    best = [(0, [])]  # for the i shortest lengths: cost, cuts
    for end, (length, _) in enumerate(counts, start=1):
        cost, start = min((best[i][0] + (below[end] - below[i]) * length + overhead, i) for i in range(end))
        best.append((cost, [*best[start][1], length]))
    return best[-1][1]


def encode_in_buckets(
    encode: Callable[..., torch.Tensor],
    lengths: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """`encode(input_ids, attention_mask, position_ids)` of all rows, called once per group of like length.

    Args:
        encode: gives `[rows, D]`.
        lengths: `[C]`, from `text_lengths`.
        input_ids, attention_mask: `[C, L]`.
        position_ids: `[C, L]` or `[1, L]`.

    Returns:
        `[C, D]`, in the order of the rows.
    """
    kind = "cpu" if input_ids.device.type == "cpu" else "accelerator"
    cuts = cut_points(lengths.tolist(), OVERHEAD_TOKENS[kind])
    group = torch.bucketize(lengths, torch.tensor(cuts, device=lengths.device))
    order = group.argsort(stable=True)
    parts = []
    for rows, cut in zip(order.split(group.bincount(minlength=len(cuts)).tolist()), cuts, strict=True):
        rows = slice(None) if len(cuts) == 1 else rows
        positions = position_ids if position_ids is None or len(position_ids) == 1 else position_ids[rows]
        parts.append(
            encode(
                input_ids[rows, :cut],
                None if attention_mask is None else attention_mask[rows, :cut],
                None if positions is None else positions[:, :cut],
            )
        )
    return parts[0] if len(cuts) == 1 else torch.cat(parts)[order.argsort()]
