"""The examples of DIVA in one process, what they saved in a fresh one, and the benchmark at toy size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = """
import json, sys
sys.path.insert(0, "examples")
out = sys.argv[1]
import train_tiny_diffusion, train_diva, evaluate_mmvp
small = ["--pictures", "24", "--batch_size", "4", "--held_out", "8"]
losses = train_tiny_diffusion.main(["--output_dir", f"{out}/tiny", "--vae_steps", "2", "--unet_steps", "2", *small])
run = ["--generator", f"{out}/tiny", "--output_dir", f"{out}/diva", "--per_device_train_batch_size", "4", "--use_cpu"]
run += ["--pictures", "12", "--eval_pictures", "40", "--save_steps", "1", "--crop", "center", "--report_to", "none"]
run += ["--cache_latents", f"{out}/latents", "--projector_steps", "1", "--lora", "true", "--max_steps"]
train_diva.main([*run, "1"])
metrics = train_diva.main([*run, "2"])
table = evaluate_mmvp.main(["--models", "examples/checkpoints/clipart-clip", f"{out}/diva"])
json.dump({"losses": losses, "metrics": metrics, "table": table}, open(f"{out}/found.json", "w"))
"""
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


def run(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_examples_and_what_they_saved(tmp_path):
    said = run("-c", EXAMPLES, tmp_path)
    assert "Resuming from" in said.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"loss_own_caption", "loss_other_caption", "loss_empty_caption", "vae_error"} < found["losses"].keys()
    assert (tmp_path / "tiny" / "samples.png").is_file()
    assert (tmp_path / "tiny" / "model_index.json").is_file()
    for name in ("clipart_pairs_average", "probe_count_accuracy", "clipart_zero_shot_top1"):
        assert {f"before_{name}", f"eval_{name}"} <= found["metrics"].keys()
    assert "| average | 240 |" in found["table"]
    assert "McNemar p" in found["table"]
    assert (tmp_path / "diva" / "projector" / "model.safetensors").is_file()
    assert run("-c", FRESH, tmp_path / "diva").stdout.split() == ["DIVAModel", "tiny", "2"]


@pytest.mark.slow
def test_comparison_goes_on(tmp_path):
    small = ["--pictures", "24", "--batch_size", "4"]
    tiny = tmp_path / "tiny"
    run("examples/train_tiny_diffusion.py", "--output_dir", tiny, "--vae_steps", 2, "--unet_steps", 2, *small)
    options = ["--generator", tiny, "--output_dir", tmp_path / "out", "--steps", 2, "--seeds", 0, *small, "--arms"]
    assert "| DIVA |" in run("examples/compare_diva.py", *options, "diva").stdout
    record = tmp_path / "out" / "diva-0" / "scores.json"
    written = record.stat().st_mtime_ns
    table = run("examples/compare_diva.py", *options, "diva", "shuffled", "warm_up_cls").stdout
    assert "control" in table
    assert "two stages" in table
    assert record.stat().st_mtime_ns == written


@pytest.mark.slow
def test_step_benchmark(tmp_path):
    run("benchmarks/diva_step.py", "--batch", 2, "--rounds", 2, "--output", tmp_path / "step.json")
    results = json.loads((tmp_path / "step.json").read_text())["results"]
    assert [result["draws"] for result in results] == [2, 4]
    assert all(result[f"difference_{name}"] < 1e-5 for result in results for name in ("shared", "shared_cached"))
