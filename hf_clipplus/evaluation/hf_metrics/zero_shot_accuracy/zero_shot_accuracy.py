"""`evaluate.Metric` of top-1, top-5 and mean per class accuracy; equal scores count as in random order."""

import datasets
import evaluate
import torch

from hf_clipplus.evaluation.metrics import ClassificationAccuracy

_INPUTS = """
Args:
    predictions: per image its scores for all classes (floats).
    references: per image the index of its class.
Returns:
    {"top1", "top5" (with more than 5 classes), "mean_per_class", "samples", "classes_without_samples"}
"""


class ZeroShotAccuracy(evaluate.Metric):
    """See `_INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=_INPUTS, features=datasets.Features(columns)
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        scores = torch.tensor(predictions)
        metric = ClassificationAccuracy(scores.shape[1])
        metric.update(scores, torch.tensor(references))
        return metric.compute()
