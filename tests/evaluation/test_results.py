"""The results object: round trips, tables, model-index, and a write that never leaves half a file."""

import json
import os

import pytest
from huggingface_hub import ModelCard, ModelCardData

from hf_clipplus.evaluation.results import COUNTS, Result, Results, describe_hardware

FACTS = {
    "task": "zero-shot-image-classification",
    "dataset": "open clip art",
    "split": "test",
    "model": "org/fff-plus",
}


@pytest.fixture
def results():
    results = Results()
    results.add("top1", 0.5, **FACTS, seed=0, protocol="7 templates", command="python x.py | tee log")
    results.add("top1", 0.7, **FACTS, seed=1, protocol="7 templates")
    results.add("chance_top1", 0.1, **FACTS)
    results.add("samples", 294, **FACTS)
    return results


def test_json_round_trip(results, tmp_path):
    file = tmp_path / "deep" / "results.json"
    results.to_json(file)
    assert Results.from_json(file) == results
    assert os.listdir(file.parent) == ["results.json"]
    entry = json.loads(file.read_text())["results"][0]
    facts = {"task", "dataset", "split", "protocol", "seed", "model", "date", "command", "hardware"}
    assert set(entry) == {"metric", "value"} | facts
    assert len(entry["date"].split("-")) == 3


def test_a_failed_write_leaves_the_old_file(results, tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    results.to_json(file)
    before = file.read_text()
    results.add("top5", 0.9, **FACTS)

    def crash(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        results.to_json(file)
    assert file.read_text() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_the_same_measurement_is_replaced_and_another_seed_is_not(results):
    results.add("top1", 0.6, **FACTS, seed=0, protocol="7 templates")
    values = {(entry.metric, entry.seed): entry.value for entry in results.entries}
    assert values == {("top1", 0): 0.6, ("top1", 1): 0.7, ("chance_top1", None): 0.1, ("samples", None): 294}


def test_markdown_means_seeds_and_keeps_its_columns(results):
    results.add("top1", 0.25, **{**FACTS, "dataset": "a|b"})
    table = results.to_markdown().splitlines()
    assert "| 0.6000 ± 0.1414 (2 seeds) |" in table[2]
    assert table[3].endswith("| chance_top1 | 0.1000 |")
    assert "a\\|b" in table[4]
    assert len(table) == 5  # head, rule, three scores; no counts


def test_eval_results_make_a_card(results):
    scores = results.to_eval_results()
    assert [score.metric_type for score in scores] == ["top1"]
    assert scores[0].metric_value == pytest.approx(0.6)
    assert scores[0].metric_args == {"seeds": 2, "standard_deviation": pytest.approx(0.1414, abs=1e-4)}
    assert scores[0].dataset_type == "open_clip_art"
    data = ModelCardData(model_name="fff-plus", eval_results=scores)
    text = str(ModelCard(f"---\n{data.to_yaml()}\n---\n# Card"))
    again = ModelCard(text).data.eval_results
    assert (again[0].metric_value, again[0].dataset_name) == (scores[0].metric_value, "open clip art")


def test_counts_of_the_evaluators_are_known():
    import torch

    from hf_clipplus.evaluation.metrics import ClassificationAccuracy
    from hf_clipplus.evaluation.retrieval import retrieval_recall

    metric = ClassificationAccuracy(7)
    metric.update(torch.zeros(1, 7), torch.zeros(1, dtype=torch.long))
    keys = {*metric.compute(), *retrieval_recall(torch.eye(2), torch.eye(2), torch.arange(2))}
    scores = {key for key in keys if key in {"top1", "top5", "mean_per_class"} or "R@" in key}
    assert keys - scores <= set(COUNTS)


def test_wrong_inputs_are_named(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="top1 on open clip art: expected a finite number"):
            Results().add("top1", value, **FACTS)
    file = tmp_path / "other.json"
    for text in ("[", "{}", '{"results": [{"metric": "top1"}]}', "[1]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json is no results file"):
            Results.from_json(file)


def test_hardware_says_something():
    assert len(describe_hardware()) > 5
    assert Result(**FACTS, metric="top1", value=1).value == 1.0
