"""The examples of DIVA, what they saved in a process that cannot import diffusers, and the benchmark at toy size."""

import json
from pathlib import Path

import pytest

from hf_clipplus.training.start import ENCODER

ROOT = Path(__file__).parents[2]
FRESH = """
import sys
sys.modules["diffusers"] = None
import hf_clipplus
from PIL import Image
from transformers import AutoModel, pipeline
model, info = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
classify = pipeline("zero-shot-image-classification", model=sys.argv[1])
found = classify(Image.new("RGB", (60, 50), "red"), candidate_labels=["a cat", "a boat"])
print(type(model).__name__, model.config.generator_name, len(found))
"""


@pytest.mark.slow
def test_examples_and_what_they_saved(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import evaluate_mmvp
    import train_diva
    import train_tiny_diffusion

    tiny, out = str(tmp_path / "tiny"), str(tmp_path / "diva")
    small = [
        "--pictures",
        "24",
        "--batch_size",
        "4",
        "--held_out",
        "8",
        "--vae_steps",
        "2",
        "--unet_steps",
        "2",
        "--sample_steps",
        "2",
    ]
    losses = train_tiny_diffusion.main(["--output_dir", tiny, *small])
    assert losses.keys() == {"loss_own_caption", "loss_other_caption", "loss_empty_caption", "vae_error", "minutes"}
    assert {"samples.png", "model_index.json", "unet", "vae", "tokenizer"} <= {
        path.name for path in Path(tiny).iterdir()
    }

    options = ["--generator", tiny, "--output_dir", out, "--per_device_train_batch_size", "4", "--use_cpu"]
    options += ["--pictures", "12", "--eval_pictures", "40", "--save_steps", "1", "--crop", "center", "--disable_tqdm"]
    options += ["true", "--cache_latents", str(tmp_path / "latents"), "--projector_steps", "1", "--lora", "true"]
    train_diva.main([*options, "--max_steps", "1", "--eval_split", "none"])
    kept = [Path(out, name) for name in ("checkpoint-1/trainer_state.json", "projector/model.safetensors")]
    written = [path.stat().st_mtime_ns for path in kept]
    metrics = train_diva.main([*options, "--max_steps", "2"])
    state = json.loads((tmp_path / "diva" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    for name in ("clipart_pairs_average", "probe_count_accuracy", "clipart_zero_shot_top1"):
        assert {f"before_{name}", f"eval_{name}"} <= metrics.keys()
    assert [path.stat().st_mtime_ns for path in kept] == written  # the second run went on
    assert run("-c", FRESH, out).split() == ["DIVAModel", "tiny", "2"]
    table = evaluate_mmvp.main(["--models", str(ENCODER), out])
    assert "| average | 240 |" in table
    assert "McNemar p" in table


@pytest.mark.slow
def test_comparison_goes_on(run, tmp_path):
    small = ["--pictures", "24", "--batch_size", "4"]
    tiny = tmp_path / "tiny"
    run("examples/train_tiny_diffusion.py", "--output_dir", tiny, "--vae_steps", 2, "--unet_steps", 2, *small)
    options = ["--generator", tiny, "--output_dir", tmp_path / "out", "--steps", 2, "--seeds", 0, *small, "--arms"]
    assert "| DIVA |" in run("examples/compare_diva.py", *options, "diva")
    record = tmp_path / "out" / "diva-0" / "scores.json"
    written = record.stat().st_mtime_ns
    table = run("examples/compare_diva.py", *options, "diva", "shuffled", "warm_up_cls")
    assert "control" in table
    assert "two stages" in table
    assert record.stat().st_mtime_ns == written


@pytest.mark.slow
def test_step_benchmark(run, tmp_path):
    run("benchmarks/diva_step.py", "--batch", 2, "--rounds", 2, "--output", tmp_path / "step.json")
    results = json.loads((tmp_path / "step.json").read_text())["results"]
    assert [result["draws"] for result in results] == [2, 4]
    assert all(result[f"difference_{name}"] < 1e-5 for result in results for name in ("shared", "shared_cached"))
