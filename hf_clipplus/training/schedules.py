"""Published learning-rate schedules that transformers has none for."""

from functools import partial
from math import cos, pi

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
