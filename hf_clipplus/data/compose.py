"""Chains augmentations: every step is called as `step(value, generator)` and returns the changed value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")


@dataclass(frozen=True)
class Compose:
    """Applies `steps` one after the other with one generator; works for images and for texts, and nests.

    Args:
        steps: functions `(value, generator) -> value`; none at all leaves the value alone.
    """

    steps: Sequence[Callable[[Value, np.random.Generator], Value]] = ()

    def __call__(self, value: Value, generator: np.random.Generator) -> Value:
        for step in self.steps:
            value = step(value, generator)
        return value
