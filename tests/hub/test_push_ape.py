"""An APE-T adapter and its base to the Hub and back: the base is self-contained, the adapter finds it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSUMER = """
import sys, torch, hf_clipplus
from transformers import AutoModelForImageClassification, AutoProcessor, pipeline
from PIL import Image
from huggingface_hub import hf_hub_download
repo, folder = sys.argv[1:]
card = open(hf_hub_download(repo, "README.md")).read()
assert f'"{repo}"' in card and f"base_model: {repo}-base" in card, card
pulled, local = (AutoModelForImageClassification.from_pretrained(each).eval() for each in (repo, folder))
pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.testing.assert_close(pulled(pixels).logits, local(pixels).logits, rtol=1e-5, atol=1e-4)
picture = Image.new("RGB", (60, 60), "red")
few_shot = pipeline("image-classification", model=pulled, image_processor=repo)(picture, top_k=100)
zero_shot = pipeline("image-classification", model=f"{repo}-base")(picture, top_k=100)
assert len(few_shot) == len(zero_shot) == 24
assert few_shot != zero_shot
"""


@pytest.mark.slow
def test_to_the_hub_and_back(hub, tmp_path):
    def run(home, *arguments):
        environment = hub.environment(tmp_path / home, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    options = ("--shots", 1, "--seeds", 1, "--views", 1, "--heads", "ape_t", "--save", "ape_t")
    options += ("--output_dir", tmp_path, "--hub_model_id", "org/ape-t-plus")
    run("author", "examples/train_ape.py", *options)
    saved, local = tmp_path / "ape_t", tmp_path / "local"
    assert {path.name for path in saved.glob("*.safetensors")} == {"adapter_model.safetensors"}
    os.rename(saved / "base", saved / "elsewhere")  # the pulled adapter must not find it on this machine
    local.mkdir()
    config = (saved / "adapter_config.json").read_text()
    (local / "adapter_config.json").write_text(config.replace(str(saved / "base"), str(saved / "elsewhere")))
    os.link(saved / "adapter_model.safetensors", local / "adapter_model.safetensors")
    run("stranger", "-c", CONSUMER, "org/ape-t-plus", local)
