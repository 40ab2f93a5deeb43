"""examples/train_ape.py and the benchmarks of APE in fresh processes; what the example saved loads and answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRESH = """
import sys, torch, hf_clipplus
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
folder, processor = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder)
classify = pipeline("image-classification", model=model, image_processor=processor)
print(len(classify(Image.new("RGB", (50, 50), "red"), top_k=100)))
"""


def run(script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("head", ["ape", "ape_t"])
def test_example_and_what_it_saved(head, tmp_path):
    options = ("--shots", 1, 2, "--seeds", 1, "--views", 2, "--heads", "zero_shot", head, "--save", head)
    table = run(["examples/train_ape.py"], *options, "--output_dir", tmp_path)
    assert "| zero-shot CLIP |" in table
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 4
    assert {row["protocol"] for row in rows} == {"honest"}
    assert (tmp_path / "accuracy.png").is_file()
    folder = tmp_path / head
    assert "protocol | honest" in (folder / "README.md").read_text()
    weights = {path.name for path in folder.glob("*.safetensors")}
    assert weights == ({"model.safetensors"} if head == "ape" else {"adapter_model.safetensors"})
    classes = run(["-c", FRESH], folder, folder / "base" if head == "ape_t" else folder)
    assert int(classes.split()[-1]) == 24
    again = run(["examples/train_ape.py"], *options, "--output_dir", tmp_path)  # features from disk, same numbers

    def accuracies(text):
        return [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| ")]

    assert accuracies(again) == accuracies(table)


def test_benchmark(tmp_path):
    run(["benchmarks/ape.py"], "--quick", "--output", tmp_path / "ape.json")
    found = json.loads((tmp_path / "ape.json").read_text())
    assert found["search"]["same optimum"] is True
    assert found["criterion, C=100 K=16 D=1024"]["ratio"] > 1000


@pytest.mark.slow
def test_digits_experiment(tmp_path):
    said = run(["benchmarks/ape_digits.py"], "--quick", "--output", tmp_path)
    assert "C5 holds" in said
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"1", "4", "16"}
