"""One embedding, or one score, of a long text that was encoded in segments.

Shapes: C texts, S segments of the longest, D width; `mask [C, S]` is True where a text has a segment.
"""

import torch
import torch.nn.functional as F

SEGMENT_SCORES = ("mean", "max", "mean_similarity")


def pad_segments(embeds: torch.Tensor, owner: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat segments to one row per text.

    Args:
        embeds: `[P, ...]`, the segments of text 0, then those of text 1, ...
        owner: `[P]` int64, the text of each segment: 0, ..., 0, 1, ..., C - 1.

    Returns:
        `[C, S, ...]` with zeros where a text has no segment, and the mask `[C, S]`.

    Raises:
        ValueError: owners that do not start at 0, are not in order, or leave a text out.
    """
    steps = owner.diff()
    if (
        owner.ndim != 1
        or len(owner) != len(embeds)
        or not len(owner)
        or owner[0] != 0
        or ((steps != 0) & (steps != 1)).any()
    ):
        raise ValueError(
            f"segment_owner: expected {len(embeds)} numbers 0, ..., 0, 1, ..., in order and without a gap, "
            f"got {owner.tolist()}."
        )
    counts = owner.bincount()
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    mask = torch.arange(int(counts.max()), device=owner.device) < counts[:, None]
    padded = embeds.new_zeros(*mask.shape, *embeds.shape[1:])
    return padded.index_put((owner, place), embeds), mask


def weighted_mean(embeds: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over segments, `[C, D]`, not normalised.

    Args:
        embeds: `[C, S, D]`.
        weights: `[C, S]`, not negative, 0 where a text has no segment, not all 0.
    """
    weights = weights.to(embeds.dtype)
    return torch.einsum("cs,csd->cd", weights / weights.sum(-1, keepdim=True), embeds)


def segment_scores(
    images: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor, *, score: str = "mean"
) -> torch.Tensor:
    """Similarity of images and texts in segments, `[N, C]`.

    Args:
        images: `[N, D]`, L2-normalised.
        segments: `[C, S, D]`, L2-normalised.
        mask: `[C, S]`.
        score: "mean" (cosine with the normalised mean of the segments), "max" (the best segment's cosine) or
            "mean_similarity" (the mean of the segments' cosines).

    Raises:
        ValueError: unknown score.
    """
    if score not in SEGMENT_SCORES:
        raise ValueError(f"segment score {score!r} is unknown: choose one of {SEGMENT_SCORES}.")
    if score == "mean":
        return images @ F.normalize(weighted_mean(segments, mask), dim=-1).T
    cosines = torch.einsum("nd,csd->ncs", images, segments)
    if score == "max":
        return cosines.masked_fill(~mask, -torch.inf).amax(-1)
    return (cosines * mask).sum(-1) / mask.sum(-1)
