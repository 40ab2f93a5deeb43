"""examples/train_ma_clip.py, the comparison and the benchmark in fresh processes; the adapter it saved classifies."""

import json

import pytest

FRESH = """
import sys, hf_clipplus
import numpy as np
from transformers import pipeline
classify = pipeline("clipplus-few-shot-video-classification", model=sys.argv[1])
assert any("ma_clip_" in name for name, _ in classify.model.named_parameters())
videos = [np.full((8, 48, 48, 3), level, np.uint8) for level in (20, 220)]
found = classify(videos, support={"dark": [videos[0]], "bright": [videos[1]]}, mode="visual")
print([each[0]["label"] for each in found])
"""


@pytest.mark.slow
def test_example_and_what_it_saved(run, tmp_path):
    small = ("--max_steps", 2, "--eval_steps", 2, "--save_steps", 2, "--clips_per_class", 2, "--queries", 1)
    tests = ("--eval_shots", 1, "--eval_episodes", 50)
    said = run("examples/train_ma_clip.py", *small, *tests, "--output_dir", tmp_path)
    groups = {line.split()[0] for line in said.splitlines() if line}
    assert groups >= {"temporal", "local", "joint", "text_proj", "prototype_module", "trainable"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("test_1_shot", "test_1_shot_order_only"):
        assert 0 <= metrics[f"eval_{name}_accuracy"] <= 1
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert run("-c", FRESH, tmp_path).split("\n")[-2] == "['dark', 'bright']"


@pytest.mark.slow
def test_benchmark(run, tmp_path):
    said = run("benchmarks/ma_clip.py", "--quick", "--output", tmp_path / "ma_clip.json")
    assert "equal predictions: 100.00%" in said
    found = json.loads((tmp_path / "ma_clip.json").read_text())["steps"]
    assert all(row["seconds"] > 0 for row in found.values())


@pytest.mark.slow
def test_comparison_goes_on_where_it_was(run, tmp_path):
    small = ("--steps", 2, "--clips_per_class", 6, "--episodes", 40, "--seeds", 0, "--output_dir", tmp_path)
    arms = ("frozen_mean", "otam", "lora", "full", "trx", "no_text_in_tower")
    said = run("examples/compare_ma_clip.py", "--arms", *arms, *small)
    assert "| MA-CLIP (OTAM) |" in said
    record = tmp_path / "runs" / "otam-0.json"
    changed = json.loads(record.read_text())
    changed["scores"]["minutes"] = 77.0
    record.write_text(json.dumps(changed))
    assert "77.0" in run("examples/compare_ma_clip.py", "--arms", *arms, *small)
