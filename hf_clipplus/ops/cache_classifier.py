"""Few-shot heads on frozen CLIP features: APE, APE-T, Tip-Adapter(-F), GDA and ProKeR as functions on tensors.

Conventions: C classes, D channels, N cached images, B queries. `text` `[C, D]` holds the text classifier in rows,
`keys` `[N, D]` the cached image features, `queries` `[B, D]`; all rows are L2-normalised CLIP embeddings. `labels`
`[N]` int64 is the class of each key: any order, any number of keys per class. Published code keeps `text` and `keys`
transposed, demands keys sorted by class with equally many per class, and multiplies with a dense one-hot matrix where
we sum per class. APE: 2304.01195 (the formulas are those of its published code); Tip-Adapter: 2207.09519; GDA:
2402.04087; ProKeR: 2501.11175.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 2**21
"""Affinities that exist at once in `cache_term`: 8 MiB in float32, and a few temporaries of that size."""


def text_classifier(prompt_embeds: Tensor, owner: Tensor, classes: int) -> Tensor:
    """Class weights from prompts: every prompt normalised, mean per class, normalised.

    Args:
        prompt_embeds: `[P, D]`, not necessarily normalised; templates and written sentences weigh the same.
        owner: `[P]` int64, class of each prompt.
        classes: C.

    Returns:
        `[C, D]`, rows L2-normalised.
    """
    return F.normalize(class_means(F.normalize(prompt_embeds, dim=-1), owner, classes), dim=-1)


def cache_keys(views: Tensor) -> Tensor:
    """Keys from augmented views: mean of the views that are NOT normalised, then normalised.

    Args:
        views: `[A, N, D]` encoder outputs of A augmentation passes.

    Returns:
        `[N, D]`, rows L2-normalised.
    """
    return F.normalize(views.mean(0), dim=-1)


def class_sums(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sums of `rows` `[N, ...]` per class, `[C, ...]`; zeros for a class without rows. Differentiable."""
    return rows.new_zeros(classes, *rows.shape[1:]).index_add(0, labels, rows)


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means of `rows` `[N, D]` per class, `[C, D]`; NaN for a class without rows."""
    return class_sums(rows, labels, classes) / torch.bincount(labels, minlength=classes)[:, None]


def channel_similarity(text: Tensor, keys: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """Mean product between vectors of different classes, per channel.

    The published code loops over all pairs of vectors of two classes, C^2 M^2 steps; in closed form it is
    `((sum_i m_i)^2 - sum_i m_i^2) / (C (C - 1))` with m_i the mean vector of class i, its text vector being one of its
    1 + K members. With unequal numbers of keys each pair of classes weighs the same.

    Args:
        text: `[C, D]`.
        keys, labels: `[N, D]`, `[N]`; left out, text alone counts (APE-T).

    Returns:
        `[D]` float64.
    """
    classes, means = len(text), text.double()
    if keys is not None:
        members = 1 + torch.bincount(labels, minlength=classes)
        means = (means + class_sums(keys.double(), labels, classes)) / members[:, None]
    return (means.sum(0).square() - means.square().sum(0)) / (classes * (classes - 1))


def channel_criterion(
    text: Tensor,
    keys: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    weights: tuple[float, float] = (0.5, 0.5),
) -> Tensor:
    """How well each channel separates the classes: `-w0 * similarity + w1 * variance`.

    The variance is that of the text vectors over classes (divisor C - 1), with and without keys.

    Args:
        text, keys, labels: see `channel_similarity`; APE gives keys, APE-T does not.
        weights: (w0, w1).

    Returns:
        `[D]` float64, higher is better.

    Raises:
        ValueError: fewer than two classes.
    """
    if len(text) < 2:
        raise ValueError(f"choosing channels compares classes: at least 2 are needed, got {len(text)}.")
    similarity = channel_similarity(text, keys, labels)
    return weights[1] * text.double().var(0) - weights[0] * similarity


def select_channels(criterion: Tensor, count: int) -> Tensor:
    """Indices `[count]` int64 of the largest criterion values, best first; equal values in channel order.

    Raises:
        ValueError: `count` is not between 1 and D.
    """
    if not 1 <= count <= len(criterion):
        raise ValueError(f"number of channels: expected 1 to {len(criterion)} (the feature width), got {count}.")
    return criterion.argsort(descending=True, stable=True)[:count]


def refine(rows: Tensor, indices: Tensor) -> Tensor:
    """The chosen channels `[..., Q]` of `rows` `[..., D]`, L2-normalised again."""
    return F.normalize(rows[..., indices], dim=-1)


def key_difficulty(keys: Tensor, labels: Tensor, text: Tensor) -> Tensor:
    """How little the text side believes in each key's class, in bits.

    `log2((1 + e) / (p + e))` with p the softmax probability of the key's own class and e = 1e-6. As published, cosines
    go into the softmax without a temperature, so that p is close to 1/C for every key.

    Args:
        keys, text: `[N, Q]`, `[C, Q]`, refined.
        labels: `[N]`.

    Returns:
        `[N]`, the key's weight is `exp(gamma * difficulty)`.
    """
    own = (keys @ text.T).softmax(-1).gather(1, labels[:, None]).squeeze(1)
    return torch.log2((1 + 1e-6) / (own + 1e-6))


def affinities(queries: Tensor, keys: Tensor, beta: float) -> Tensor:
    """`exp(-beta (1 - cosine))`, `[B, N]`."""
    return torch.exp(beta * (queries @ keys.T - 1))


def cache_term(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    classes: int,
    *,
    beta: float,
    values: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Weighted affinities summed per class, without a `[B, N]` or `[N, C]` matrix.

    Args:
        queries, keys: `[B, Q]`, `[N, Q]`; keys of APE-T are not normalised.
        labels: `[N]`.
        classes: C.
        beta: sharpness.
        values: `[N]` weight of each key, or `[N, C]` coefficients in place of one-hot labels; ones when left out.
        chunk_elements: affinities that exist at once.

    Returns:
        `[B, C]`, zero for a class without keys.
    """
    rows = max(1, chunk_elements // max(len(keys), 1))
    return torch.cat([_cache_term(part, keys, labels, classes, beta, values) for part in queries.split(rows)])


def _cache_term(
    queries: Tensor, keys: Tensor, labels: Tensor, classes: int, beta: float, values: Tensor | None
) -> Tensor:
    if values is not None and values.ndim == 2:
        return affinities(queries, keys, beta) @ values
    found = affinities(keys, queries, beta)  # [N, b]: a class sum then adds whole rows
    if values is not None:
        found = found * values[:, None]
    return class_sums(found, labels, classes).T


def add_residuals(
    text: Tensor, keys: Tensor, labels: Tensor, residuals: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """APE-T: one residual per class on Q channels, added to its text vector and to all its keys.

    Args:
        text, keys, labels: `[C, D]`, `[N, D]`, `[N]`.
        residuals: `[C, Q]`; column q belongs to channel `indices[q]`.
        indices: `[Q]`.

    Returns:
        text and keys with residuals, not normalised again, as published.
    """
    return text.index_add(1, indices, residuals), keys.index_add(1, indices, residuals[labels])


def gda_classifier(views: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Gaussian discriminant analysis with one shared, shrunk covariance (2402.04087).

    `P = D pinv((n - 1) S + tr(S) I)`, `w_c = P mu_c`, `b_c = log(1/C) - mu_c' P mu_c / 2`, S the covariance around the
    class means with divisor n - 1.

    Args:
        views: `[n, D]`, all augmented views of all images, L2-normalised.
        labels: `[n]`.
        classes: C; each needs a view.

    Returns:
        `[C, D]` weights and `[C]` biases of the dtype of `views`; computed in float64.
    """
    rows = views.double()
    means = class_means(rows, labels, classes)
    centred = rows - means[labels]
    scatter = centred.T @ centred
    shrunk = scatter + scatter.trace() / (len(rows) - 1) * torch.eye(rows.shape[1], dtype=rows.dtype).to(rows.device)
    weights = means @ (rows.shape[1] * torch.linalg.pinv(shrunk, hermitian=True))
    biases = -torch.tensor(float(classes)).log() - (weights * means).sum(1) / 2
    return weights.to(views.dtype), biases.to(views.dtype)


def proker_coefficients(keys: Tensor, labels: Tensor, text: Tensor, *, beta: float, strength: float) -> Tensor:
    """Kernel ridge regression of what the text classifier leaves over (2501.11175).

    `solve(k(F, F) / strength + I, L - F W)` with k = `affinities` and cosines without a temperature. Logits are then
    `queries @ text.T + affinities(queries, keys, beta) @ coefficients`.

    Args:
        keys, labels, text: `[N, D]`, `[N]`, `[C, D]`.
        beta: sharpness of the kernel.
        strength: the published lambda, > 0; smaller keeps closer to the text classifier.

    Returns:
        `[N, C]` of the dtype of `keys`; computed in float64.
    """
    keys64, text64 = keys.double(), text.double()
    left = affinities(keys64, keys64, beta) / strength + torch.eye(len(keys), dtype=torch.float64).to(keys.device)
    right = F.one_hot(labels, len(text)) - keys64 @ text64.T
    return torch.linalg.solve(left, right).to(keys.dtype)
