"""Clusters of equal size: k-means on the sphere whose assignment is an optimal transport with equal column sums.

Plain k-means of features that are still to be learned puts nearly everything into a few clusters, which are then all
that there is to learn. Equal shares (SeLa, 1911.05371; SwAV, 2006.09882) leave no empty cluster and no such way out.

Shapes: M features of width D, L2-normalised; K clusters.
"""

import torch
import torch.nn.functional as F

TEMPERATURE = 0.02


def balance_offsets(scores: torch.Tensor, start: torch.Tensor | None = None, *, iterations: int = 50) -> torch.Tensor:
    """Offsets `v` that give every cluster the same share of `softmax(scores + v)` (Sinkhorn-Knopp in logarithms).

    Args:
        scores: `[M, K]`, similarity divided by the temperature.
        start: `[K]`, offsets of similar scores; zeros when left out.
        iterations: alternating normalisations of columns and rows.

    Returns:
        `[K]`; the rows of `softmax(scores + v, dim=1)` sum to 1, its columns to M / K (exactly in the limit).
    """
    rows, clusters = scores.shape
    share = torch.tensor(rows / clusters).log().to(scores)
    offsets = scores.new_zeros(clusters) if start is None else start
    for _ in range(iterations):
        plan = (scores + offsets).log_softmax(1)
        offsets = offsets + share - plan.logsumexp(0)
    return offsets


def assign_clusters(
    features: torch.Tensor, centroids: torch.Tensor, offsets: torch.Tensor, *, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """The cluster of each feature, `[M]` int64.

    Args:
        features: `[M, D]`.
        centroids: `[K, D]`, L2-normalised.
        offsets: `[K]`, from `balanced_kmeans`; they move the borders so that the shares are equal.
        temperature: the one that the offsets were made with.
    """
    return (features @ centroids.T / temperature + offsets).argmax(1)


def balanced_kmeans(
    features: torch.Tensor,
    clusters: int,
    *,
    generator: torch.Generator,
    start: torch.Tensor | None = None,
    rounds: int = 10,
    temperature: float = TEMPERATURE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spherical k-means that assigns each feature to the best cluster after `balance_offsets`.

    The assignment is hard: averaging by the soft one draws the centroids together, until equal shares mean nothing.

    Args:
        features: `[M, D]`.
        clusters: K.
        generator: on the CPU; chooses the first centroids among the features.
        start: `[K, D]` centroids to start from instead, so that clusters keep their numbers over a refresh.
        rounds: of assigning and averaging.
        temperature: divides the cosines; the lower, the more equal the sizes, and the slower `balance_offsets`.

    Returns:
        Centroids `[K, D]`, L2-normalised, and offsets `[K]`, see `assign_clusters`.

    Raises:
        ValueError: fewer than 2 clusters, or more than features.
    """
    if not 2 <= clusters <= len(features):
        raise ValueError(f"{len(features)} features cannot be put into {clusters} clusters: 2 to {len(features)} can.")
    if start is None:
        start = features[torch.randperm(len(features), generator=generator)[:clusters].to(features.device)]
    centroids, offsets = start, None
    for _ in range(rounds):
        offsets = balance_offsets(features @ centroids.T / temperature, offsets, iterations=20)
        labels = assign_clusters(features, centroids, offsets, temperature=temperature)
        sums = F.one_hot(labels, clusters).to(features).T @ features
        centroids = torch.where(sums.any(1, keepdim=True), F.normalize(sums, dim=-1), centroids)
    return centroids, balance_offsets(features @ centroids.T / temperature, offsets)
