"""DIVA's equations (2407.20171): the visual tokens a diffusion model sees, its condition and loss, image embeddings.

The paper's text could not be read; sources are the published code and its description in the specification.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RECAPS = ("random_k", "random_ratio", "all", "avgpool", "cls")
PROMPT_MODES = ("token_add", "mean_add", "replace")
PREDICTION_TYPES = ("epsilon", "v_prediction")
LOSS_TYPES = ("mse", "l1")
# rule of a published evaluation script -> tokens are normalised first, the local mean is added, the sum is normalised
OFFICIAL_EMBEDDINGS = {
    "openai": (False, True, True),
    "metaclip": (True, True, True),
    "dfn224": (True, False, True),
    "dfn378": (True, True, False),
    "siglip": (False, False, True),
}
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_patch_count(recap: str, patches: int, *, k: int, ratio: float) -> int:
    """How many patches a random recap draws from `patches`: k, or floor(ratio * patches); 0 for the other recaps."""
    return {"random_k": k, "random_ratio": int(ratio * patches)}.get(recap, 0)


def draw_patches(rows: int, count: int, patches: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices of patches, drawn uniformly with replacement, `[rows, count]` int64 on the CPU.

    With a generator, a row does not depend on how the rows are cut into calls.
    """
    return torch.randint(patches, (rows, count), generator=generator)


def take_patches(patches: Tensor, indices: Tensor) -> Tensor:
    """The chosen patches.

    Args:
        patches: `[B, P, W]`.
        indices: `[R, n]` with R a multiple of B; row r belongs to image r mod B, so that several draws share a trunk.

    Returns:
        `[R, n, W]`.

    Raises:
        ValueError: R is no multiple of B, or an index is out of range.
    """
    images, count = patches.shape[:2]
    if indices.ndim != 2 or len(indices) % images:
        raise ValueError(f"patch indices: expected [a multiple of {images}, n], got {list(indices.shape)}.")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise ValueError(
            f"patch indices: expected 0 to {count - 1}, got {int(indices.min())} to {int(indices.max())}."
        )
    rows = torch.arange(len(indices), device=patches.device) % images
    return patches[rows[:, None], indices.to(patches.device)]


def average_pools(patches: Tensor, window: int) -> Tensor:
    """Means of `window` patches in row-major order, not overlapping, the rest dropped: `[B, P, W]` -> `[B, P//w, W]`.

    Raises:
        ValueError: fewer patches than the window.
    """
    if patches.shape[1] < window:
        raise ValueError(f"recap 'avgpool': {patches.shape[1]} patches are fewer than the window of {window}.")
    return F.avg_pool1d(patches.transpose(1, 2), window).transpose(1, 2)


def assemble_condition(prompt: Tensor, visual: Tensor, mode: str) -> Tensor:
    """The UNet's condition (`encoder_hidden_states`).

    Args:
        prompt: `[1, L, D]`, the text encoder's states of the constant prompt.
        visual: `[B, N, D]`, projected visual tokens, the class token first.
        mode: "token_add": token by token, N = L or N = 1 (OpenAI; the follow-ups' class token); "mean_add": the
            prompt's mean is added to each token (MetaCLIP, DFN, SigLIP); "replace": the visual tokens alone.

    Returns:
        `[B, L, D]` for "token_add", else `[B, N, D]`.

    Raises:
        ValueError: widths differ, or numbers of tokens that cannot be added.
    """
    if mode == "replace":
        return visual
    if prompt.shape[-1] != visual.shape[-1]:
        raise ValueError(f"the prompt is {prompt.shape[-1]} wide, the visual condition {visual.shape[-1]}.")
    if mode == "mean_add":
        return prompt.mean(1, keepdim=True) + visual
    if visual.shape[1] not in (1, prompt.shape[1]):
        raise ValueError(
            f"prompt_mode 'token_add' adds {prompt.shape[1]} prompt tokens to as many visual tokens or to one, got "
            f"{visual.shape[1]}: choose 'mean_add', or another recap (recap_k = {prompt.shape[1] - 1})."
        )
    return prompt + visual


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, `[B, ...]`; `alphas_cumprod` is abar_t of each row, `[B]`."""
    signal = alphas_cumprod.view(-1, *[1] * (latents.ndim - 1))
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def prediction_target(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """What the UNet should say: eps ("epsilon"), or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 ("v_prediction")."""
    if prediction_type == "epsilon":
        return noise
    signal = alphas_cumprod.view(-1, *[1] * (latents.ndim - 1))
    return signal.sqrt() * noise - (1 - signal).sqrt() * latents


def draw_losses(prediction: Tensor, target: Tensor, draws: int, loss_type: str = "mse") -> Tensor:
    """Mean error of each draw over its images and all elements, in float32.

    Args:
        prediction, target: `[K * B, ...]`, all images of the first draw first.
        draws: K.
        loss_type: "mse" (published) or "l1".

    Returns:
        `[K]`.
    """
    difference = prediction.float() - target.float()
    error = difference.square() if loss_type == "mse" else difference.abs()
    return error.view(draws, -1).mean(1)


def combine_draws(losses: Tensor, *, accumulation: int = 1, legacy: bool = False) -> Tensor:
    """The loss whose gradient a trainer divides by the accumulation steps A.

    Args:
        losses: `[K]`.
        accumulation: A.
        legacy: the published order, which runs the backward pass of all draws but the last before it returns, so that
            only the last is divided by A: sum of L_k for k < K, plus L_K / A. The mean over the draws otherwise.
    """
    if not legacy:
        return losses.mean()
    return accumulation * losses[:-1].sum() + losses[-1]


def official_embedding(cls: Tensor, local: Tensor | None, rule: str) -> Tensor:
    """The image embedding of a published evaluation script, before its last normalisation.

    Args:
        cls: `[B, E]`, projected class (or pooled) token.
        local: `[B, n, E]`, projected local tokens; not looked at by "dfn224" and "siglip".
        rule: a key of `OFFICIAL_EMBEDDINGS`; "dfn378" is not normalised afterwards, the others are.
    """
    normalized, adds_local, _ = OFFICIAL_EMBEDDINGS[rule]
    if normalized:
        cls = F.normalize(cls, dim=-1)
        local = F.normalize(local, dim=-1) if adds_local else None
    return cls + local.mean(1) if adds_local else cls


def normalize_pixels(rgb: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(rgb - mean) / std per channel, `[..., 3, H, W]`."""
    mean, std = (torch.tensor(part, dtype=rgb.dtype, device=rgb.device).view(3, 1, 1) for part in (mean, std))
    return (rgb - mean) / std


def legacy_vae_pixels(images: Tensor) -> Tensor:
    """The published VAE input: pixels normalised with OpenAI's statistics, taken back with ImageNet's.

    Then times 2, less 1. A bug: `2 * rgb - 1` was meant; the VAE sees about 0.85 of the contrast, brightened.

    Args:
        images: `[B, 3, H, W]`, normalised with OpenAI's mean and deviation.
    """
    mean, std = (
        torch.tensor(part, dtype=images.dtype, device=images.device).view(3, 1, 1)
        for part in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return 2 * (images * std + mean) - 1


def legacy_tower_pixels(images: Tensor, size: int) -> Tensor:
    """The published tower input: a bilinear resize without antialiasing, whatever the tower's own statistics.

    Args:
        images: `[B, 3, H, W]`, normalised with OpenAI's mean and deviation.
        size: side of the tower's input, pixels.
    """
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=False)
