"""TRX's metric with its parameters: tuples of query frames against what they attend to in each class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clipplus.ops.alignment import frame_tuples, project_tuples, sinusoidal_positions, trx_distances


class TemporalCrossTransformer(nn.Module):
    """TRX (TemporalCrossTransformers) for any set of cardinalities; the distance is the mean over them.

    Names are those of the published state dict, without `norm_v`, which the published code never uses, and `pe.pe`,
    which is a constant.

    Args:
        dim: width of the frame features.
        cardinalities: frames of a tuple, e.g. (2, 3).
        width: output width of the key and value layers (published 1152).
        dropout: on features after the position code (published 0.1).
    """

    def __init__(self, dim: int, cardinalities: tuple[int, ...] = (2, 3), *, width: int = 1152, dropout: float = 0.1):
        super().__init__()
        self.dropout = dropout
        self.transformers = nn.ModuleList(TupleLayers(dim, each, width) for each in cardinalities)

    def forward(self, queries: Tensor, supports: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Distances `[Q, N]`, the mean over the cardinalities.

        Args:
            queries: `[Q, T, D]`; supports: `[S, T, D]`, the videos themselves: TRX has no prototypes over shots.
            labels: `[S]` int64, 0..N-1.
            classes: N.
        """
        return torch.stack(self.by_cardinality(queries, supports, labels, classes)).mean(0)

    def by_cardinality(self, queries: Tensor, supports: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
        """One `[Q, N]` per cardinality."""
        queries, supports = (
            F.dropout(each + sinusoidal_positions(*each.shape[-2:]).to(each), self.dropout, self.training)
            for each in (queries, supports)
        )
        return [trx_distances(*layers(queries), *layers(supports), labels, classes) for layers in self.transformers]


class TupleLayers(nn.Module):
    """Keys and values of all tuples of one cardinality."""

    def __init__(self, dim: int, cardinality: int, width: int):
        super().__init__()
        self.cardinality = cardinality
        self.k_linear, self.v_linear = (nn.Linear(cardinality * dim, width) for _ in range(2))
        self.norm_k = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:  # [V, T, D] -> 2 x [V, P, O]
        tuples = frame_tuples(features.shape[-2], self.cardinality).to(features.device)
        keys, values = (
            project_tuples(features, linear.weight, linear.bias, tuples) for linear in (self.k_linear, self.v_linear)
        )
        return self.norm_k(keys), values
