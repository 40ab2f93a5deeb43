"""Exact accuracy and recall at K on tensors, with bounded memory and an honest rule for ties.

The rule for ties, used everywhere in this package: equal scores count as if they were put in random order, and what is
reported is the *expected* hit. A model that gives everything the same score therefore scores exactly at chance level,
never 100 % (as counting only strictly better candidates would give it), and the order of the rows plays no part.

Example::

    ranks = ranks_from_embeddings(text_embeds, image_embeds, caption_owner, torch.arange(len(image_embeds)))
    recall = RetrievalRecall(ks=(1, 5, 10))
    recall.update(ranks)
    recall.compute()  # {"R@1": ..., "R@5": ..., "R@10": ...}
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Ranks(NamedTuple):
    """Where the best own candidate of each query stands; three int64 tensors [queries]."""

    above: Tensor
    """candidates that score strictly higher than the best own one."""
    own_tied: Tensor
    """own candidates that have the best own score, >= 1."""
    foreign_tied: Tensor
    """other candidates that have exactly the same score."""


def similarity(queries: Tensor, candidates: Tensor) -> Tensor:
    """Inner products [Q, C] as float32, summed in float64 so that equal embeddings tie exactly in every tiling.

    Args:
        queries: [Q, D], usually L2-normalised.
        candidates: [C, D].
    """
    return (queries.double() @ candidates.double().T).float()


def ranks_from_scores(scores: Tensor, own: Tensor) -> Ranks:
    """Ranks of the best own candidate in a full score matrix.

    Args:
        scores: [Q, C], floating point.
        own: [Q, C] bool, True where the candidate belongs to the query; at least one per row.

    Raises:
        TypeError: scores are integers (rounded scores decide near ties by index).
        ValueError: a score is NaN or infinite, or a query has no own candidate.
    """
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating point, got {scores.dtype}: rounding them invents ties")
    _require_finite(scores, "scores")
    best = scores.masked_fill(~own, -torch.inf).amax(1)
    _require_own(best, 0)
    return _count(scores, own, best)


def ranks_from_embeddings(
    queries: Tensor, candidates: Tensor, query_owner: Tensor, candidate_owner: Tensor, *, tile: int = 1024
) -> Ranks:
    """Ranks of the best own candidate, in tiles of `tile` x `tile` scores: the full matrix never exists.

    A candidate is a query's own when their owners are equal. Text -> image: `query_owner` is each caption's image,
    `candidate_owner` is `arange(images)`; image -> text is the same call with both sides swapped.

    Args:
        queries: [Q, D] embeddings, compared by inner product (L2-normalise them for cosine).
        candidates: [C, D] on the same device.
        query_owner: [Q] integers.
        candidate_owner: [C] integers.
        tile: rows and columns computed at once; it changes memory and speed, never the result.

    Raises:
        ValueError: shapes disagree, an embedding is not finite, or a query has no own candidate.
    """
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"expected embeddings [Q, D] and [C, D], got {tuple(queries.shape)} and {tuple(candidates.shape)}"
        )
    if query_owner.shape != queries.shape[:1] or candidate_owner.shape != candidates.shape[:1]:
        raise ValueError(
            f"expected one owner per embedding ({len(queries)} and {len(candidates)}), "
            f"got {tuple(query_owner.shape)} and {tuple(candidate_owner.shape)}"
        )
    _require_finite(queries, "queries")
    _require_finite(candidates, "candidates")

    parts = []
    for rows in tile_slices(len(queries), tile):
        # First only the tiles that hold own candidates (few, where the data is in order), then all of them.
        best = torch.full((len(queries[rows]),), -torch.inf, device=queries.device)
        for columns in tile_slices(len(candidates), tile):
            own = query_owner[rows, None] == candidate_owner[None, columns]
            if own.any():
                scores = similarity(queries[rows], candidates[columns])
                best = torch.maximum(best, scores.masked_fill(~own, -torch.inf).amax(1))
        _require_own(best, rows.start)
        counts = torch.zeros(3, len(best), dtype=torch.int64, device=queries.device)
        for columns in tile_slices(len(candidates), tile):
            own = query_owner[rows, None] == candidate_owner[None, columns]
            counts += torch.stack(_count(similarity(queries[rows], candidates[columns]), own, best))
        parts.append(counts)
    if not parts:
        return Ranks(*torch.zeros(3, 0, dtype=torch.int64, device=queries.device))
    return Ranks(*torch.cat(parts, dim=1))


def hits_at_k(ranks: Ranks, k: int) -> Tensor:
    """Probability [queries], float64, that an own candidate is among the first `k` when ties are in random order.

    1 or 0 wherever no tie crosses the border. Otherwise, with `t = k - above` places left for `o` own and `f` other
    tied candidates, `1 - C(f, t) / C(o + f, t)`.
    """
    places = (k - ranks.above).clamp(min=0)
    steps = torch.minimum(places, ranks.foreign_tied + 1)  # after these the product is zero or complete
    miss = torch.ones(len(places), dtype=torch.float64, device=places.device)
    for step in range(int(steps.max()) if len(steps) else 0):
        foreign = (ranks.foreign_tied - step).clamp(min=0)
        tied = (ranks.foreign_tied + ranks.own_tied - step).clamp(min=1)
        miss = torch.where(step < steps, miss * foreign / tied, miss)
    return 1 - miss


def chance_at_k(own_counts: Tensor, candidates: int, k: int) -> float:
    """Recall at `k` of a random ranking: queries own `own_counts` [Q] of `candidates` candidates. Exact."""
    return float(hits_at_k(Ranks(torch.zeros_like(own_counts), own_counts, candidates - own_counts), k).mean())


def top_k_accuracy(scores: Tensor, targets: Tensor, k: int = 1) -> float:
    """Share of the samples whose class is among the `k` best scores.

    Args:
        scores: [N, classes], floating point.
        targets: [N] class indices.
    """
    return float(hits_at_k(_class_ranks(scores, targets), k).mean())


def mean_per_class_accuracy(scores: Tensor, targets: Tensor) -> float:
    """Plain mean over the classes of their top-1 accuracies; classes without a sample do not enter.

    Args:
        scores: [N, classes], floating point.
        targets: [N] class indices.
    """
    metric = ClassificationAccuracy(scores.shape[1], ks=())
    metric.update(scores, targets)
    return metric.compute()["mean_per_class"]


class ClassificationAccuracy:
    """Top-k and mean per class accuracy, accumulated in sums that can be added up over batches and processes.

    Args:
        num_classes: number of classes.
        ks: the `k` of the top-k accuracies. A `k` > 1 that reaches `num_classes` is always 100 %, so it is left out.

    Attributes:
        hits: [len(ks) + 1, classes] float64, summed hits per class (the last row is top-1).
        counts: [classes] float64, samples per class. Both may be summed over ranks (`accelerator.reduce`).
    """

    def __init__(self, num_classes: int, ks: Sequence[int] = (1, 5)):
        self.num_classes = num_classes
        self.ks = tuple(k for k in ks if k == 1 or k < num_classes)
        self.reset()

    def reset(self) -> None:
        self.hits = torch.zeros(len(self.ks) + 1, self.num_classes, dtype=torch.float64)
        self.counts = torch.zeros(self.num_classes, dtype=torch.float64)

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch: scores [N, classes] in floating point, targets [N] class indices."""
        if scores.shape[1] != self.num_classes:
            raise ValueError(f"expected scores of {self.num_classes} classes, got shape {tuple(scores.shape)}")
        ranks = _class_ranks(scores, targets)
        targets = targets.cpu()
        self.counts += torch.bincount(targets, minlength=self.num_classes)
        for row, k in enumerate((*self.ks, 1)):
            self.hits[row].index_add_(0, targets, hits_at_k(ranks, k).cpu())

    def merge(self, other: "ClassificationAccuracy") -> None:
        """Add what another accumulator of the same kind has seen."""
        if (self.num_classes, self.ks) != (other.num_classes, other.ks):
            raise ValueError(
                f"cannot merge {other.num_classes} classes, ks={other.ks} into {self.num_classes}, ks={self.ks}"
            )
        self.hits += other.hits
        self.counts += other.counts

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, ... and `mean_per_class` in [0, 1], `samples`, and `classes_without_samples`."""
        total = self.counts.sum()
        if total == 0:
            raise ValueError("no samples were added, so there is no accuracy: call update() first")
        seen = self.counts > 0
        return {
            **{f"top{k}": float(self.hits[row].sum() / total) for row, k in enumerate(self.ks)},
            "mean_per_class": float((self.hits[-1][seen] / self.counts[seen]).mean()),
            "samples": float(total),
            "classes_without_samples": float((~seen).sum()),
        }


class RetrievalRecall:
    """Recall at several K, accumulated in sums that can be added up over batches of queries and processes.

    Args:
        ks: the K.

    Attributes:
        hits: [len(ks)] float64, summed hits.
        queries: [] float64, number of queries. Both may be summed over ranks (`accelerator.reduce`).
    """

    def __init__(self, ks: Sequence[int] = (1, 5, 10)):
        self.ks = tuple(ks)
        self.reset()

    def reset(self) -> None:
        self.hits = torch.zeros(len(self.ks), dtype=torch.float64)
        self.queries = torch.zeros((), dtype=torch.float64)

    def update(self, ranks: Ranks) -> None:
        """Add queries, each ranked against the whole set of candidates."""
        self.hits += torch.stack([hits_at_k(ranks, k).sum().cpu() for k in self.ks])
        self.queries += len(ranks.above)

    def merge(self, other: "RetrievalRecall") -> None:
        """Add what another accumulator of the same kind has seen."""
        if self.ks != other.ks:
            raise ValueError(f"cannot merge ks={other.ks} into ks={self.ks}")
        self.hits += other.hits
        self.queries += other.queries

    def compute(self) -> dict[str, float]:
        """`{"R@1": share of the queries, ...}`, each in [0, 1]."""
        if self.queries == 0:
            raise ValueError("no queries were added, so there is no recall: call update() first")
        return {f"R@{k}": float(hits / self.queries) for k, hits in zip(self.ks, self.hits, strict=True)}


def tile_slices(length: int, tile: int) -> Iterator[slice]:
    """Consecutive slices of at most `tile` entries."""
    return (slice(start, start + tile) for start in range(0, length, tile))


def _count(scores: Tensor, own: Tensor, best: Tensor) -> Ranks:
    """Counts of one tile: scores and own [Q, C], best own score [Q]."""
    tied = scores == best[:, None]
    return Ranks((scores > best[:, None]).sum(1), (tied & own).sum(1), (tied & ~own).sum(1))


def _class_ranks(scores: Tensor, targets: Tensor) -> Ranks:
    """Ranks of the target class; scores [N, classes], targets [N]."""
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(
            f"expected scores [N, classes] and targets [N], got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    wrong = ((targets < 0) | (targets >= scores.shape[1])).nonzero().flatten()
    if len(wrong):
        raise ValueError(f"target {int(targets[wrong[0]])} of sample {int(wrong[0])} is no class of {scores.shape[1]}")
    return ranks_from_scores(scores, targets[:, None] == torch.arange(scores.shape[1], device=targets.device))


def _require_finite(values: Tensor, what: str) -> None:
    wrong = (~torch.isfinite(values).all(1)).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"row {int(wrong[0])} of {what} is NaN or infinite ({len(wrong)} rows in all): no rank exists"
        )


def _require_own(best: Tensor, offset: int) -> None:
    missing = torch.isneginf(best).nonzero().flatten()
    if len(missing):
        raise ValueError(f"query {offset + int(missing[0])} has no own candidate: every query needs at least one")
