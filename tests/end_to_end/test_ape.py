"""examples/train_ape.py and the benchmarks of APE in fresh processes; what the example saved loads and answers."""

import json

import pytest

FRESH = """
import sys, hf_clipplus
from PIL import Image
from transformers import pipeline
classify = pipeline("image-classification", model=sys.argv[1])
print(len(classify(Image.new("RGB", (50, 50), "red"), top_k=100)))
"""


@pytest.mark.slow
def test_example_and_what_it_saved(run, tmp_path):
    options = ("--shots", 1, 2, "--seeds", 1, "--views", 2, "--heads", "zero_shot", "ape", "--save", "ape")
    table = run("examples/train_ape.py", *options, "--output_dir", tmp_path)
    assert "| zero-shot CLIP |" in table
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 4
    assert {row["protocol"] for row in rows} == {"honest"}
    assert (tmp_path / "accuracy.png").is_file()
    folder = tmp_path / "ape"
    assert "- protocol: honest" in (folder / "README.md").read_text()
    assert rows[0]["prompts_sha256"] in (folder / "README.md").read_text()
    assert {path.name for path in folder.glob("*.safetensors")} == {"model.safetensors"}
    assert run("-c", FRESH, folder).split()[-1] == "24"


@pytest.mark.slow
def test_benchmark(run, tmp_path):
    run("benchmarks/ape.py", "--quick", "--output", tmp_path / "ape.json")
    found = json.loads((tmp_path / "ape.json").read_text())
    assert found["search"]["same optimum"] is True
    assert found["criterion, C=100 K=16 D=1024"]["ratio"] > 1000


@pytest.mark.slow
def test_digits_experiment(run, tmp_path):
    said = run("benchmarks/ape_digits.py", "--quick", "--output", tmp_path)
    assert "C5 holds" in said
    (file,) = tmp_path.glob("results-*.json")
    found = json.loads(file.read_text())
    assert set(found) == {"1/100", "4/100", "16/100"}
    del found["4/100"]
    file.write_text(json.dumps(found))
    assert run("benchmarks/ape_digits.py", "--quick", "--output", tmp_path).count(" done after ") == 1  # goes on
