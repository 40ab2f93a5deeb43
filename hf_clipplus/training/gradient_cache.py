"""Gradients of a large batch in the memory of a small one (GradCache, 2101.06983), for any model of two steps.

The embeddings of all chunks are made without a graph; the loss and its gradient with respect to the embeddings are
those of the whole batch; then every chunk is encoded again, with a graph and with the random state of the first time,
and the cached gradient is pushed through it. Costs one more forward pass of the towers.
"""

from collections.abc import Callable

import torch
from torch import nn


class RandomState:
    """Random state of the CPU and of one accelerator, to run the same dropout twice."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            getattr(torch, self.device.type).set_rng_state(self.accelerator, self.device)


def check_can_be_cached(model: nn.Module) -> None:
    """Refuse models whose embeddings depend on the other rows of the batch: chunks would give other embeddings.

    Raises:
        ValueError: the model has batch normalisation; names its modules.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        raise ValueError(
            f"gradient_cache_chunk_size: {type(model).__name__} normalises over the batch ({', '.join(norms)}), so "
            "chunks would be normalised by other statistics than the batch. Use more processes for a larger batch "
            "(the statistics are those of all of them) or gradient checkpointing for less memory."
        )


def chunk_inputs(inputs: dict, names: tuple[str, ...], chunk_size: int) -> list[dict]:
    """Cut the entries of one side of a batch into chunks of `chunk_size` rows."""
    side = {name: inputs[name] for name in names if inputs.get(name) is not None}
    if not side:
        return []
    rows = next(iter(side.values())).shape[0]
    return [{key: value[i : i + chunk_size] for key, value in side.items()} for i in range(0, rows, chunk_size)]


def cached_backward(
    model: nn.Module,
    inputs: dict,
    *,
    chunk_size: int,
    backward: Callable[[torch.Tensor], None],
    further_loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Run one batch and leave in `.grad` what the whole batch would leave.

    Args:
        model: has `embed`, `contrast`, `image_inputs` and `text_inputs` (`models.dual_encoder`); not wrapped by DDP.
        inputs: a batch as the collator makes it.
        chunk_size: images, and captions, that are encoded at a time.
        backward: runs backward on the loss of the whole batch, scaled as the trainer wants it (accumulation, loss
            scaling of fp16); the scaling reaches the towers through the cached gradients.
        further_loss: image embeddings of the batch to a scalar that is added to the loss.

    Returns:
        What `contrast` returned, the loss detached; with a further loss, `contrastive_loss` is the one without it.

    Raises:
        ValueError: texts come in segments: chunks would cut between the segments of a text.
    """
    if inputs.get("segment_owner") is not None:
        raise ValueError("gradient_cache_chunk_size cannot be used with texts in segments (text_mode).")
    device = next(model.parameters()).device
    sides = [chunk_inputs(inputs, names, chunk_size) for names in (model.image_inputs, model.text_inputs)]
    targets = {key: value for key, value in inputs.items() if key not in model.image_inputs + model.text_inputs}
    states, embeddings = [], {}
    for chunks in sides:
        states.append([])
        parts = []
        for chunk in chunks:
            states[-1].append(RandomState(device))
            with torch.no_grad():
                parts.append(_embeds(model, chunk))
        for name in parts[0]:
            embeddings[name] = torch.cat([part[name] for part in parts]).requires_grad_()
    result = model.contrast(type("Embeddings", (), embeddings), **targets)
    if further_loss is not None:
        result["contrastive_loss"] = result["loss"].detach()
        result["loss"] = result["loss"] + further_loss(embeddings["image_embeds"])
    backward(result["loss"])
    after = RandomState(device)
    for chunks, chunk_states in zip(sides, states, strict=True):
        start = 0
        for chunk, state in zip(chunks, chunk_states, strict=True):
            state.restore()
            embeds = _embeds(model, chunk)
            rows = next(iter(embeds.values())).shape[0]
            trained = [name for name in embeds if embeds[name].requires_grad]  # a frozen tower needs no gradient
            torch.autograd.backward(
                [embeds[name] for name in trained], [embeddings[name].grad[start : start + rows] for name in trained]
            )
            start += rows
    after.restore()
    return result | {"loss": result["loss"].detach()}


def _embeds(model: nn.Module, chunk: dict) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.embed(**chunk).items() if key.endswith("_embeds") and value is not None}
