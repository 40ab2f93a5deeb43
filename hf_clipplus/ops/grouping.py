"""GroupViT (2202.11094): assigning tokens to groups, merging them, its losses, and what a group is called.

Shapes: B images, M tokens (patches, or groups of the stage before), G groups, N classes, D width of the joint space.
Sections are those of the paper; where the published code differs, the code is followed and the docstring says so.
"""

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F

from .contrastive import softmax_loss
from .distributed import gather_sizes, world_size
from .positives import default_owners

MAX_SCALE = 100.0
MULTI_LABEL_FORMS = ("mean_of_logs", "log_of_sum")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half types in float32, everything else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gumbel_noise(like: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Independent Gumbel(0, 1) numbers of the shape and device of `like`, float32 and always finite."""
    exponential = torch.empty_like(like, dtype=torch.float32).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()


def assign_to_groups(
    logits: torch.Tensor, *, hard: bool = True, noise: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which group each token belongs to (Eq. 2-4), temperature 1; in float32 at least whatever the logits are.

    Args:
        logits: `[B, G, M]`, scaled products of group queries and token keys. The paper scales them not at all, the
            published code by width^-0.5.
        hard: one group per token, with the gradient of the soft assignment (straight-through); else the soft one.
        noise: `[B, G, M]`, added to the logits of the assignment (Gumbel noise in training); None: no noise.

    Returns:
        The assignment that merges, and the soft assignment without noise, both `[B, G, M]`, sums of 1 over groups.
    """
    logits = at_least_float32(logits)
    clean = logits.softmax(1)
    soft = clean if noise is None else (logits + noise.to(logits.dtype)).softmax(1)
    if not hard:
        return soft, clean
    one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft, clean


def merge_weights(assignment: torch.Tensor, *, eps: float = 1.0, normalize: bool = True) -> torch.Tensor:
    """Weights with which a group takes up its tokens (Eq. 5): shares of the assignment, float32.

    The paper divides by the sum over the tokens of a group; the published code by that sum + 1, so that an empty group
    takes up nothing and a group of one token half of it.

    Args:
        assignment: `[B, G, M]`.
        eps: added to the sum.
        normalize: False leaves the sum as it is (the code's option `sum_assign`).
    """
    return assignment / (assignment.sum(-1, keepdim=True) + eps) if normalize else assignment


def roll_out(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """From patches to the groups of the last stage: `[B, patches, G]`, the product of the stages' assignments.

    Args:
        maps: one `[B, G_l, M_l]` per stage, with `M_0` patches and `M_l = G_(l-1)`.
    """
    result = maps[0].transpose(1, 2)
    for later in maps[1:]:
        result = result @ later.transpose(1, 2)
    return result


def group_statistics(hard: Sequence[torch.Tensor], soft: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """How the groups are used: what to watch in training, since GroupViT can collapse into few groups.

    Args:
        hard, soft: per stage, `[B, G, M]`; the assignments that were used, and the soft ones without noise.

    Returns:
        Scalars: `groups_used_<stage>` (groups with a token, mean over images), `assignment_entropy_<stage>` (of a
        token over groups, in nats; ln G says that nothing is decided), and `groups_with_pixels` (of the last stage).
    """
    found, owner = {}, None
    for stage, (used, clean) in enumerate(zip(hard, soft, strict=True)):
        token_owner = used.detach().argmax(1)  # [B, M]
        found[f"groups_used_{stage}"] = _groups_with_tokens(token_owner, used.shape[1])
        clean = clean.detach()
        found[f"assignment_entropy_{stage}"] = -torch.special.xlogy(clean, clean).sum(1).mean()
        owner = token_owner if owner is None else token_owner.gather(1, owner)
    return found | {"groups_with_pixels": _groups_with_tokens(owner, hard[-1].shape[1])}


def _groups_with_tokens(owner: torch.Tensor, groups: int) -> torch.Tensor:
    return F.one_hot(owner, groups).any(1).sum(1).float().mean()


def clamp_log_scale(log_scale: torch.Tensor) -> torch.Tensor:
    """The log of `min(exp(log_scale), 100)`; no gradient above the limit."""
    return log_scale.clamp(max=log(MAX_SCALE))


def _double(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In float64, where the device has it: at a scale of 100 the logits lose three digits, and float32 has seven."""
    return tensors if tensors[0].device.type == "mps" else tuple(tensor.double() for tensor in tensors)


def image_text_loss(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """CLIP's loss with a clamped scale (Eq. 7): the mean of both directions, over the batches of all processes.

    Computed in float64, returned in the dtype of the embeddings, but at least float32.

    Args:
        images, texts: `[B, D]`, L2-normalised; text i belongs to image i.
        log_scale: scalar.
    """
    owner = torch.arange(len(images), device=images.device)
    loss = softmax_loss(*_double(images, texts), owner, clamp_log_scale(log_scale))
    return loss.to(at_least_float32(images).dtype)


def multi_label_loss(
    images: torch.Tensor, prompts: torch.Tensor, log_scale: torch.Tensor, *, form: str = "mean_of_logs"
) -> torch.Tensor:
    """Loss between images and the K prompts of each (Eq. 8-10), halved over both directions as in the published code.

    `L_img = -1/N sum_i 1/K sum_k log p(prompt ik | image i)` over all N K prompts of all processes, equal prompts of
    other images being negatives too; `L_txt` is the cross entropy of each prompt over the N images. Computed in
    float64, returned in the dtype of the embeddings, but at least float32.

    Args:
        images: `[B, D]`, L2-normalised.
        prompts: `[B, K, D]`, L2-normalised.
        log_scale: scalar.
        form: "mean_of_logs" (the published code) or "log_of_sum" (the paper: the sum over k inside the logarithm of
            `L_img`).

    Raises:
        ValueError: unknown form, or not K prompts for each image.
    """
    if form not in MULTI_LABEL_FORMS:
        raise ValueError(f"multi-label form {form!r} is unknown: choose one of {MULTI_LABEL_FORMS}.")
    if prompts.ndim != 3 or len(prompts) != len(images):
        raise ValueError(f"prompts: expected [{len(images)}, K, D], got {list(prompts.shape)}.")
    dtype = at_least_float32(images).dtype
    images, prompts, log_scale = _double(images, prompts, clamp_log_scale(log_scale))
    flat = prompts.flatten(0, 1)
    owner = default_owners(len(images), len(flat), images.device)
    loss = softmax_loss(images, flat, owner, log_scale)
    if form == "mean_of_logs":
        return loss.to(dtype)
    # log sum_k p_k - 1/K sum_k log p_k = logsumexp_k z_k - mean_k z_k: the normaliser of p is in neither form's part
    own = log_scale.exp() * torch.einsum("bd,bkd->bk", images, prompts)
    images_per_process = sum(gather_sizes(len(images), images.device)) / world_size()
    return (loss + (own.mean(1) - own.logsumexp(1)).sum() / images_per_process / 2).to(dtype)


def group_affinity(
    group_embeds: torch.Tensor,
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    log_scale: torch.Tensor,
    *,
    top_classes: int = 5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each group shows (published code; the paper's section 3.3 has neither the filter nor the product).

    With `Z = s q T'`: the softmax of Z over all classes times its softmax over the classes that are among the best
    `top_classes` for the whole image.

    Args:
        group_embeds: `[B, G, D]`, L2-normalised.
        image_embeds: `[B, D]`, L2-normalised.
        class_embeds: `[N, D]`, L2-normalised.
        log_scale: scalar, clamped here.
        top_classes: classes that an image keeps.

    Returns:
        Affinity `[B, G, N]` in [0, 1], 0 for classes that are not kept; and `[B, N]` bool, the kept classes.
    """
    scale = at_least_float32(clamp_log_scale(log_scale)).exp()
    group_embeds = at_least_float32(group_embeds)
    class_embeds, image_embeds = class_embeds.to(group_embeds.dtype), image_embeds.to(group_embeds.dtype)
    logits = scale * group_embeds @ class_embeds.T  # [B, G, N]
    whole = scale * image_embeds @ class_embeds.T  # [B, N]
    best = whole.topk(min(top_classes, whole.shape[-1]), dim=-1).indices
    kept = torch.zeros_like(whole, dtype=torch.bool).scatter_(1, best, True)
    filtered = logits.masked_fill(~kept[:, None], float("-inf")).softmax(-1)
    return filtered * logits.softmax(-1), kept


def background_logits(affinity: torch.Tensor, owned: torch.Tensor, threshold: float) -> torch.Tensor:
    """1 for groups that are background, else 0: `[B, G]`.

    A group is background when its best affinity is below `min(threshold, best affinity of any group with pixels)`; so
    the best group of an image never is (published code).

    Args:
        affinity: `[B, G, N]`.
        owned: `[B, G]` bool, whether the group has a pixel.
        threshold: on the affinity.
    """
    best = affinity.amax(-1)
    limit = best.masked_fill(~owned, 0.0).amax(-1, keepdim=True).clamp(max=threshold)
    return (best < limit).float()
