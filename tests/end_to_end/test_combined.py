"""The combined recipe and the comparison of enhancements in fresh processes; what they saved loads."""

import json

import pytest
from transformers import AutoModel

from hf_clipplus import DreamLIPModel

BATCH = ("--per_device_train_batch_size", 8, "--scenes", 16)


@pytest.mark.slow
def test_the_recipe_saves_goes_on_and_starts_from_what_it_saved(run, tmp_path):
    first = ("--output_dir", tmp_path / "first", "--eval_strategy", "no", *BATCH)
    steps = ("--save_strategy", "steps", "--save_steps", 2, "--mining_warmup_steps", 1)
    assert "first bias" in run("examples/train_combined.py", *first, *steps, "--max_steps", 2)
    assert "first bias" not in run("examples/train_combined.py", *first, *steps, "--max_steps", 4)  # goes on
    state = json.loads((tmp_path / "first" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert "eval_scenes_fine_grained_group" in json.loads((tmp_path / "first" / "metrics.json").read_text())
    model = AutoModel.from_pretrained(tmp_path / "first")
    assert isinstance(model, DreamLIPModel)
    assert model.config.contrastive_loss == "sigmoid"
    again = ("--model_name_or_path", tmp_path / "first", "--output_dir", tmp_path / "again", "--max_steps", 1)
    frozen = ("--mining_features", "frozen_model", "--mining_model_name", tmp_path / "first")
    assert "first bias" not in run("examples/train_combined.py", *again, *frozen, *BATCH, "--eval_strategy", "no")


@pytest.mark.slow
def test_the_comparison_goes_on(run, tmp_path):
    options = ("--seeds", 0, "--steps", 2, "--batch_size", 8, "--scenes", 20, "--pairs", 2, "--output_dir", tmp_path)
    table = run("examples/compare_enhancements.py", *options)
    assert table.count("| chance |") == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    assert len(before) > 3
    run("examples/compare_enhancements.py", *options)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
