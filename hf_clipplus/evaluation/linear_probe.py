"""Linear probe: what frozen image embeddings know of a label, by a regularised linear classifier on top of them.

Example::

    probe = LinearProbe(train_rows, test_rows, name="count")
    probe(model, processor)   # {"accuracy": ..., "chance_accuracy": ..., "samples": ...}
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encode import encode_images
from .rows import Column

PENALTIES = (1e-3, 1e-2, 1e-1)
FOLDS = 3


class LinearProbe:
    """Evaluator: test accuracy of a multinomial logistic regression on image embeddings.

    The penalty is chosen by cross-validation on the training rows; test rows decide nothing.

    Args:
        train_rows, test_rows: sequences of dicts with `image` and an integer `label`.
        name: prefix for the results.
        batch_size: images of a forward pass.
    """

    def __init__(self, train_rows: Sequence, test_rows: Sequence, *, name: str, batch_size: int = 64):
        self.train_rows, self.test_rows, self.name, self.batch_size = train_rows, test_rows, name, batch_size

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Returns `accuracy` and `chance_accuracy` (the most frequent label always) in [0, 1], and `samples`."""
        (x, y), (x_test, y_test) = (self._read(rows, model, processor) for rows in (self.train_rows, self.test_rows))
        penalty = choose_penalty(x, y)
        accuracy = (predict(fit_logistic(x, y, penalty), x_test) == y_test).float().mean()
        chance = torch.bincount(y_test).max() / len(y_test)
        return {"accuracy": accuracy.item(), "chance_accuracy": chance.item(), "samples": float(len(y_test))}

    def _read(self, rows: Sequence, model: nn.Module, processor: Any) -> tuple[Tensor, Tensor]:
        embeds = encode_images(model, processor, Column(rows, "image"), batch_size=self.batch_size)
        return embeds, torch.tensor([int(label) for label in Column(rows, "label")])


def fit_logistic(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights that minimise mean cross-entropy + penalty * |W|^2 / 2 on standardised features (L-BFGS, float64).

    Args:
        x: `[N, D]`.
        y: `[N]` int64.
        penalty: on the weights, not the bias.

    Returns:
        Weights `[C, D + 1]`, the bias last, and the features' mean and deviation.
    """
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x = F.pad(((x - mean) / deviation).double(), (0, 1), value=1.0)
    weights = torch.zeros(int(y.max()) + 1, x.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ weights.T, y) + penalty / 2 * weights[:, :-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weights.detach(), mean, deviation


def predict(fitted: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    """The likeliest class of each row, `[N]`."""
    weights, mean, deviation = fitted
    return (F.pad(((x - mean) / deviation).double(), (0, 1), value=1.0) @ weights.T).argmax(1)


def choose_penalty(x: Tensor, y: Tensor) -> float:
    """The penalty with the best accuracy over `FOLDS` folds; the greatest of equal ones."""
    fold = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)) % FOLDS
    scores = {}
    for penalty in PENALTIES:
        right = [
            (predict(fit_logistic(x[fold != held], y[fold != held], penalty), x[fold == held]) == y[fold == held])
            for held in range(FOLDS)
        ]
        scores[penalty] = torch.cat(right).float().mean().item()
    return max(scores, key=lambda penalty: (scores[penalty], penalty))
