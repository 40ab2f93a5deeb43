"""Callbacks of Trainer."""

import pytest

from hf_clipplus.training.callbacks import StepClock


def test_the_first_steps_do_not_count():
    clock = StepClock()
    clock.ends = [10.0, 20.0, 21.0, 22.0, 24.0]
    assert clock.seconds(warm_up=2) == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="more than 5 steps"):
        clock.seconds(warm_up=5)
