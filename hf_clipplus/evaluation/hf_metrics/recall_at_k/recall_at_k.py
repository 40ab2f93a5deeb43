"""`evaluate.Metric` of recall at K with several own candidates per query; equal scores count as in random order."""

import datasets
import evaluate
import torch

from hf_clipplus.evaluation.metrics import hits_at_k, ranks_from_scores

_INPUTS = """
Args:
    predictions: per query its scores for all candidates (floats).
    references: per query the indices of its own candidates, at least one.
    k: the K.
Returns:
    {"recall_at_<k>": share of the queries with an own candidate among the first K}
"""


class RecallAtK(evaluate.Metric):
    """See `_INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=_INPUTS, features=datasets.Features(columns)
        )

    def _compute(self, predictions: list, references: list, k: int = 1) -> dict[str, float]:
        scores = torch.tensor(predictions)
        own = torch.zeros(scores.shape, dtype=torch.bool)
        for row, indices in enumerate(references):
            own[row, indices] = True
        return {f"recall_at_{k}": float(hits_at_k(ranks_from_scores(scores, own), k).mean())}
