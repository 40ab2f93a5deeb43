"""Few-shot heads to the Hub and back: a head is self-contained, an adapter finds its base."""

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
repo, processor, folder = sys.argv[1:]
card = open(hf_hub_download(repo, "README.md")).read()
assert f'"{repo}"' in card and f'"{processor}"' in card, card
pulled, local = (AutoModelForImageClassification.from_pretrained(each).eval() for each in (repo, folder))
pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    torch.testing.assert_close(pulled(pixels).logits, local(pixels).logits, rtol=1e-5, atol=1e-4)
classify = pipeline("image-classification", model=pulled, image_processor=processor)
assert len(classify(Image.new("RGB", (60, 60), "red"), top_k=100)) == 24
"""


@pytest.mark.parametrize("head", ["ape", "ape_t"])
def test_to_the_hub_and_back(hub, head, tmp_path):
    def run(home, *arguments):
        environment = hub.environment(tmp_path / home, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    repo = f"org/{head.replace('_', '-')}-plus"
    options = ("--shots", 1, "--seeds", 1, "--views", 1, "--heads", head, "--save", head, "--output_dir", tmp_path)
    run("author", "examples/train_ape.py", *options, "--hub_model_id", repo)
    folder, processor = tmp_path / head, repo
    if head == "ape_t":
        processor = f"{repo}-base"
        os.rename(folder / "base", folder / "elsewhere")  # the pulled adapter must not find it on this machine
        local = tmp_path / "local"
        local.mkdir()
        text = (folder / "adapter_config.json").read_text()
        (local / "adapter_config.json").write_text(text.replace(str(folder / "base"), str(folder / "elsewhere")))
        os.link(folder / "adapter_model.safetensors", local / "adapter_model.safetensors")
        folder = local
    run("stranger", "-c", CONSUMER, repo, processor, folder)
