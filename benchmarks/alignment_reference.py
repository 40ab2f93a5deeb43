"""The metrics of `ops/alignment.py` straight from their definitions: what is timed against, and test oracle."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor


def otam_by_cells(distances: Tensor, lam: float) -> Tensor:
    """One direction of OTAM, cell by cell, with log(sum(exp)) as published: `[..., L, M]` -> `[...]`."""
    rows, columns = distances.shape[-2:]
    padded = F.pad(distances, (1, 1))
    zero = distances.new_zeros(distances.shape[:-2])

    def softmin(*costs: Tensor) -> Tensor:
        return -lam * torch.log(sum(torch.exp(-cost / lam) for cost in costs))

    cost = [[zero] * (columns + 2) for _ in range(rows)]
    for m in range(1, columns + 2):
        cost[0][m] = padded[..., 0, m] + cost[0][m - 1]
    for l in range(1, rows):
        for m in range(1, columns + 2):
            came = [cost[l - 1][m - 1], cost[l][m - 1]]
            if m in (1, columns + 1):
                came.append(cost[l - 1][m])
            cost[l][m] = padded[..., l, m] + softmin(*came)
    return cost[rows - 1][columns + 1]


def otam_both_by_cells(distances: Tensor, lam: float) -> Tensor:
    """Both directions of `otam_by_cells`."""
    return otam_by_cells(distances, lam) + otam_by_cells(distances.transpose(-1, -2), lam)


def trx_by_class(
    queries: Tensor, supports: Tensor, labels: Tensor, classes: int, cardinality: int, weights: dict[str, Tensor]
) -> Tensor:
    """TRX of one cardinality as a loop over classes on concatenated tuples.

    Args:
        queries, supports: `[Q, T, D]`, `[S, T, D]`, position code already added.
        labels: `[S]`.
        classes, cardinality: N, w.
        weights: `key_weight`, `key_bias`, `value_weight`, `value_bias`, `norm_weight`, `norm_bias`.

    Returns:
        Distances `[Q, N]`.
    """
    subsets = [list(subset) for subset in combinations(range(queries.shape[1]), cardinality)]

    def tuples(features: Tensor) -> Tensor:
        return torch.stack([features[:, subset].flatten(1) for subset in subsets], dim=1)  # [V, P, w D]

    def keys(rows: Tensor) -> Tensor:
        found = F.linear(rows, weights["key_weight"], weights["key_bias"])
        return F.layer_norm(found, found.shape[-1:], weights["norm_weight"], weights["norm_bias"])

    query_tuples, support_tuples = tuples(queries), tuples(supports)
    query_keys, support_keys = keys(query_tuples), keys(support_tuples)
    query_values = F.linear(query_tuples, weights["value_weight"], weights["value_bias"])
    support_values = F.linear(support_tuples, weights["value_weight"], weights["value_bias"])
    found = []
    for number in range(classes):
        own = (labels == number).nonzero().flatten()
        scores = query_keys @ support_keys[own].flatten(0, 1).T / query_keys.shape[-1] ** 0.5  # [Q, P, K P]
        prototypes = scores.softmax(-1) @ support_values[own].flatten(0, 1)
        found.append((query_values - prototypes).square().sum((-1, -2)) / len(subsets))
    return torch.stack(found, dim=1)
