"""Exact grid search over a cache head's sharpness, weight and difficulty exponent: the published loops, closed up.

For one beta and gamma a query's logits are straight lines in alpha, `z + alpha * g`. The alphas that classify it right
are one interval, where its class lies on or above all other lines; so all alphas cost one comparison instead of one
argmax each, and class sums for all gammas are one batched product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Numbers per intermediate of `correct_on_grid`: 16 MiB in float32."""


def published_axis(scale: float, steps: int, start: float = 0.1) -> list[float]:
    """`start + i (scale - start) / steps` for i < steps; the upper end is never reached.

    beta and alpha start at 0.1, gamma at 0.
    """
    return [start + i * (scale - start) / steps for i in range(steps)]


def correct_on_lines(base: Tensor, slopes: Tensor, labels: Tensor, alphas: Tensor) -> Tensor:
    """How many queries `base + alpha * slopes` classifies right, for every alpha.

    On an exact tie of two lines that are equal everywhere the class with the lower number wins, as in argmax; a tie at
    one alpha only counts as right.

    Args:
        base: `[V, C]`.
        slopes: `[C, V, G]`, G alternatives.
        labels: `[V]` int64.
        alphas: `[A]`.

    Returns:
        `[A, G]` int64.
    """
    ahead = base.gather(1, labels[:, None]) - base  # [V, C], how far the own class leads without the cache
    ahead = ahead.T[:, :, None]  # [C, V, 1]
    own = slopes.gather(0, labels[None, :, None].expand(1, -1, slopes.shape[2]))
    gains = own - slopes  # [C, V, G]
    crossing = -ahead / gains
    infinite = torch.tensor(float("inf"), dtype=base.dtype, device=base.device)
    least = torch.where(gains > 0, crossing, -infinite).amax(0)  # [V, G]
    greatest = torch.where(gains < 0, crossing, infinite).amin(0)
    # equal slopes decide by the base alone
    earlier = (torch.arange(len(slopes), device=labels.device)[:, None] < labels)[:, :, None]  # [C, V, 1]
    lost = ((gains == 0) & ((ahead < 0) | ((ahead == 0) & earlier))).any(0)
    greatest = torch.where(lost, -infinite, greatest)
    alphas = alphas[:, None, None]
    return ((least <= alphas) & (alphas <= greatest)).sum(1)


def correct_on_grid(
    queries: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    base: Tensor,
    labels: Tensor,
    *,
    betas: Sequence[float],
    alphas: Sequence[float],
    gammas: Sequence[float] = (0.0,),
    difficulty: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """How many queries a cache head classifies right at every point of the grid.

    Args:
        queries, keys: `[V, Q]`, `[N, Q]`, refined for APE.
        key_labels: `[N]`.
        base: `[V, C]` logits without the cache.
        labels: `[V]`.
        betas, alphas, gammas: the grid; gammas without `difficulty` must be [0].
        difficulty: `[N]`, see `key_difficulty`.
        values: `[N]`, further weights of the keys (APE-T).

    Returns:
        `[betas, alphas, gammas]` int64; the sum over V of right answers.

    Raises:
        ValueError: an empty axis, or gammas without difficulty.
    """
    if not (len(betas) and len(alphas) and len(gammas)):
        raise ValueError("the grid has an axis without values.")
    if difficulty is None and list(gammas) != [0.0]:
        raise ValueError("gammas weigh the keys by their difficulty: give difficulty, or leave gammas alone.")
    classes = base.shape[1]
    slots, present = _by_class(key_labels, classes)  # [C, K]
    weights = present.to(base.dtype)[:, :, None]  # [C, K, 1]
    if values is not None:
        weights = weights * values[slots][:, :, None]
    if difficulty is not None:
        exponents = torch.as_tensor(gammas, dtype=base.dtype, device=base.device)
        weights = weights * torch.exp(difficulty[slots][:, :, None] * exponents)  # [C, K, G]
    axis = torch.as_tensor(alphas, dtype=base.dtype, device=base.device)
    grouped = keys[slots.flatten()]  # [C K, Q]
    counts = torch.zeros(len(betas), len(alphas), len(gammas), dtype=torch.int64, device=base.device)
    widest = max(slots.numel(), classes * len(gammas), len(alphas) * len(gammas))
    for rows in torch.arange(len(queries), device=base.device).split(max(1, CHUNK_ELEMENTS // widest)):
        lag = (grouped @ queries[rows].T - 1).view(*slots.shape, -1).transpose(1, 2)  # [C, v, K]
        for i, beta in enumerate(betas):
            slopes = torch.exp(beta * lag) @ weights  # [C, v, G]
            counts[i] += correct_on_lines(base[rows], slopes, labels[rows], axis)
    return counts


def first_maximum(counts: Tensor) -> tuple[int, ...]:
    """Position of the first maximum in row-major order: what a loop that replaces only on improvement keeps."""
    return tuple(int(i) for i in torch.unravel_index(counts.argmax(), counts.shape))


def _by_class(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """`[C, K]` positions of the keys of every class, K the most of any, and which of them are real."""
    sizes = torch.bincount(labels, minlength=classes)
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[labels[order]]
    slots = labels.new_zeros(classes, int(sizes.max()))
    present = torch.zeros_like(slots, dtype=torch.bool)
    slots[labels[order], place], present[labels[order], place] = order, True
    return slots, present
