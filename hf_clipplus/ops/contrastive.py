"""Contrastive losses over sparse positive pairs, in tiles: memory grows with N + C, never with N x C.

The sigmoid loss is a separable sum, so its gradient is made in the forward pass, tile by tile, and backward only
multiplies it by the incoming gradient. The softmax loss keeps the log-sum-exp of every row and column, and backward
makes the tiles again. When `torch.distributed` is initialised every rank passes its own images and captions, positives
name captions by their number in the concatenation over ranks, and the mean over ranks of the returned losses is the
loss of the global batch (so that the gradient averaging of DDP gives the gradient of the global batch).

`negatives` are further texts that belong to no image (false captions): more negatives for every image of every rank,
and, having no positive, without a term of their own in the direction from texts to images.
"""

from typing import NamedTuple

import torch

from .distributed import RingExchange, gather_integers, gather_sizes, gather_with_grad, rank, world_size
from .positives import Positives

NORMALIZERS = ("per_image", "per_pair", "per_anchor")
TILE_ROWS = 256
TILE_COLS_PER_ROW = 16  # a tile has tile_size rows and 16 x tile_size columns: 1 M pairs, 4 MiB in float32


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    positives,
    log_scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    normalizer: str = "per_image",
    tile_size: int | None = None,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sigmoid loss with any number of positives per image (FFF Eq. 2; SigLIP Algorithm 1 when positives = diagonal).

    `loss = 1/Z sum_ic w_ic softplus(-m_ic z_ic)`, `z_ic = exp(log_scale) x_i . t_c + bias`, `m_ic = +1` on positives
    and -1 elsewhere. `bias` has the sign of SigLIP's Algorithm 1 (start at -10); the papers' printed formula has the
    other sign.

    Args:
        image_embeds: `[N, D]`, L2-normalised; this rank's images.
        text_embeds: `[C, D]`, L2-normalised; this rank's captions.
        positives: `Positives`, owners `[C]`, coordinates `[2, P]` or a bool mask `[N, C]`; with several ranks C counts
            the captions of all ranks (an owner vector is then read as the owners of the rank's own captions).
        log_scale: scalar tensor, log of the inverse temperature.
        bias: scalar tensor.
        weights: broadcastable to `[N, C]`; 0 leaves a pair out. Not available with several ranks, nor with negatives.
        normalizer: Z. "per_image": N; "per_pair": N (C + M); "per_anchor": N (C + M) with weight
            (1/positives of the image + 1/positives of the caption)/2 on positives (SigLIP+).
        tile_size: images per tile, a caption tile being 16 times as wide; None chooses 256. The result does not
            depend on it beyond rounding.
        negatives: `[M, D]`, L2-normalised; this rank's texts of no image.

    Returns:
        Scalar; float32 (float64 for float64 input), also under autocast. Double backward is not supported.

    Raises:
        ValueError: shapes that do not fit, an index out of range, an unknown normalizer.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer {normalizer!r} is unknown: choose one of {NORMALIZERS}.")
    _check_embeddings(image_embeds, text_embeds, negatives)
    if weights is not None and negatives is not None:
        raise ValueError("weights are per pair of images and captions; they are not supported with negatives.")
    text_embeds, sizes, pairs = _global_texts(positives, image_embeds, text_embeds, negatives)
    images = sum(gather_sizes(image_embeds.shape[0], image_embeds.device))
    captions = sum(sizes.texts)
    divisor = images / world_size()
    if normalizer != "per_image":
        divisor *= captions
    pair_weights = _anchor_weights(pairs, _compute_dtype(image_embeds)) if normalizer == "per_anchor" else None
    if weights is not None:
        if world_size() > 1:
            raise ValueError("weights are per pair of one process; they are not supported with several processes.")
        weights = weights.to(image_embeds.device, _compute_dtype(image_embeds)).expand(pairs.shape)
    return _TiledSigmoid.apply(
        *_to_compute_dtype(image_embeds, text_embeds, log_scale, bias),
        (pairs, pair_weights, weights, divisor, tile_size or TILE_ROWS, sizes.texts),
    )


def softmax_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    positives,
    log_scale: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    tile_size: int | None = None,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """CLIP's symmetric cross entropy; with several positives the log-probability is averaged over them.

    `loss = (L(images, captions) + L(captions, images)) / 2`,
    `L(Q, K) = mean_q [ logsumexp_k z_qk - mean_{k in P(q)} z_qk ]`, `z = exp(log_scale) Q K'`. With one positive per
    row this is CLIP (2103.00020, Fig. 3). A row without a positive adds nothing.

    Args:
        image_embeds, text_embeds, positives, log_scale: as in `sigmoid_loss`; the embeddings need no unit norm.
        label_smoothing: share of the target that is spread evenly over all keys, as in `torch`'s cross entropy.
        tile_size: rows per tile; None keeps a tile near a million pairs.
        negatives: `[M, D]`, this rank's texts of no image: keys of every image, queries of nothing.

    Returns:
        Scalar; float32 (float64 for float64 input), also under autocast.
    """
    _check_embeddings(image_embeds, text_embeds, negatives)
    text_embeds, sizes, pairs = _global_texts(positives, image_embeds, text_embeds, negatives)
    images, texts, log_scale = _to_compute_dtype(image_embeds, text_embeds, log_scale)
    plan = _SoftmaxPlan.of(pairs, images, sizes, label_smoothing, tile_size)
    return _TiledSoftmax.apply(images, gather_with_grad(texts, sizes.texts)[:, None], log_scale, plan)


def slot_softmax_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    log_scale: torch.Tensor,
    *,
    tile_size: int | None = None,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean over K caption slots of CLIP's loss between all images and the captions of that slot.

    `loss = 1/K sum_k softmax_loss(images, k-th captions)`: other captions of the same image are never negatives
    (DreamLIP's multi-positive loss).

    Args:
        image_embeds: `[N, D]`, L2-normalised; this rank's images.
        text_embeds: `[N, K, D]`, L2-normalised; the K captions of each.
        log_scale: scalar tensor, log of the inverse temperature.
        tile_size: rows per tile; None keeps a tile near a million pairs.
        negatives: `[M, D]`, L2-normalised, this rank's texts of no image: keys of every image in every slot.

    Returns:
        Scalar; float32 (float64 for float64 input), also under autocast.

    Raises:
        ValueError: not K captions for each image.
    """
    if text_embeds.ndim != 3 or len(text_embeds) != len(image_embeds):
        raise ValueError(f"text_embeds: expected [{len(image_embeds)}, K, D], got {list(text_embeds.shape)}.")
    _check_embeddings(image_embeds, text_embeds.flatten(0, 1), negatives)
    owner = torch.arange(len(image_embeds), device=image_embeds.device)
    if negatives is not None:
        negatives = negatives[:, None].expand(-1, text_embeds.shape[1], -1)
    text_embeds, sizes, pairs = _global_texts(owner, image_embeds, text_embeds, negatives)
    images, texts, log_scale = _to_compute_dtype(image_embeds, text_embeds, log_scale)
    plan = _SoftmaxPlan.of(pairs, images, sizes, 0.0, tile_size)
    return _TiledSoftmax.apply(images, gather_with_grad(texts, sizes.texts), log_scale, plan)


@torch.no_grad()
def logit_statistics(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    positives,
    log_scale: torch.Tensor,
    bias: torch.Tensor | float = 0.0,
) -> dict[str, torch.Tensor]:
    """Mean logit of the positive and of the negative pairs of one rank, in O((N + C + P) D).

    Args:
        image_embeds: `[N, D]`, L2-normalised.
        text_embeds: `[C, D]`, L2-normalised; the captions of the same rank (pairs with other ranks are left out).
        positives: as in `sigmoid_loss`.
        log_scale, bias: scalars.

    Returns:
        `positive_logit`, `negative_logit`: scalars; nan when there is no such pair.
    """
    images, texts = image_embeds.float(), text_embeds.float()
    n, c = images.shape[0], texts.shape[0]
    if isinstance(positives, Positives) and positives.shape[1] != c:
        start = sum(gather_sizes(c, texts.device)[: rank()])
        own = (positives.cols >= start) & (positives.cols < start + c)
        positives = Positives(positives.rows[own], positives.cols[own] - start, (n, c))
    pairs = Positives.coerce(positives, (n, c))
    positive_sum = (images[pairs.rows] * texts[pairs.cols]).sum()
    negative_sum = images.sum(0) @ texts.sum(0) - positive_sum
    scale = log_scale.float().exp()
    return {
        "positive_logit": scale * positive_sum / len(pairs) + bias if len(pairs) else scale.new_tensor(torch.nan),
        "negative_logit": (
            scale * negative_sum / (n * c - len(pairs)) + bias if n * c > len(pairs) else scale.new_tensor(torch.nan)
        ),
    }


def auto_bias(mean_cosine: float, positive_rate: float, log_scale: float) -> float:
    """The bias at which the mean pair has the probability `positive_rate`: `logit(pi) - exp(log_scale) s0`.

    Args:
        mean_cosine: s0, mean cosine of image and caption over random pairs at the start.
        positive_rate: pi, share of positives among all N x C pairs, in (0, 1).
        log_scale: log of the inverse temperature.
    """
    if not 0 < positive_rate < 1:
        raise ValueError(f"positive_rate must lie strictly between 0 and 1, got {positive_rate}.")
    rate = torch.tensor(positive_rate, dtype=torch.float64)
    return float(torch.logit(rate) - torch.tensor(log_scale, dtype=torch.float64).exp() * mean_cosine)


def _check_embeddings(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, negatives: torch.Tensor | None = None
) -> None:
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != image_embeds.shape[-1]):
        raise ValueError(f"negatives: expected [M, {image_embeds.shape[-1]}], got {list(negatives.shape)}.")
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            "image_embeds [N, D] and text_embeds [C, D] must be matrices of equal width, "
            f"got {list(image_embeds.shape)} and {list(text_embeds.shape)}."
        )


def _compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _to_compute_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dtype = _compute_dtype(tensors[0])
    return tuple(tensor.to(dtype) for tensor in tensors)


class _Sizes(NamedTuple):
    """Texts of every rank, captions first, then negatives; and how many of all texts are captions."""

    texts: list[int]
    captions: int


def _global_texts(
    positives, image_embeds: torch.Tensor, text_embeds: torch.Tensor, negatives: torch.Tensor | None
) -> tuple[torch.Tensor, _Sizes, Positives]:
    """This rank's captions and negatives in one, their numbers on all ranks, and the pairs with texts numbered so."""
    n, own_captions = image_embeds.shape[0], text_embeds.shape[0]
    own_negatives = 0 if negatives is None else negatives.shape[0]
    captions, added = zip(*gather_integers([own_captions, own_negatives], text_embeds.device), strict=True)
    shape = (n, sum(captions))
    is_owner = isinstance(positives, torch.Tensor) and positives.ndim == 1
    if world_size() > 1 and is_owner:
        own = Positives.coerce(positives, (n, own_captions))
        pairs = Positives(own.rows, own.cols + sum(captions[: rank()]), shape)
    else:
        pairs = Positives.coerce(positives, shape)
    sizes = _Sizes([c + a for c, a in zip(captions, added, strict=True)], sum(captions))
    if not any(added):
        return text_embeds, sizes, pairs
    if own_negatives:
        text_embeds = torch.cat([text_embeds, negatives.to(text_embeds.dtype)])
    ends = torch.tensor(captions, device=pairs.cols.device).cumsum(0)
    shift = torch.tensor((0, *added[:-1]), device=pairs.cols.device).cumsum(0)  # negatives of the ranks before
    cols = pairs.cols + shift[torch.searchsorted(ends, pairs.cols, right=True)]
    return text_embeds, sizes, Positives(pairs.rows, cols, (n, sum(sizes.texts)))


def _anchor_weights(pairs: Positives, dtype: torch.dtype) -> torch.Tensor:
    """`[P]`: (1/positives of the image + 1/positives of the caption)/2."""
    per_image, per_caption = _positive_counts(pairs)
    return 0.5 / per_image[pairs.rows].to(dtype) + 0.5 / per_caption[pairs.cols].to(dtype)


def _positive_counts(pairs: Positives) -> tuple[torch.Tensor, torch.Tensor]:
    """Positives of each own image and, over all ranks, of each caption."""
    per_image = torch.bincount(pairs.rows, minlength=pairs.shape[0])
    per_caption = torch.bincount(pairs.cols, minlength=pairs.shape[1])
    if world_size() > 1:
        torch.distributed.all_reduce(per_caption)
    return per_image, per_caption


def _tile_offsets(pairs: Positives, tile_rows: int, tile_cols: int) -> tuple[torch.Tensor, list[int]]:
    """Order of the pairs by tile (row-major), and where each tile's pairs begin and end in it."""
    tiles_across = -(-pairs.shape[1] // tile_cols)
    tile = (pairs.rows // tile_rows) * tiles_across + pairs.cols // tile_cols
    order = torch.argsort(tile, stable=True)
    counts = torch.bincount(tile, minlength=-(-pairs.shape[0] // tile_rows) * tiles_across)
    return order, [0, *counts.cumsum(0).tolist()]


class _SigmoidBlock:
    """Adds one block (own images against one rank's captions) to the loss and, if wanted, to the gradients."""

    def __init__(self, images, scale, bias, weights, tile_size, with_grad):
        self.images, self.scale, self.bias, self.weights = images, scale, bias, weights
        self.tile_rows, self.tile_cols, self.with_grad = tile_size, tile_size * TILE_COLS_PER_ROW, with_grad
        sum_dtype = torch.float32 if images.device.type == "mps" else torch.float64
        self.loss = torch.zeros((), dtype=sum_dtype, device=images.device)
        self.grad_bias = torch.zeros_like(self.loss)
        self.grad_images = torch.zeros_like(images) if with_grad else None
        self.buffers = None

    def add(self, texts: torch.Tensor, grad_texts: torch.Tensor | None, pairs: Positives, pair_weights) -> None:
        order, offsets = _tile_offsets(pairs, self.tile_rows, self.tile_cols)
        n, c = pairs.shape
        if self.buffers is None or self.buffers.shape[1] < min(self.tile_rows, n) * min(self.tile_cols, c):
            self.buffers = self.images.new_empty(2, min(self.tile_rows, n) * min(self.tile_cols, c))
        tile = 0
        for top in range(0, n, self.tile_rows):
            rows = slice(top, min(top + self.tile_rows, n))
            images = self.images[rows]
            scaled = images * self.scale
            for left in range(0, c, self.tile_cols):
                cols = slice(left, min(left + self.tile_cols, c))
                mine = order[offsets[tile] : offsets[tile + 1]]
                tile += 1
                at = (pairs.rows[mine] - top, pairs.cols[mine] - left)
                slope = self._tile(
                    scaled, texts[cols], at, rows, cols, None if pair_weights is None else pair_weights[mine]
                )
                if self.with_grad:
                    self.grad_bias += slope.sum()
                    self.grad_images[rows].addmm_(slope, texts[cols])
                    grad_texts[cols].addmm_(slope.T, images)

    def _tile(self, scaled, texts, at, rows, cols, pair_weights) -> torch.Tensor:
        """Loss of one tile; returns dloss/dz `[rows, cols]`, valid until the next call."""
        shape = (scaled.shape[0], texts.shape[0])
        z, s = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self.buffers)
        torch.mm(scaled, texts.T, out=z).add_(self.bias)
        flipped = -z[at]  # softplus(-m z): positives enter with the other sign
        z[at] = flipped
        if self.weights is None:
            self.loss += torch.clamp(z, min=0, out=s).sum()
            torch.sigmoid(z, out=s)
            self.loss -= _log_of_complement(s, out=z).sum()
        else:
            pairwise = z.clamp(min=0)
            torch.sigmoid(z, out=s)
            pairwise -= _log_of_complement(s, out=z)
            self.loss += (pairwise * self.weights[rows, cols]).sum()
            s *= self.weights[rows, cols]
        if pair_weights is None:
            s[at] = -s[at]
            return s
        own = pair_weights - 1 if self.weights is None else (pair_weights - 1) * self.weights[rows, cols][at]
        self.loss += (own * torch.nn.functional.softplus(flipped)).sum()
        s[at] = -s[at] * pair_weights
        return s


def _log_of_complement(s: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`log(sigmoid(|z|)) = log1p(-min(s, 1 - s))` for `s = sigmoid(z)`: precise at both ends, one exp for both."""
    torch.sub(1, s, out=out)
    torch.minimum(out, s, out=out)
    return torch.log1p(out.neg_(), out=out)


class _TiledSigmoid(torch.autograd.Function):
    """Ring over ranks, tiles within a rank; at world size 1 the ring has one station."""

    @staticmethod
    def forward(ctx, images, texts, log_scale, bias, plan):
        pairs, pair_weights, weights, divisor, tile_size, caption_sizes = plan
        with_grad = any(ctx.needs_input_grad)
        with torch.autocast(images.device.type, enabled=False):
            block = _SigmoidBlock(images, log_scale.exp(), bias, weights, tile_size, with_grad)
            grad_texts = _ring(block, texts.contiguous(), pairs, pair_weights, caption_sizes)
            if with_grad:
                factor = log_scale.exp() / divisor
                grad_images = block.grad_images.mul_(factor)
                grad_log_scale = (images * grad_images).sum()  # sum of g (z - bias) = sum of x . dx
                grad_bias = (block.grad_bias / divisor).to(bias.dtype)
                ctx.save_for_backward(grad_images, grad_texts.mul_(factor), grad_log_scale, grad_bias)
                ctx.scalar_shapes = (log_scale.shape, bias.shape)
            return (block.loss / divisor).to(images.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, texts, log_scale, bias = (saved * grad for saved in ctx.saved_tensors)
        return images, texts, log_scale.reshape(ctx.scalar_shapes[0]), bias.reshape(ctx.scalar_shapes[1]), None


def _ring(block: _SigmoidBlock, texts, pairs: Positives, pair_weights, caption_sizes: list[int]):
    """Every rank's captions pass by every rank's images, their gradient travels behind them and comes home.

    At step s rank r holds the captions of rank r - s. The next captions are under way while a block is computed.
    """
    world, me = len(caption_sizes), rank()
    ring = RingExchange() if world > 1 else None
    grad = torch.zeros_like(texts) if block.with_grad else None
    for step in range(world):
        source, following = (me - step) % world, (me - step - 1) % world
        upcoming = ring.start(texts, caption_sizes[following]) if step < world - 1 else None
        start = sum(caption_sizes[:source])
        inside = (pairs.cols >= start) & (pairs.cols < start + caption_sizes[source])
        here = Positives(pairs.rows[inside], pairs.cols[inside] - start, (pairs.shape[0], caption_sizes[source]))
        block.add(texts, grad, here, None if pair_weights is None else pair_weights[inside])
        if world > 1 and grad is not None:
            grad = ring.wait(ring.start(grad, caption_sizes[following]))
        if upcoming is not None:
            texts = ring.wait(upcoming)
    return grad


class _SoftmaxTile(NamedTuple):
    """A tile of the logits and its P positives: their places in it, and the share of each in its row and column."""

    rows: slice
    at: tuple[torch.Tensor, torch.Tensor]
    of_row: torch.Tensor
    of_col: torch.Tensor


class _SoftmaxPlan(NamedTuple):
    """What the softmax loss does with the logits of a slot; own images n, texts of all ranks C.

    `rows [n]` and `cols [C]` are weights of a row and a column in the sum over ranks, 0 without a positive;
    `smooth_rows` and `smooth_cols` what label smoothing takes of each logit; `own` this rank's texts.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    smooth_rows: torch.Tensor | None
    smooth_cols: torch.Tensor | None
    tiles: list[_SoftmaxTile]
    own: slice

    @classmethod
    def of(
        cls, pairs: Positives, images: torch.Tensor, sizes: _Sizes, smoothing: float, tile_size: int | None
    ) -> "_SoftmaxPlan":
        n, c = pairs.shape
        total = sum(gather_sizes(n, images.device))
        tile_size = tile_size or max(1, TILE_ROWS * TILE_ROWS * TILE_COLS_PER_ROW // max(c, 1))
        counts = _positive_counts(pairs)
        rows, cols = (
            world_size() / 2 / max(size, 1) * (count > 0).to(images.dtype)
            for size, count in zip((total, sizes.captions), counts, strict=True)
        )
        of_row, of_col = (
            (1 - smoothing) * weight[index] / count[index]
            for weight, count, index in zip((rows, cols), counts, (pairs.rows, pairs.cols), strict=True)
        )
        order, offsets = _tile_offsets(pairs, tile_size, max(c, 1))
        tiles = []
        for tile, top in enumerate(range(0, n, tile_size)):
            mine = order[offsets[tile] : offsets[tile + 1]]
            at = (pairs.rows[mine] - top, pairs.cols[mine])
            tiles.append(_SoftmaxTile(slice(top, min(top + tile_size, n)), at, of_row[mine], of_col[mine]))
        smooth = (smoothing / c * rows, smoothing / total * cols) if smoothing else (None, None)
        start = sum(sizes.texts[: rank()])
        return cls(rows, cols, *smooth, tiles, slice(start, start + sizes.texts[rank()]))


class _TiledSoftmax(torch.autograd.Function):
    """Both directions from the same logits: images `[n, D]` against captions `[C, K, D]`, the mean over K slots.

    A tile holds whole rows, so its rows' log-sum-exp is exact in one pass; that of a column grows from tile to tile.
    """

    @staticmethod
    def forward(ctx, images, texts, log_scale, plan):
        with torch.autocast(images.device.type, enabled=False):
            scale, slots = log_scale.exp(), texts.shape[1]
            by_row = images.new_empty(slots, len(images))
            by_col = images.new_full((slots, len(texts)), -torch.inf)
            off_row, off_col = torch.zeros_like(by_row), torch.zeros_like(by_col)  # what the targets take off
            for slot, keys in enumerate(texts.unbind(1)):
                for tile in plan.tiles:
                    z = (images[tile.rows] * scale) @ keys.T
                    by_row[slot, tile.rows] = z.logsumexp(1)
                    by_col[slot] = torch.logaddexp(by_col[slot], z.logsumexp(0))
                    positive = z[tile.at]
                    off_row[slot, tile.rows].index_add_(0, tile.at[0], tile.of_row * positive)
                    off_col[slot].index_add_(0, tile.at[1], tile.of_col * positive)
                    if plan.smooth_rows is not None:
                        off_row[slot, tile.rows] += plan.smooth_rows[tile.rows] * z.sum(1)
                        off_col[slot] += plan.smooth_cols * z.sum(0)
            if world_size() > 1:
                by_col = _logsumexp_over_ranks(by_col)
                torch.distributed.all_reduce(off_col)
            loss = _weighted(by_row, plan.rows) - off_row.sum()
            loss += _weighted(by_col[:, plan.own], plan.cols[plan.own]) - off_col[:, plan.own].sum()
            ctx.plan = plan
            # exp(z - these) are the probabilities times their weights
            ctx.save_for_backward(images, texts, log_scale, by_row - plan.rows.log(), by_col - plan.cols.log())
            return loss / slots

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, texts, log_scale, by_row, by_col = ctx.saved_tensors
        plan, grad_images, grad_texts = ctx.plan, torch.zeros_like(images), torch.zeros_like(texts)
        with torch.autocast(images.device.type, enabled=False):
            scale = log_scale.exp()
            factor, grad_log_scale = grad * scale / texts.shape[1], torch.zeros_like(scale)
            for slot, keys in enumerate(texts.unbind(1)):
                for tile in plan.tiles:
                    z = (images[tile.rows] * scale) @ keys.T
                    slope = (z - by_row[slot, tile.rows, None]).exp_()
                    slope += z.sub_(by_col[slot]).exp_()
                    slope[tile.at] -= tile.of_row + tile.of_col
                    if plan.smooth_rows is not None:
                        slope -= plan.smooth_rows[tile.rows, None] + plan.smooth_cols
                    grad_images[tile.rows].addmm_(slope, keys)
                    grad_texts[:, slot].addmm_(slope.T, images[tile.rows])
            grad_images *= factor
            for tile in plan.tiles:  # not at once, for the sake of memory
                grad_log_scale += (images[tile.rows] * grad_images[tile.rows]).sum()
            return grad_images, grad_texts.mul_(factor), grad_log_scale, None


def _weighted(sums: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of `weights * sums`, where a sum without weight may be infinite."""
    return torch.where(weights > 0, weights * sums, 0.0).sum()


def _logsumexp_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The log of the sum over ranks of `exp(values)`."""
    highest = values.clone()
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    total = (values - highest).exp_()
    torch.distributed.all_reduce(total)
    return highest.add_(total.log_())
