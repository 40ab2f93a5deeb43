"""Published learning-rate schedules that transformers has none for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import cos, floor, pi

import torch
from torch.optim.lr_scheduler import LambdaLR

MIN_LR_RATIO, WARMUP_LR_RATIO = 4e-5 / 1.6e-3, 4e-6 / 1.6e-3


def groupvit_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    warmup_steps: int,
    total_steps: int,
    min_lr_ratio: float = MIN_LR_RATIO,
    warmup_lr_ratio: float = WARMUP_LR_RATIO,
) -> LambdaLR:
    """GroupViT's schedule (published code): a cosine over all steps, its first part replaced by a linear warm-up.

    The cosine runs from step 0, so the rate drops where the warm-up ends; and the first two steps both have the
    warm-up's first rate, since the published code advances its schedule one step late.

    Args:
        optimizer: its learning rate is the peak.
        warmup_steps, total_steps: in optimizer steps.
        min_lr_ratio, warmup_lr_ratio: where the cosine ends and the warm-up starts, over the peak.
    """
    factor = partial(
        groupvit_factor,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        min_lr_ratio=min_lr_ratio,
        warmup_lr_ratio=warmup_lr_ratio,
    )
    return LambdaLR(optimizer, factor)


def groupvit_factor(
    step: int, *, warmup_steps: int, total_steps: int, min_lr_ratio: float, warmup_lr_ratio: float
) -> float:
    """The rate of optimizer step `step`, counted from 0, over the peak; see `groupvit_schedule`."""
    late = max(0, step - 1)
    if late < warmup_steps:
        return warmup_lr_ratio + (1 - warmup_lr_ratio) * late / warmup_steps
    return min_lr_ratio + (1 - min_lr_ratio) * (1 + cos(pi * late / total_steps)) / 2


@dataclass(frozen=True)
class EpisodeSteps:
    """A linear warm-up, then steps, in "epochs" of S iterations.

    CLIP-FSAR's published trainer gives its schedule `floor(i / S) + i / S` epochs for iteration i, so that a step at
    epoch 4 comes at iteration 2 S.

    Args:
        base_lr, warmup_start_lr: peak, and where the warm-up starts.
        iterations: S, episodes of one process in an "epoch".
        steps: epochs from which each factor holds.
        factors: of the peak.
        warmup_epochs: length of the warm-up.
        iterations_per_step: iterations of a process in an optimizer step (CLIP-FSAR: 4, on 4 processes).
        doubled: whether epochs are counted as CLIP-FSAR's trainer does.
    """

    base_lr: float
    warmup_start_lr: float
    iterations: int
    steps: Sequence[float] = (0, 4, 6)
    factors: Sequence[float] = (1.0, 0.1, 0.01)
    warmup_epochs: float = 1.0
    iterations_per_step: int = 4
    doubled: bool = True

    def rate(self, iteration: int) -> float:
        """The learning rate that is set before iteration `iteration` (episodes of one process, from 0)."""
        epoch = iteration / self.iterations
        epoch += floor(epoch) if self.doubled else 0
        if epoch >= self.warmup_epochs:
            return self._stepped(epoch)
        slope = (self._stepped(self.warmup_epochs) - self.warmup_start_lr) / self.warmup_epochs
        return self.warmup_start_lr + epoch * slope

    def _stepped(self, epoch: float) -> float:
        reached = [factor for step, factor in zip(self.steps, self.factors, strict=True) if epoch >= step]
        return self.base_lr * reached[-1]

    def schedule(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The same for optimizer steps; each takes the rate of its last iteration, as the published trainer does.

        Args:
            optimizer: its learning rate is `base_lr`.
        """
        per_step = self.iterations_per_step
        return LambdaLR(optimizer, lambda step: self.rate((step + 1) * per_step - 1) / self.base_lr)


def open_clip_schedule(optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """open_clip's schedule (DreamLIP's published code): a linear warm-up that starts above 0, then a cosine to 0.

    Args:
        optimizer: its learning rate is the peak.
        warmup_steps, total_steps: in optimizer steps.
    """
    return LambdaLR(optimizer, partial(open_clip_factor, warmup_steps=warmup_steps, total_steps=total_steps))


def open_clip_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0, over the peak."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (1 + cos(pi * (step - warmup_steps) / max(1, total_steps - warmup_steps))) / 2
