"""Projected gradient ascent on a loss within a ball around an input (PGD, 1706.06083), in the maximum and the 2-norm.

Gradients are taken with respect to what is perturbed alone: no parameter's `.grad` is touched.
"""

from collections.abc import Callable, Sequence

import torch


def attack_pixels(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    noise: torch.Tensor,
    *,
    radius: float,
    steps: int,
) -> torch.Tensor:
    """Pixels within `radius` of the given ones, and within [0, 1], for which a loss is high.

    The step is 2.5 radius / steps, so that every corner of the ball can be reached from any start in it.

    Args:
        loss_of: `[N, 3, H, W] -> scalar`, with gradient.
        pixels: `[N, 3, H, W]` in [0, 1].
        noise: of the same shape, uniform in [-1, 1]: where in the ball each image starts.
        radius: in the maximum norm, in units of the pixels.
        steps: gradients that are taken.

    Returns:
        `[N, 3, H, W]`, detached.
    """
    pixels = pixels.detach()
    lowest, highest = (pixels - radius).clamp(0, 1), (pixels + radius).clamp(0, 1)
    found = (pixels + radius * noise).clamp(lowest, highest)
    for _ in range(steps):
        found.requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(found), found)
        found = (found.detach() + 2.5 * radius / steps * gradient.sign()).clamp(lowest, highest)
    return found.detach()


def attack_embeddings(
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor],
    noise: Sequence[torch.Tensor],
    radii: Sequence[torch.Tensor],
    *,
    steps: int,
) -> list[torch.Tensor]:
    """Changes of embeddings, within balls of the 2-norm, that make a loss high (FreeLB, 1909.11764, without its
    gradients of parameters).

    Args:
        loss_of: changes, shaped like `noise`, to a scalar with gradient.
        noise: one tensor `[rows, ...]` for each place that is perturbed, of norm at most 1 in each row.
        radii: `[rows]` for each place: the greatest norm of a row's change.
        steps: gradients that are taken, each followed by a step of 2.5 radius / steps.

    Returns:
        The changes, detached.
    """
    radii = [radius.view(-1, *[1] * (part.ndim - 1)) for radius, part in zip(radii, noise, strict=True)]
    found = [radius * part for radius, part in zip(radii, noise, strict=True)]
    for _ in range(steps):
        found = [part.detach().requires_grad_() for part in found]
        gradients = torch.autograd.grad(loss_of(found), found)
        found = [
            within_ball(part.detach() + 2.5 / steps * radius * direction(gradient), radius)
            for part, gradient, radius in zip(found, gradients, radii, strict=True)
        ]
    return [part.detach() for part in found]


def direction(rows: torch.Tensor) -> torch.Tensor:
    """Each row `[rows, ...]` at norm 1; a row of zeros stays."""
    tiny = torch.finfo(rows.dtype).tiny
    return rows / row_norms(rows).clamp_min(tiny)


def within_ball(rows: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Each row `[rows, ...]` at norm `radius` (`[rows, 1, ...]`), where its norm is higher."""
    norms = row_norms(rows)
    return torch.where(norms > radius, direction(rows) * radius, rows)


def row_norms(rows: torch.Tensor) -> torch.Tensor:
    """2-norm of each row over all other dimensions, `[rows, ...] -> [rows, 1, ...]`."""
    return torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.ndim)), keepdim=True)
