"""Running a model for its output alone, whatever it was doing before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; afterwards every submodule has the training flag it had before.

    Not `torch.inference_mode`: a buffer that a model builds lazily there could not be used in training afterwards.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
