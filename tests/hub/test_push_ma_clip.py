"""MA-CLIP to the Hub and back: what the recipe pushes, and the upload script's two forms."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSUMER = """
import sys, hf_clipplus, torch
import numpy as np
from huggingface_hub import hf_hub_download
from transformers import AutoModelForVideoClassification, pipeline
repo, base = sys.argv[1:]
card = open(hf_hub_download(repo, "README.md")).read()
assert f'"{repo}"' in card and f"base_model: {base}" in card, card
videos = [np.full((8, 48, 48, 3), level, np.uint8) for level in (20, 220)]
support, task = {"dark": [videos[0]], "bright": [videos[1]]}, "clipplus-few-shot-video-classification"
adapted, plain = (pipeline(task, model=each)(videos, support=support) for each in (repo, base))
assert adapted != plain
model = AutoModelForVideoClassification.from_pretrained(repo)
assert any("ma_clip_" in name for name, _ in model.named_parameters())
"""


@pytest.mark.slow
def test_to_the_hub_and_back(hub, tmp_path):
    def run(home, *arguments):
        environment = hub.environment(tmp_path / home, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    small = ("--max_steps", 2, "--eval_steps", 2, "--save_steps", 2, "--clips_per_class", 2, "--queries", 1)
    small += ("--eval_shots", 1, "--eval_episodes", 20, "--learning_rate", 0.05, "--warmup_steps", 0)
    output, repo = tmp_path / "out", "org/ma-clip-plus"
    run("author", "examples/train_ma_clip.py", *small, "--output_dir", output, "--push_to_hub", "--hub_model_id", repo)
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} < hub.files(repo).keys()
    assert "model.safetensors" not in hub.files(repo)
    assert "model.safetensors" in hub.files(f"{repo}-base")
    released = ("--source", output, "--license", "cc-by-4.0", "--repo_id")
    run("author", "upload_scripts/push_ma_clip.py", *released, "org/released")
    run("author", "upload_scripts/push_ma_clip.py", *released, "org/whole", "--self_contained", "true")
    assert {"model.safetensors", "config.json", "ma_clip_bundle.py"} < hub.files("org/whole").keys()
    output.rename(tmp_path / "elsewhere")  # what was pulled must not find its base on this machine
    for name in (repo, "org/released"):
        run("stranger", "-c", CONSUMER, name, f"{name}-base")
