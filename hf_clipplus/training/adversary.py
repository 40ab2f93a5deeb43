"""Adversarial training of contrastive models: batches changed a little so that the model is most wrong about them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hf_clipplus.data.pixel_scale import PixelScale
from hf_clipplus.data.seeding import item_generator
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.ops.attack import attack_embeddings, attack_pixels, direction, row_norms
from hf_clipplus.ops.distributed import gather_sizes, rank

from .gradient_cache import RandomState


class Adversary:
    """Makes the adversarial form of a batch, and notices nothing else: modes, gradients and random state stay.

    The attack runs in evaluation mode (no dropout, running statistics of batch norms), on the loss over the batches of
    all processes; where it starts depends on (seed, step, row of the global batch) only.

    Args:
        kind: "pixel" (the images, maximum norm) or "embedding" (the input embeddings of both towers, patches and
            tokens with their positions, 2-norm).
        radius: of the ball: grey levels (1/255) for pixels, a share of the norm of all embeddings of an image or text
            for embeddings.
        steps: gradients of an attack; each costs a forward and a backward pass.
        seed: of the random starts.
        scale: of the model's processor.
    """

    def __init__(self, kind: str, *, radius: float, steps: int, seed: int, scale: PixelScale):
        self.kind, self.radius, self.steps, self.seed, self.scale = kind, radius, steps, seed, scale

    @contextmanager
    def against(self, model: nn.Module, inputs: dict, step: int, loss_scale: float = 1.0) -> Iterator[dict]:
        """While it is open, `model(**found)` sees the attacked batch.

        Args:
            model: not wrapped by DDP, whose reducer must not see the attack.
            inputs: a batch with what the loss needs, `return_loss` among it.
            step: optimizer steps so far.
            loss_scale: keeps gradients in the range of fp16.

        Raises:
            ValueError: embeddings of texts that come in segments.
        """
        if self.kind == "pixel":
            yield {**inputs, "pixel_values": self._attacked_pixels(model, inputs, step, loss_scale)}
            return
        if inputs.get("segment_owner") is not None:
            raise ValueError("adversarial='embedding' cannot be used with texts in segments (text_mode); 'pixel' can.")
        # naming any output makes a model encode all its texts in one call, in their order, also in training
        inputs = {**inputs, "output_attentions": False}
        with _Changes(model) as changes:
            self._find_changes(model, inputs, step, loss_scale, changes)
            yield inputs

    def _attacked_pixels(self, model: nn.Module, inputs: dict, step: int, loss_scale: float) -> torch.Tensor:
        pixel_values = inputs["pixel_values"]

        def loss_of(pixels: torch.Tensor) -> torch.Tensor:
            attacked = self.scale.from_unit(pixels).to(pixel_values.dtype)
            return loss_scale * model(**{**inputs, "pixel_values": attacked})["loss"]

        pixels = self.scale.to_unit(pixel_values.float())
        noise = self._noise(pixels.shape, step, 0, pixels.device)
        with _undisturbed(model, pixels.device):
            found = attack_pixels(loss_of, pixels, noise, radius=self.radius / 255, steps=self.steps)
        return self.scale.from_unit(found).to(pixel_values.dtype)

    def _find_changes(self, model: nn.Module, inputs: dict, step: int, loss_scale: float, changes: "_Changes") -> None:
        def loss_of(found: list[torch.Tensor]) -> torch.Tensor:
            changes.found = found
            return loss_scale * model(**inputs)["loss"]

        device = inputs["pixel_values"].device
        with _undisturbed(model, device):
            with torch.no_grad():
                model(**inputs)
            images, texts = (part.float() for part in changes.seen)
            mask = inputs.get("attention_mask")
            if mask is not None:  # padding neither counts nor changes
                texts = texts * mask.flatten(0, -2)[:, : texts.shape[1], None]
            noise = [self._noise(part.shape, step, stream, device) for stream, part in enumerate((images, texts))]
            # in so many dimensions nearly all of a ball is at its surface, so that is where the rows start
            noise = [direction(one * (part != 0)) for one, part in zip(noise, (images, texts), strict=True)]
            radii = [self.radius * row_norms(part).flatten() for part in (images, texts)]
            changes.found = attack_embeddings(loss_of, noise, radii, steps=self.steps)

    def _noise(self, shape: torch.Size, step: int, stream: int, device: torch.device) -> torch.Tensor:
        """Float32; each row from its place in the global batch: uniform in [-1, 1] for pixels, else normal."""
        first = sum(gather_sizes(shape[0], device)[: rank()])
        rows = []
        for row in range(first, first + shape[0]):
            generator = item_generator(self.seed, step, row, stream)
            if self.kind == "pixel":
                rows.append(2 * generator.random(shape[1:], np.float32) - 1)
            else:
                rows.append(generator.standard_normal(shape[1:], np.float32))
        return torch.from_numpy(np.stack(rows)).to(device)


class _Changes:
    """Adds `found` to what the input embeddings of both towers give, and keeps what they gave last."""

    def __init__(self, model: nn.Module):
        self.places = [model.vision_model.embeddings, model.text_model.embeddings]
        self.found: list[torch.Tensor] | None = None
        self.seen: list[torch.Tensor] = [torch.empty(0)] * len(self.places)

    def __enter__(self) -> "_Changes":
        self.hooks = [place.register_forward_hook(self._hook(i)) for i, place in enumerate(self.places)]
        return self

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()

    def _hook(self, place: int):
        def change(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            self.seen[place] = output.detach()
            return output if self.found is None else output + self.found[place].to(output.dtype)

        return change


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode with gradient; modes and random state are restored."""
    state = RandomState(device)
    with evaluation_mode(model), torch.enable_grad():
        yield
    state.restore()
