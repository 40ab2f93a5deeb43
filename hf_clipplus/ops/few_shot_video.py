"""What CLIP-FSAR and MA-CLIP do with text beside the alignment: video-text scores, and their part in the result."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import ALIGNMENTS, bi_mhm, frame_distances, mean_distances, otam


def prototype_distances(
    queries: Tensor,
    prototypes: Tensor,
    *,
    alignment: str = "otam",
    eps: float = 0.01,
    lam: float = 0.5,
    both_directions: bool = True,
) -> Tensor:
    """Distance of every query to every prototype by one of the metrics without parameters.

    Args:
        queries: `[..., Q, L, D]`.
        prototypes: `[..., N, M, D]`.
        alignment: "otam", "bimhm" or "mean".
        eps: of the cosine; lam, both_directions: of OTAM.

    Returns:
        `[..., Q, N]`.

    Raises:
        ValueError: unknown alignment.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment={alignment!r} is unknown: choose one of {', '.join(ALIGNMENTS)}.")
    if alignment == "mean":
        return mean_distances(queries, prototypes, eps=eps)
    distances = frame_distances(queries, prototypes, eps=eps)
    if alignment == "bimhm":
        return bi_mhm(distances)
    return otam(distances, lam=lam, both_directions=both_directions)


def video_text_logits(video_means: Tensor, text_embeds: Tensor, scale: Tensor | float, *, eps: float = 0.01) -> Tensor:
    """`scale * v.w / (|v| |w| + eps)`, the logits of CLIP-FSAR's video-text loss (published code).

    Args:
        video_means: `[..., V, D]`, mean over time of frame features.
        text_embeds: `[..., C, D]`.
        scale: inverse temperature; eps: 0 at inference, where the published code normalises exactly.

    Returns:
        `[..., V, C]`, at least float32.
    """
    cosines = 1 - frame_distances(video_means[..., :, None, :], text_embeds[..., :, None, :], eps=eps)[..., 0, 0]
    return scale * cosines


def combined_log_scores(text_logits: Tensor, distances: Tensor, *, beta: float = 0.9, divisor: float = 8.0) -> Tensor:
    """Log of `p_text^beta * p_visual^(1 - beta)` with `p_visual = softmax((8 - D) / 8)`; not renormalised.

    The published code divides by 8 whatever the number of frames is; the 8 it subtracts from cancels in the softmax.

    Args:
        text_logits: `[..., Q, N]`.
        distances: `[..., Q, N]` of the alignment.
        beta: weight of the text; divisor: see above.

    Returns:
        `[..., Q, N]`.
    """
    visual = F.log_softmax(-distances / divisor, dim=-1)
    return beta * F.log_softmax(text_logits, dim=-1) + (1 - beta) * visual


def video_losses(
    logits: Tensor, query_labels: Tensor, class_logits: Tensor, class_ids: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP-FSAR's loss `L_fs + weight * L_vt` and its two parts, each a mean cross-entropy.

    The published trainer divides by 4, its number of accumulated episodes; here that is the trainer's business.

    Args:
        logits: `[..., Q, N]`; query_labels: `[..., Q]`.
        class_logits: `[..., V, C]` against all training classes; class_ids: `[..., V]`.
        weight: of the video-text part.

    Returns:
        The sum, the few-shot part, the video-text part.
    """
    few_shot = F.cross_entropy(logits.flatten(0, -2), query_labels.flatten())
    video_text = F.cross_entropy(class_logits.flatten(0, -2), class_ids.flatten())
    return few_shot + weight * video_text, few_shot, video_text


def mixed_log_scores(text_logits: Tensor, distances: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Log of MA-CLIP's `alpha softmax(text) + (1 - alpha) softmax(-D)`: probabilities are mixed, not multiplied.

    Args:
        text_logits, distances: `[..., Q, N]`.
        alpha: weight of the text, 0..1.
    """
    visual, text = F.log_softmax(-distances, dim=-1), F.log_softmax(text_logits, dim=-1)
    if alpha in (0, 1):
        return text if alpha else visual
    return torch.logaddexp(text + math.log(alpha), visual + math.log(1 - alpha))


def video_and_text_losses(
    logits: Tensor,
    query_labels: Tensor,
    support_text_logits: Tensor,
    query_text_logits: Tensor,
    support_labels: Tensor,
    *,
    alpha: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """MA-CLIP's `alpha (L_S2T + L_Q2T) / 2 + (1 - alpha) L_Q2S` and its parts, each a mean cross-entropy.

    The divergence from one-hot labels that a reading note of the paper writes is the cross-entropy.

    Args:
        logits: `[..., Q, N]`, minus the distances; query_labels: `[..., Q]`.
        support_text_logits: `[..., S, N]`, query_text_logits: `[..., Q, N]`, against the episode's class texts.
        support_labels: `[..., S]`.
        alpha: weight of the texts, 0..1.

    Returns:
        The sum, L_Q2S, L_S2T, L_Q2T.
    """
    query_to_support, support_to_text, query_to_text = (
        F.cross_entropy(each.flatten(0, -2), labels.flatten())
        for each, labels in (
            (logits, query_labels),
            (support_text_logits, support_labels),
            (query_text_logits, query_labels),
        )
    )
    loss = alpha * (support_to_text + query_to_text) / 2 + (1 - alpha) * query_to_support
    return loss, query_to_support, support_to_text, query_to_text


def check_episode_labels(support_labels: Tensor, query_labels: Tensor | None = None) -> int:
    """The number of classes of episodes whose labels are 0..N-1, each with a support video.

    Args:
        support_labels: `[..., S]`; query_labels: `[..., Q]`.

    Returns:
        N.

    Raises:
        ValueError: labels that are no whole numbers, with gaps, different N in the episodes, or a query whose class
            has no support video.
    """
    for name, labels in (("support_labels", support_labels), ("query_labels", query_labels)):
        if labels is not None and labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} must be int64 labels 0..N-1, got {labels.dtype}.")
    episodes = support_labels.reshape(-1, support_labels.shape[-1]).tolist()
    classes = {max(labels) + 1 for labels in episodes}
    if len(classes) != 1 or any(set(labels) != set(range(max(labels) + 1)) for labels in episodes):
        shown = sorted(set(episodes[0]))
        raise ValueError(
            f"support labels must be 0..N-1 without gaps, the same N in every episode; the first has {shown}."
        )
    (count,) = classes
    if query_labels is not None and query_labels.numel() and not 0 <= query_labels.min() <= query_labels.max() < count:
        outside = sorted({label for label in query_labels.flatten().tolist() if not 0 <= label < count})
        raise ValueError(f"query labels {outside} have no support video; the support has classes 0..{count - 1}.")
    return count
