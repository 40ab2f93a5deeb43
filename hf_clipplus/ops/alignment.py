"""How far apart two videos are, frame sequence against frame sequence: OTAM, Bi-MHM, TRX and the distance of means.

Queries are `[..., Q, L, D]` and prototypes `[..., N, M, D]`: any leading dimensions (episodes), any lengths L and M.
Distances and paths are computed in float32 (float64 stays), also under autocast: half precision cannot hold a sum over
a path. TRX, whose cost is matrix products, keeps the type it gets.
"""

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ALIGNMENTS = ("otam", "bimhm", "mean")  # metrics without parameters; TRX has some
_LOG_TWO = math.log(2.0)
_TINY = 1e-12  # least product of norms where `eps` is 0


def frame_distances(queries: Tensor, prototypes: Tensor, *, eps: float = 0.01) -> Tensor:
    """Cosine distance of every frame of every query to every frame of every prototype.

    `d(a, b) = 1 - a.b / (|a| |b| + eps)` (published code of CLIP-FSAR and MoLo; HyRSM's has eps = 0).

    Args:
        queries: `[..., Q, L, D]`, not normalised.
        prototypes: `[..., N, M, D]`, not normalised; leading dimensions broadcast.
        eps: added to the product of norms.

    Returns:
        `[..., Q, N, L, M]`.

    Raises:
        ValueError: other widths, or no frames.
    """
    if queries.ndim < 3 or prototypes.ndim < 3 or queries.shape[-1] != prototypes.shape[-1]:
        raise ValueError(
            "expected queries [..., Q, L, D] and prototypes [..., N, M, D] of one width D, got "
            f"{list(queries.shape)} and {list(prototypes.shape)}."
        )
    if 0 in (queries.shape[-2], prototypes.shape[-2]):
        raise ValueError(f"a video has no frames: {list(queries.shape)} against {list(prototypes.shape)}.")
    a, b = _at_least_float32(queries), _at_least_float32(prototypes)
    with torch.autocast(a.device.type, enabled=False):
        products = a.flatten(-3, -2) @ b.flatten(-3, -2).transpose(-1, -2)  # [..., Q L, N M]
        norms = a.norm(dim=-1).flatten(-2)[..., :, None] * b.norm(dim=-1).flatten(-2)[..., None, :]
        distances = 1 - products / (norms + eps).clamp_min(_TINY)
    shaped = distances.unflatten(-1, prototypes.shape[-3:-1]).unflatten(-3, queries.shape[-3:-1])  # [..., Q, L, N, M]
    return shaped.transpose(-3, -2)


def otam(distances: Tensor, *, lam: float = 0.5, both_directions: bool = True) -> Tensor:
    """Soft ordered alignment (OTAM with the boundary rule of CLIP-FSAR's code), in log space.

    One direction walks through the first axis (rows l) and may skip rows before the first and after the last column:
    with e the distances, padded by a zero column left and right, and softmin(x..) = -lam log sum exp(-x / lam),

    - row 0: `c[0, m] = e[0, m] + c[0, m-1]`, without a soft minimum; column 0: `c[l, 0] = 0`;
    - first column: `c = e + softmin(diagonal, up, left)`; other columns: `c = e + softmin(diagonal, left)`;
    - the zero column on the right: `c = softmin(diagonal, up, left)`; the result is its last row.

    A column depends only on the one before it, so all rows (of all pairs) are computed at once: with A = -c / lam,
    `A_m[l] = x[l, m] + logaddexp(A_(m-1)[l-1], A_(m-1)[l])`, and the last column has the closed form
    `2 sum_l exp(A_M[l]) - exp(A_M[L-1])`. Values and gradients are finite for all finite distances, where the
    published exp/log form is not.

    Args:
        distances: `[..., L, M]`, query time first.
        lam: smoothing, > 0 (0.5 in CLIP-FSAR, 0.1 in OTAM's and TRX's code).
        both_directions: add the same with the two time axes exchanged.

    Returns:
        `[...]`, a sum along the path: it grows with the number of frames.

    Raises:
        ValueError: no frames, or lam not above 0.
    """
    if distances.ndim < 2 or 0 in distances.shape[-2:]:
        raise ValueError(f"expected distances [..., L, M] with at least one frame each, got {list(distances.shape)}.")
    if not lam > 0:
        raise ValueError(f"lam must be above 0, got {lam}.")
    flat = _at_least_float32(distances).reshape(-1, *distances.shape[-2:])
    if both_directions and flat.shape[1] != flat.shape[2]:
        found = _SoftAlignment.apply(flat, lam, False) + _SoftAlignment.apply(flat.transpose(1, 2), lam, False)
    else:
        found = _SoftAlignment.apply(flat, lam, both_directions)
    return found.reshape(distances.shape[:-2])


def otam_path(distances: Tensor, *, lam: float = 0.5, both_directions: bool = True) -> Tensor:
    """How much each pair of frames is part of OTAM's soft path: the gradient of `otam`, 0..1 for one direction.

    Args:
        distances, lam, both_directions: see `otam`; of both directions the mean.

    Returns:
        `[..., L, M]`. In one direction each column sums to 1, but the first, where a path may stay for several rows.
    """
    with torch.enable_grad():
        leaf = _at_least_float32(distances.detach()).clone().requires_grad_()
        (path,) = torch.autograd.grad(otam(leaf, lam=lam, both_directions=both_directions).sum(), leaf)
    return path / 2 if both_directions else path


def bi_mhm(distances: Tensor) -> Tensor:
    """Bidirectional mean Hausdorff metric, as HyRSM's and MoLo's code sums it: order does not count.

    `D = sum_l min_m d(l, m) + sum_m min_l d(l, m)` (HyRSM's paper is said to take means; not confirmed).

    Args:
        distances: `[..., L, M]`.

    Returns:
        `[...]`.
    """
    distances = _at_least_float32(distances)
    return distances.amin(-1).sum(-1) + distances.amin(-2).sum(-1)


def mean_distances(queries: Tensor, prototypes: Tensor, *, eps: float = 0.01) -> Tensor:
    """Cosine distance of the means over time, `[..., Q, N]`: the baseline that no order of frames can change."""
    queries, prototypes = _at_least_float32(queries), _at_least_float32(prototypes)
    means = (queries.mean(-2, keepdim=True), prototypes.mean(-2, keepdim=True))
    return frame_distances(*means, eps=eps)[..., 0, 0]


def average_by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean of the rows of each class; classes may have different numbers of rows, in any order.

    Args:
        values: `[..., S, *F]`, where labels are `[..., S]`.
        labels: int64, 0..classes-1, each at least once.
        classes: N.

    Returns:
        `[..., N, *F]`.
    """
    shape = values.shape[labels.ndim :]
    member = F.one_hot(labels, classes).to(values.dtype).transpose(-1, -2)  # [..., N, S]
    weight = member / member.sum(-1, keepdim=True)
    with torch.autocast(values.device.type, enabled=False):
        return (weight @ values.flatten(labels.ndim)).unflatten(-1, shape) if shape else weight @ values


def sinusoidal_positions(length: int, dim: int, *, scale: float = 0.1, base: float = 10000.0) -> Tensor:
    """TRX's position code `[length, dim]`: sines on even, cosines on odd channels, times `scale`."""
    steps = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(base) / dim))
    code = torch.zeros(length, dim)
    code[:, 0::2] = torch.sin(steps * rates)
    code[:, 1::2] = torch.cos(steps * rates)[:, : dim // 2]
    return code * scale


def frame_tuples(frames: int, cardinality: int) -> Tensor:
    """All ordered `cardinality`-subsets of `frames` frames in lexicographic order, `[P, cardinality]` int64."""
    if not 1 <= cardinality <= frames:
        raise ValueError(f"tuples of {cardinality} frames cannot be taken from {frames} frames.")
    return torch.tensor(list(combinations(range(frames), cardinality)))


def project_tuples(features: Tensor, weight: Tensor, bias: Tensor | None, tuples: Tensor) -> Tensor:
    """A linear layer on the concatenated frames of every tuple, each frame multiplied once per slot.

    Args:
        features: `[..., T, D]`.
        weight: `[O, w D]`; bias: `[O]`.
        tuples: `[P, w]`, see `frame_tuples`.

    Returns:
        `[..., P, O]`.
    """
    frames, slots = features.shape[-2], tuples.shape[1]
    by_slot = weight.reshape(-1, features.shape[-1])  # [O w, D], one product for all slots
    projected = F.linear(features, by_slot).unflatten(-1, (-1, slots)).movedim(-1, -3)  # [..., w, T, O]
    chosen = F.one_hot(tuples + frames * torch.arange(slots, device=tuples.device), slots * frames).sum(1)  # [P, w T]
    found = chosen.to(projected.dtype) @ projected.flatten(
        -3, -2
    )  # a sum by selection, whose backward is a product too
    return found if bias is None else found + bias


def trx_distances(
    query_keys: Tensor,
    query_values: Tensor,
    support_keys: Tensor,
    support_values: Tensor,
    labels: Tensor,
    classes: int,
) -> Tensor:
    """TRX for one cardinality: each query tuple against the prototype that it attends to in each class.

    The softmax runs over all tuples of all videos of a class jointly; `D = mean over tuples |v_q - prototype|^2`
    (logits are `-D`). Keys are what the attention compares (after their layer norm), scaled by 1/sqrt(O).

    Args:
        query_keys, query_values: `[Q, P, O]`.
        support_keys, support_values: `[S, P, O]`.
        labels: `[S]` int64, class of each support video, 0..classes-1, each at least once, in any order.
        classes: N.

    Returns:
        `[Q, N]`.
    """
    counts = torch.bincount(labels, minlength=classes)
    shots, (queries, tuples, width) = int(counts.max()), query_keys.shape
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
    slot = labels[order] * shots + place  # classes with fewer videos leave masked places

    def by_class(rows: Tensor) -> Tensor:
        if int(counts.min()) == shots:
            return rows[order].reshape(classes, shots * tuples, width)
        padded = rows.new_zeros(classes * shots, tuples, width).index_copy(0, slot, rows[order])
        return padded.reshape(classes, shots * tuples, width)

    scores = query_keys.flatten(0, 1) * width**-0.5 @ by_class(support_keys).transpose(1, 2)  # [N, Q P, K P]
    if int(counts.min()) != shots:
        filled = torch.arange(shots, device=labels.device) < counts[:, None]  # [N, K]
        scores = scores.masked_fill(~filled.repeat_interleave(tuples, 1)[:, None], -torch.inf)
    prototypes = scores.softmax(-1) @ by_class(support_values)
    gaps = query_values - prototypes.unflatten(1, (queries, tuples))
    return gaps.square().sum(-1).mean(-1).T


class _SoftAlignment(torch.autograd.Function):
    """The soft minimum over all monotone paths, of one direction or (of square matrices) of both; see `otam`.

    Written out because autograd's graph of the recurrence costs several times the numbers in it.
    """

    @staticmethod
    def forward(ctx, distances: Tensor, lam: float, both: bool) -> Tensor:  # [pairs, L, M] -> [pairs]
        pairs, rows, columns = distances.shape
        table = distances.new_empty(columns, rows + 1, 2 * pairs if both else pairs)
        table[:, 0] = -torch.inf  # a row above the first, which nothing comes from
        torch.div(distances.permute(2, 1, 0), -lam, out=table[:, 1:, :pairs])
        if both:
            torch.div(distances.permute(1, 2, 0), -lam, out=table[:, 1:, pairs:])
        first, log_two = table[0, 1:].unbind(), table.new_tensor(_LOG_TWO)
        for row in range(1, rows):
            first[row].add_(torch.logaddexp(first[row - 1], log_two))
        above, same = table[:, :-1].unbind(), table[:, 1:].unbind()
        for column in range(1, columns):
            same[column].add_(torch.logaddexp(above[column - 1], same[column - 1]))
        highest = same[-1].amax(0)
        share = (same[-1] - highest).exp_()
        share[:-1] *= 2
        total = share.sum(0)
        ctx.both = both
        ctx.save_for_backward(table, share.div_(total))
        score = total.log_().add_(highest).mul_(-lam)
        return score[:pairs] + score[pairs:] if both else score

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_score: Tensor) -> tuple[Tensor, None, None]:
        table, share = ctx.saved_tensors
        grad = torch.empty_like(table[:, 1:])
        torch.mul(share, grad_score.repeat(2) if ctx.both else grad_score, out=grad[-1])
        stays = torch.sigmoid(table[:-1, 1:] - table[:-1, :-1])  # share that came from the same row, not from above
        leaves = (1 - stays[:, 1:]).unbind()
        of_row, of_next, stays, columns = grad[:, :-1].unbind(), grad[:, 1:].unbind(), stays.unbind(), grad.unbind()
        for column in range(len(table) - 1, 0, -1):
            torch.mul(columns[column], stays[column - 1], out=columns[column - 1])
            of_row[column - 1].addcmul_(of_next[column], leaves[column - 1])
        goes_on = torch.sigmoid(table[0, 1:-1] - _LOG_TWO).unbind()  # in the first column a row also adds to the next
        first = grad[0].unbind()
        for row in range(len(goes_on) - 1, -1, -1):
            first[row].addcmul_(first[row + 1], goes_on[row])
        if not ctx.both:
            return grad.permute(2, 1, 0), None, None
        one, other = grad.chunk(2, dim=2)
        return one.permute(2, 1, 0) + other.permute(2, 0, 1), None, None


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
