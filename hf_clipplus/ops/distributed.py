"""Exchange of tensors between processes, with gradients where a loss needs them; at world size 1 nothing is sent."""

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes, 1 when `torch.distributed` is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 when `torch.distributed` is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_integers(values: list[int], device: torch.device) -> list[list[int]]:
    """The integers of every rank, in order of rank; every rank gives equally many."""
    if world_size() == 1:
        return [values]
    own = torch.tensor(values, device=device, dtype=torch.long)
    everyone = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone).tolist()


def gather_sizes(size: int, device: torch.device) -> list[int]:
    """The integer `size` of every rank, in order of rank."""
    return [size for (size,) in gather_integers([size], device)]


def all_gather_ragged(tensor: torch.Tensor, sizes: list[int] | None = None) -> list[torch.Tensor]:
    """Gather a tensor whose first dimension may differ between ranks; no gradient flows.

    Args:
        tensor: `[n_rank, ...]`; all dimensions but the first, and the dtype, are equal on all ranks.
        sizes: first dimension on every rank, if the caller knows them already.

    Returns:
        One tensor `[n_r, ...]` per rank, in order of rank.
    """
    if world_size() == 1:
        return [tensor.detach()]
    sizes = sizes or gather_sizes(tensor.shape[0], tensor.device)
    payload = tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
    padded = payload.new_zeros((max(sizes), *payload.shape[1:]))
    padded[: payload.shape[0]] = payload
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size].to(tensor.dtype) for part, size in zip(parts, sizes, strict=True)]


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, sizes):
        ctx.sizes = sizes
        return torch.cat(all_gather_ragged(tensor, sizes))

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: rank()])
        return grad[start : start + ctx.sizes[rank()]], None


def gather_with_grad(tensor: torch.Tensor, sizes: list[int] | None = None) -> torch.Tensor:
    """Concatenate a tensor over all ranks; backward returns the sum over ranks of the gradient of the own rows.

    Args:
        tensor: `[n_rank, ...]`, ragged in the first dimension.
        sizes: first dimension on every rank, if known.

    Returns:
        `[sum of n_r, ...]`. At world size 1 the tensor itself.
    """
    if world_size() == 1:
        return tensor
    return _GatherWithGrad.apply(tensor, sizes or gather_sizes(tensor.shape[0], tensor.device))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, with gradient: backward sums the gradients of all ranks too."""
    return tensor if world_size() == 1 else _SumOverRanks.apply(tensor)


class RingExchange:
    """Passes tensors to the next rank and receives from the previous one (rank r sends to r + 1)."""

    def __init__(self):
        self.next, self.previous = (rank() + 1) % world_size(), (rank() - 1) % world_size()

    def start(self, outgoing: torch.Tensor, incoming_rows: int) -> tuple[torch.Tensor, list]:
        """Start sending `outgoing [n, ...]` and receiving `[incoming_rows, ...]`; pass both results to `wait`."""
        incoming = outgoing.new_empty((incoming_rows, *outgoing.shape[1:]))
        operations = [
            dist.P2POp(dist.isend, outgoing.contiguous(), self.next),
            dist.P2POp(dist.irecv, incoming, self.previous),
        ]
        return incoming, dist.batch_isend_irecv(operations)

    @staticmethod
    def wait(pending: tuple[torch.Tensor, list]) -> torch.Tensor:
        """The received tensor, once the transfer that `start` began is complete."""
        incoming, requests = pending
        for request in requests:
            request.wait()
        return incoming
