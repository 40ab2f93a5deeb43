"""Primary component matching (Long-CLIP, 2403.15378): what of an image a short caption is to match.

Shapes: B images of this process, D width of the joint space.
"""

import torch

from .contrastive import softmax_loss

LABEL_SMOOTHING = 0.1
COMPONENTS = 32
SMALLEST_GAP = 1e-10  # of eigenvalues, over the largest


def keep_components(embeds: torch.Tensor, components: int = COMPONENTS) -> torch.Tensor:
    """The embeddings without all but the first principal components of the batch, around its mean; not normalised.

    `(u - mean) P P' + mean`, P the first `components` right singular vectors of the centred batch; with a batch of at
    most `components + 1` nothing is left out. The gradient goes through P; unlike that of a singular value
    decomposition it depends on the gaps between kept and dropped components only, so equal singular values on one side
    do no harm.

    Args:
        embeds: `[B, D]`, this process's batch.
        components: how many are kept.

    Returns:
        `[B, D]`, float32 (float64 for float64 input), also under autocast.
    """
    with torch.autocast(embeds.device.type, enabled=False):
        embeds = embeds.to(torch.promote_types(embeds.dtype, torch.float32))
        mean = embeds.mean(0)
        centred = embeds - mean
        return centred @ _Projector.apply(centred, components).to(centred.dtype) + mean


class _Projector(torch.autograd.Function):
    """`[D, D]`, onto the first principal components of `[B, D]`, in float64.

    With eigenvalues l and vectors v of X'X, i kept and j dropped, `dP = sum_ij (v_i v_j' + v_j v_i') (v_i' d(X'X) v_j)
    / (l_i - l_j)`.
    """

    @staticmethod
    def forward(ctx, centred, components):
        double = centred.double()
        values, vectors = torch.linalg.eigh(double.T @ double)  # ascending
        kept = min(components, len(values))
        ctx.save_for_backward(double, values, vectors)
        ctx.kept, ctx.dtype = kept, centred.dtype
        top = vectors[:, len(values) - kept :]
        return top @ top.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        centred, values, vectors = ctx.saved_tensors
        cut = len(values) - ctx.kept
        (low, high), (dropped, kept) = values.split([cut, ctx.kept]), vectors.split([cut, ctx.kept], dim=1)
        gap = high[:, None] - low
        inverse = torch.where(gap > SMALLEST_GAP * values[-1], 1 / gap, 0.0)
        grad = grad.double()
        weights = (kept.T @ (grad + grad.T) @ dropped) * inverse
        onto = kept @ weights @ dropped.T
        return (centred @ (onto + onto.T)).to(ctx.dtype), None


def primary_component_losses(
    images: torch.Tensor,
    long_texts: torch.Tensor,
    short_texts: torch.Tensor,
    log_scale: torch.Tensor,
    *,
    components: int = COMPONENTS,
    label_smoothing: float = LABEL_SMOOTHING,
    tile_size: int | None = None,
    negatives: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP's loss of images and long captions, and of the images' primary components and short captions.

    Components are those of this process's batch, as published; negatives come from all processes.

    Args:
        images, long_texts, short_texts: `[B, D]`, L2-normalised.
        log_scale: scalar tensor, log of the inverse temperature.
        components, label_smoothing: see `keep_components` and `softmax_loss`.
        tile_size: rows per tile of the loss.
        negatives: `[M, D]`, false captions; keys of the images, not of their components, which are to keep the main
            things only and may lose what a caption is false in.

    Returns:
        The two losses; scalars, float32 (float64 for float64 input), also under autocast.
    """
    owner = torch.arange(len(images), device=images.device)
    options = {"label_smoothing": label_smoothing, "tile_size": tile_size}
    long = softmax_loss(images, long_texts, owner, log_scale, negatives=negatives, **options)
    short = softmax_loss(keep_components(images, components), short_texts, owner, log_scale, **options)
    return long, short
