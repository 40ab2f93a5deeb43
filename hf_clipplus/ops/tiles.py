"""Sums over rows computed in tiles, with their gradient, so that only one tile's intermediates exist at a time."""

from collections.abc import Callable, Sequence

import torch


def sum_over_tiles(
    term: Callable[..., torch.Tensor],
    rows: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    *,
    tile_size: int,
) -> torch.Tensor:
    """The sum over tiles of `term(*rows of the tile, *shared)`.

    The gradient is made in the forward pass, tile by tile. Autocast is off inside. Double backward is not supported.

    Args:
        term: gives a scalar that is itself a sum over its rows.
        rows: tensors `[R, ...]` that are cut along the first dimension.
        shared: tensors that every tile sees whole.
        tile_size: rows at a time; the result does not depend on it beyond rounding.
    """
    return _TiledSum.apply(term, tile_size, len(rows), *rows, *shared)


class _TiledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, term, tile_size, row_count, *tensors):
        wanted = ctx.needs_input_grad[3:]
        grads = [torch.zeros_like(tensor) if want else None for tensor, want in zip(tensors, wanted, strict=True)]
        total = 0.0
        for top in range(0, len(tensors[0]), tile_size):
            part = slice(top, top + tile_size)
            leaves = [
                (tensor[part] if i < row_count else tensor).detach().requires_grad_(wanted[i])
                for i, tensor in enumerate(tensors)
            ]
            with torch.enable_grad(), torch.autocast(tensors[0].device.type, enabled=False):
                value = term(*leaves)
            total = total + value.detach()
            trained = [i for i, want in enumerate(wanted) if want]
            for i, grad in zip(trained, _gradients(value, [leaves[i] for i in trained]), strict=True):
                if i < row_count:
                    grads[i][part] = grad
                else:
                    grads[i] += grad
        ctx.save_for_backward(*(grad for grad in grads if grad is not None))
        ctx.wanted = wanted
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        saved = iter(ctx.saved_tensors)
        return None, None, None, *(grad * next(saved) if want else None for want in ctx.wanted)


def _gradients(value: torch.Tensor, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(value, leaves) if leaves else ()
