"""Variations of images by a tiny random pipeline: provenance, resuming, shares, bad images, wrong input."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from hf_clipplus.data.image_variations import REPORT_KINDS, Varier, write_variations
from hf_clipplus.data.images import load_image
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.shards import ShardArguments, parse_shard
from hf_clipplus.data.sources import load_pairs
from hf_clipplus.training.scratch import train_tokenizer

ROOT = Path(__file__).parents[2]
TINY_DIVA = ROOT / "tests" / "models" / "tiny_diva.py"
spec = importlib.util.spec_from_file_location("tiny_diva", TINY_DIVA)
tiny_diva = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_diva)

SIZE = {"image_size": 16, "steps": 4}
NUMBERS = range(7)
CORRUPT = 3


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tokenizer = train_tokenizer(["a raw caption of a picture"], vocab_size=560, context=8)
    parts = tiny_diva.tiny_parts()
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, tokenizer=tokenizer, **extra).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven images, wide and high ones; one is corrupt."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in NUMBERS:
        noise = np.random.default_rng(i).integers(0, 256, (20, 40, 3) if i % 2 else (24, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"raw {i}", "image_id": i}) + "\n")
    (folder / f"{CORRUPT}.png").write_bytes(b"corrupt")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(rows):
    return [np.asarray(load_image(row["image"])) for row in rows]


def write(pictures, varier, output, **options):
    report = DataReport(REPORT_KINDS)
    counts = write_variations(load_pairs(pictures), varier, output, report=report, shard_size=3, **options)
    return counts, report


@pytest.mark.slow
def test_rows_say_where_they_come_from_and_are_data_again(pipeline, pictures, tmp_path):
    varier = Varier(pipeline, variations=2, strength=0.6, prompt="a drawing of {caption}", seed=5, **SIZE)
    counts, report = write(pictures, varier, tmp_path / "out", keep_original=True)
    assert counts == (3, 0)
    assert report.counts() == {"unreadable image": 1, "image withheld by the safety checker": 0}
    rows = list(datasets.load_dataset(str(tmp_path / "out"), split="train").cast_column("image", datasets.Image()))
    readable = [i for i in NUMBERS if i != CORRUPT]
    assert [row["source_row"] for row in rows] == [i for i in readable for _ in range(3)]
    for place, row in enumerate(rows):
        original, i = place % 3 == 0, row["source_row"]
        assert row["source_id"] == str(pictures / f"{i}.png")
        assert row["caption"] == f"raw {i}"
        assert row["prompt"] == (None if original else f"a drawing of raw {i}")
        assert row["pipeline"] == (None if original else pipeline)
        assert row["revision"] is None
        assert row["strength"] == pytest.approx(0.0 if original else 0.6)
        assert row["image"].size == ((16, 8) if i % 2 else (16, 16))
        assert row["seed"] == (None if original else varier.seed_of(i, place % 3 - 1))
    again = load_pairs(tmp_path / "out")
    assert again.column_names == ["image", "caption"]  # an image_id would say that they are the same picture
    images = pixels(again)
    for first in range(0, len(images), 3):
        original, one, other = images[first : first + 3]
        assert (one != other).mean() > 0.5
        assert (one != original).mean() > 0.5


def test_interrupted_and_shared_work_gives_the_same(pipeline, pictures, tmp_path):
    varier = Varier(pipeline, seed=1, **SIZE)
    counts, _ = write(pictures, varier, tmp_path / "whole", batch_size=3)
    assert counts == (3, 0)
    assert write(pictures, varier, tmp_path / "parts", max_shards=1)[0] == (1, 0)
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.parquet")}
    assert list(first) == ["variations-000000000-000000003.parquet"]
    (tmp_path / "parts" / ".variations-000000003-000000006.parquet.1").write_bytes(b"cut")  # what a crash leaves
    assert write(pictures, varier, tmp_path / "parts", share=(1, 2))[0] == (1, 1)
    assert write(pictures, varier, tmp_path / "parts", share=(0, 2))[0] == (1, 2)
    for name, time in first.items():
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == time  # not made again
    whole, parts = load_pairs(tmp_path / "whole"), load_pairs(tmp_path / "parts")
    assert whole["caption"] == parts["caption"]
    for one, other in zip(pixels(whole), pixels(parts), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # other company in a batch rounds otherwise
    other = tmp_path / "other seed"
    write(pictures, Varier(pipeline, seed=2, **SIZE), other, max_shards=1)
    assert (pixels(load_pairs(other))[0] != pixels(whole)[0]).mean() > 0.5


def test_inpainting_paints_a_box_at_a_random_place(pipeline):
    varier = Varier(pipeline, mode="inpainting", strength=1.0, mask_area=0.25, **SIZE)
    mask = np.asarray(varier.mask((16, 16), seed=3)) > 0
    assert mask.sum() == 64
    assert not np.array_equal(mask, np.asarray(varier.mask((16, 16), seed=4)) > 0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (found,) = varier([image], ["a boat"], [3])
    assert found.size == (16, 16)
    (other,) = varier([image], ["a boat"], [5])
    assert not np.array_equal(np.asarray(found), np.asarray(other))


def test_withheld_images_are_counted(pipeline, pictures, tmp_path):
    varier = Varier(pipeline, **SIZE)
    call = varier.pipeline

    def withhold(**inputs):
        found = call(**inputs)
        found.nsfw_content_detected = [prompt == "raw 2" for prompt in inputs["prompt"]]
        return found

    varier.pipeline = withhold
    _, report = write(pictures, varier, tmp_path / "out")
    assert report.names("image withheld by the safety checker") == [str(pictures / "2.png")]
    assert load_pairs(tmp_path / "out")["caption"] == [f"raw {i}" for i in NUMBERS if i not in (2, CORRUPT)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"strength": 1.1}, "strength must be above 0 and at most 1, got 1.1"),
        ({"mask_area": -1.0}, "mask_area"),
        ({"mode": "outpainting"}, "choose one of"),
        ({"variations": 0}, "variations must be at least 1"),
        ({"steps": 3, "strength": 0.2}, "3 steps at a strength of 0.2 are none"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Varier("nowhere", **settings)


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "0/0"])
def test_wrong_shards(shard):
    with pytest.raises(ValueError, match="shard must be i/n"):
        parse_shard(shard)
    with pytest.raises(ValueError, match="shard must be i/n"):
        ShardArguments("source", "output", shard=shard)


@pytest.mark.slow
def test_script(pipeline, pictures, tmp_path):
    script, output = ROOT / "examples" / "augment_images.py", tmp_path / "out"
    arguments = ["--source", pictures, "--output_dir", output, "--pipeline", pipeline, "--image_size", 16]
    arguments += ["--steps", 4, "--shard_size", 2]

    def run(*extra):
        command = [str(part) for part in (sys.executable, script, *arguments, *extra)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    assert "2 shards written" in run("--shard", "0/2").stdout
    done = run()
    assert "2 shards written" in done.stdout
    assert "2 were there already" in done.stdout
    assert "1 x unreadable image" in done.stdout
    assert load_pairs(output)["caption"] == [f"raw {i}" for i in NUMBERS if i != CORRUPT]
    assert "strength: 0.5 then, 0.9 now" in run("--strength", 0.9).stderr
