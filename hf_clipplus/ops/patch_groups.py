"""DreamLIP (2403.17007): K captions of an image as positives, and each caption tied to the patches it describes.

Shapes: B images of this process, K captions each, M patches, D width of the joint space. Every embedding is
L2-normalised. Over several processes the mean over ranks of the returned losses is the loss of the global batch, as in
`ops.contrastive`. Sections are those of the paper; the published code is followed where they differ, except where it
cannot be meant (it groups captions with the patches of other images).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .contrastive import softmax_loss
from .distributed import gather_integers, gather_sizes, gather_with_grad, rank, world_size
from .grouping import at_least_float32
from .tiles import sum_over_tiles

WEIGHT_NORMALIZATIONS = ("minmax", "softmax")
GROUPING_NEGATIVES = ("batch", "within_image", "cross_image")
MINMAX_EPS = 1e-10
SOFTMAX_TILE_NUMBERS = 2**18  # pairs of captions and groups; a quarter of what softmax_loss takes, at no cost in time
TILE_NUMBERS = 2**22  # intermediates of one tile; 16 MiB in float32


class PatchGroups(NamedTuple):
    """What each caption takes from the patches of its image."""

    embeds: torch.Tensor
    """`[B, K, D]`, L2-normalised."""
    weights: torch.Tensor
    """`[B, K, M]`, not negative, sums of 1."""
    similarity: torch.Tensor
    """`[B, K, M]`, cosines of captions and patches."""


def patch_weights(similarity: torch.Tensor, *, normalization: str = "minmax", threshold: float = -1.0) -> torch.Tensor:
    """Shares of the patches in a caption's group: normalised similarities, the small ones cut off, sums of 1.

    Gradients flow through everything but the cut. Where nothing is left (equal patches, a single patch, a threshold
    above 1) all patches have the same share; the published code gives NaN there.

    Args:
        similarity: `[..., M]`.
        normalization: "minmax" (to [0, 1] over the patches) or "softmax" (temperature 1).
        threshold: similarities below it are cut off after normalisation; negative means 1/M. 0 is the published
            code's default and cuts nothing off.

    Raises:
        ValueError: unknown normalization.
    """
    if normalization not in WEIGHT_NORMALIZATIONS:
        raise ValueError(f"normalization {normalization!r} is unknown: choose one of {WEIGHT_NORMALIZATIONS}.")
    patches = similarity.shape[-1]
    if normalization == "softmax":
        shares = similarity.softmax(-1)
    else:
        low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
        shares = (similarity - low) / (high - low + MINMAX_EPS)
    shares = shares.masked_fill(shares < (1 / patches if threshold < 0 else threshold), 0.0)
    total = shares.sum(-1, keepdim=True)
    empty = total == 0
    return torch.where(empty, 1 / patches, shares / torch.where(empty, 1.0, total))


def group_patches(
    texts: torch.Tensor, patches: torch.Tensor, *, normalization: str = "minmax", threshold: float = -1.0
) -> PatchGroups:
    """Per caption, the mean of its image's patches weighted by what the caption says (section 3.3); float32 at least.

    Args:
        texts: `[B, K, D]`.
        patches: `[B, M, D]`.
        normalization, threshold: see `patch_weights`.
    """
    with torch.autocast(texts.device.type, enabled=False):
        texts, patches = at_least_float32(texts), at_least_float32(patches)
        similarity = texts @ patches.transpose(1, 2)  # [B, K, M]
        weights = patch_weights(similarity, normalization=normalization, threshold=threshold)
        return PatchGroups(F.normalize(weights @ patches, dim=-1), weights, similarity)


def grouping_loss(
    texts: torch.Tensor,
    patches: torch.Tensor,
    log_scale: torch.Tensor,
    *,
    negatives: str = "batch",
    normalization: str = "minmax",
    threshold: float = -1.0,
    max_negatives: int | None = None,
    tile_size: int | None = None,
) -> torch.Tensor:
    """Loss between captions and their groups of patches ("subcaption-specific grouping", section 3.3).

    - "batch" (published code): both directions over all captions and groups of the batch, those of the same image
      among the negatives.
    - "within_image" (paper): each caption against the K groups of its image, that direction alone.
    - "cross_image": each caption against the groups that it itself makes of other images' patches. With the other two
      a negative group is made by another caption and can be told apart by comparing the two texts alone, so that
      patches learn little (FLAIR's observation); here only the patches differ.

    Args:
        texts: `[B, K, D]`.
        patches: `[B, M, D]`.
        log_scale: scalar tensor, log of the inverse temperature of this loss.
        negatives: see above.
        normalization, threshold: see `patch_weights`.
        max_negatives: of "cross_image": images that a caption is held against beside its own, the next ones of the
            batch; None: all of them (B K groups per image).
        tile_size: rows per tile (captions; images for "cross_image"); None chooses.

    Returns:
        Scalar; float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: shapes that do not fit, an unknown option.
    """
    if negatives not in GROUPING_NEGATIVES:
        raise ValueError(f"grouping negatives {negatives!r} are unknown: choose one of {GROUPING_NEGATIVES}.")
    if texts.ndim != 3 or patches.ndim != 3 or (len(texts), texts.shape[2]) != (len(patches), patches.shape[2]):
        raise ValueError(
            "texts [B, K, D] and patches [B, M, D] must be of the same images and width, "
            f"got {list(texts.shape)} and {list(patches.shape)}."
        )
    weighting = {"normalization": normalization, "threshold": threshold}
    if negatives == "cross_image":
        return _cross_image_loss(texts, patches, log_scale, weighting, max_negatives, tile_size)
    groups = group_patches(texts, patches, **weighting).embeds
    if negatives == "within_image":
        return within_image_loss(texts, groups, log_scale)
    owner = torch.arange(texts.shape[0] * texts.shape[1], device=texts.device)
    tile_size = tile_size or softmax_tile_rows(len(owner))
    return softmax_loss(groups.flatten(0, 1), texts.flatten(0, 1), owner, log_scale, tile_size=tile_size)


def softmax_tile_rows(captions: int) -> int:
    """Rows of a tile of the loss between so many captions and their groups."""
    return max(64, SOFTMAX_TILE_NUMBERS // captions)


def within_image_loss(queries: torch.Tensor, keys: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each query over the K keys of its own image, mean over the B K queries of all processes.

    Args:
        queries, keys: `[B, K, D]`; captions and groups, or the other way round.
        log_scale: scalar tensor.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = at_least_float32(queries), at_least_float32(keys)
        logits = log_scale.to(queries.dtype).exp() * queries @ keys.transpose(1, 2)  # [B, K, K]
        rows = logits.logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)
        return rows.sum() / (queries.shape[1] * _images_per_rank(queries))


def _cross_image_loss(texts, patches, log_scale, weighting, max_negatives, tile_size) -> torch.Tensor:
    texts, patches = at_least_float32(texts), at_least_float32(patches)
    sizes = gather_sizes(len(texts), texts.device)
    images = sum(sizes)
    shown = images if max_negatives is None else min(images, 1 + max_negatives)
    first = sum(sizes[: rank()])
    own = torch.arange(first, first + len(texts), device=texts.device)
    following = torch.arange(shown, device=texts.device)

    def loss_of_rows(texts, own, patches, log_scale):
        candidates = patches[(own[:, None] + following) % images]  # [b, shown, M, D], the own image first
        similarity = torch.einsum("bkd,bnmd->bknm", texts, candidates)
        weights = patch_weights(similarity, **weighting)
        groups = F.normalize(torch.einsum("bknm,bnmd->bknd", weights, candidates), dim=-1)
        logits = log_scale.exp() * torch.einsum("bkd,bknd->bkn", texts, groups)
        return (logits.logsumexp(-1) - logits[..., 0]).sum()

    captions, (count, dim) = texts.shape[1], patches.shape[1:]
    numbers_of_image = shown * (count * dim + captions * (count + dim))
    total = sum_over_tiles(
        loss_of_rows,
        (texts, own),
        (gather_with_grad(patches, sizes), log_scale.to(texts.dtype)),
        tile_size=tile_size or max(1, TILE_NUMBERS // numbers_of_image),
    )
    return total / (captions * images / world_size())


def circle_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    *,
    gamma: float = 32.0,
    margin: float = 0.25,
    tile_size: int | None = None,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """A tenth of the circle loss of the images over all captions (an option of the published code, not of the paper).

    `1/10 mean_i softplus(logsumexp_own(-gamma a+ (s - 1 + margin)) + logsumexp_other(gamma a- (s - margin)))` with raw
    cosines s and, without gradient, `a+ = max(0, 1 + margin - s)` and `a- = max(0, s + margin)`.

    Args:
        images: `[B, D]`.
        texts: `[B, K, D]`.
        gamma, margin: see above.
        tile_size: images per tile; None keeps a tile near four million numbers.
        negatives: `[M, D]`, this process's texts of no image.

    Returns:
        Scalar; float32 (float64 for float64 input), also under autocast.
    """
    images, texts = at_least_float32(images), at_least_float32(texts)
    sizes, added = zip(
        *gather_integers([len(images), 0 if negatives is None else len(negatives)], images.device), strict=True
    )
    captions = texts.shape[1]
    all_texts = gather_with_grad(texts, list(sizes)).flatten(0, 1)
    if any(added):
        negatives = texts[:0, 0] if negatives is None else at_least_float32(negatives)
        all_texts = torch.cat([all_texts, gather_with_grad(negatives, list(added))])
    first = sum(sizes[: rank()])
    own = torch.arange(first, first + len(images), device=images.device)
    owner = torch.arange(len(all_texts), device=images.device) // captions  # of a negative: no image's number

    def loss_of_rows(images, own, texts):
        similarity = images @ texts.T
        mine = owner == own[:, None]
        pull = (1 + margin - similarity).clamp(min=0).detach()
        push = (similarity + margin).clamp(min=0).detach()
        positive = (-gamma * pull * (similarity - 1 + margin)).masked_fill(~mine, -torch.inf).logsumexp(1)
        negative = (gamma * push * (similarity - margin)).masked_fill(mine, -torch.inf).logsumexp(1)
        return F.softplus(positive + negative).sum()

    tile_size = tile_size or max(1, TILE_NUMBERS // len(all_texts))
    return sum_over_tiles(loss_of_rows, (images, own), (all_texts,), tile_size=tile_size) / (
        10 * _images_per_rank(images)
    )


def _images_per_rank(rows: torch.Tensor) -> float:
    """Images of the global batch over processes: what a rank's sum over its images is divided by."""
    return sum(gather_sizes(len(rows), rows.device)) / world_size()
