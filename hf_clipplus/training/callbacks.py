"""Callbacks of Trainer that more than one script needs."""

import time

from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """Notes when each step ended, and says how long a step takes once the first ones have warmed up."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())

    def seconds(self, warm_up: int = 10) -> float:
        """Mean time of a step after the first `warm_up`.

        Raises:
            ValueError: fewer steps were run.
        """
        if len(self.ends) <= warm_up:
            raise ValueError(f"expected more than {warm_up} steps to time the rest, got {len(self.ends)}.")
        return (self.ends[-1] - self.ends[warm_up - 1]) / (len(self.ends) - warm_up)
