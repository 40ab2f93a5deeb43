"""The folders load with `evaluate.load` and give what metrics.py gives."""

from pathlib import Path

import evaluate
import pytest
import torch

import hf_clipplus.evaluation.hf_metrics as hf_metrics
from hf_clipplus.evaluation.metrics import mean_per_class_accuracy, top_k_accuracy

FOLDER = Path(hf_metrics.__file__).parent


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path))


def test_recall_at_k(load):
    metric = load("recall_at_k")
    scores = [[0.9, 0.1, 0.5], [0.2, 0.2, 0.2], [0.1, 0.8, 0.9]]
    references = [[0, 2], [1], [0]]
    assert metric.compute(predictions=scores, references=references, k=1)["recall_at_1"] == pytest.approx(4 / 9)
    metric.add_batch(predictions=scores[:2], references=references[:2])
    metric.add_batch(predictions=scores[2:], references=references[2:])
    assert metric.compute(k=2)["recall_at_2"] == pytest.approx((1 + 2 / 3) / 3)


def test_zero_shot_accuracy(load):
    rng = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(50, 7, generator=rng), torch.randint(7, (50,), generator=rng)
    result = load("zero_shot_accuracy").compute(predictions=scores.tolist(), references=targets.tolist())
    assert result["top1"] == pytest.approx(top_k_accuracy(scores, targets))
    assert result["top5"] == pytest.approx(top_k_accuracy(scores, targets, 5))
    assert result["mean_per_class"] == pytest.approx(mean_per_class_accuracy(scores, targets))
