"""examples/evaluate.py in a fresh process, on the embedded drawings, on folders, parquet and with a YAML file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A stock CLIPModel with random weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = CLIPTokenizer().train_new_from_iterator(["a photo of a red square"] * 5, vocab_size=600)
    torch.manual_seed(0)
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layer, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision = {**layer, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


def run(folder, *arguments, ok=True):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "evaluate.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == ok, done.stderr
    return done.stdout if ok else done.stderr


def scores(file):
    entries = json.loads(file.read_text())["results"]
    return {(entry["dataset"], entry["metric"]): entry["value"] for entry in entries}


def test_embedded_drawings_by_default(model_folder, tmp_path):
    table = run(tmp_path, "--model", model_folder)
    found = scores(tmp_path / "results.json")
    assert found["clipart", "classes"] == 24
    assert 0 <= found["clipart", "top1"] <= 1
    assert 0 < found["clipart", "chance_text_to_image_R@10"] < found["clipart", "images"]
    assert "| text_to_image_R@1 |" in table
    # An untrained model is near chance: nothing leaks the answer.
    assert found["clipart", "text_to_image_R@1"] < 0.1


@pytest.mark.slow
def test_folders_and_a_yaml_file(model_folder, tmp_path):
    folder = tmp_path / "squares"
    for index, colour in enumerate(COLOURS):
        (folder / "test" / f"n{index}").mkdir(parents=True)
        for copy in range(2):
            Image.new("RGB", (32 + copy, 32), colour).save(folder / "test" / f"n{index}" / f"{copy}.png")
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c} square\n{c}\n")

    rows = {
        "image": [{"bytes": None, "path": str(folder / "test" / f"n{index}" / "0.png")} for index in range(6)],
        "captions": [[colour] * (1 + index % 2) for index, colour in enumerate(COLOURS)],
    }
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "squares.parquet")

    settings = {"model": str(model_folder), "classification": str(folder), "retrieval": "none", "output": "a.json"}
    (tmp_path / "a.yaml").write_text(json.dumps(settings))
    run(tmp_path, "--config", "a.yaml", "--retrieval", "squares.parquet")
    found = scores(tmp_path / "a.json")
    assert found[str(folder), "samples"] == 12
    assert found[str(folder), "classes"] == 6
    assert found["squares.parquet", "captions"] == 9
    assert found["squares.parquet", "chance_text_to_image_R@1"] == pytest.approx(1 / 6)
    assert json.loads((tmp_path / "a.json").read_text())["results"][0]["protocol"] == "2 templates"


@pytest.mark.slow
def test_a_wrong_model_is_an_error(tmp_path):
    assert "cannot load model 'nobody/nothing'" in run(tmp_path, "--model", "nobody/nothing", ok=False)
    assert not (tmp_path / "results.json").exists()
