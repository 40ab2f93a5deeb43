"""Readers of few-shot data: CoOp's splits in all three forms, class folders, Hub-like data sets, class sentences."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_clipplus.data.few_shot_sources import (
    COOP_DATASETS,
    read_class_folders,
    read_class_sentences,
    read_coop_dataset,
    read_hub_dataset,
)
from hf_clipplus.training.few_shot_recipes import RECIPES, settings_of


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def test_coop_split(tmp_path):
    splits = {
        "train": [["a/1.jpg", 1, "dotted"], ["b/2.jpg", 0, "banded"]],
        "val": [["a/3.jpg", 1, "dotted"]],
        "test": [["b/4.jpg", 0, "banded"]],
    }
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    write(file, json.dumps(splits))
    found = read_coop_dataset("dtd", tmp_path)
    assert found.class_names == ["banded", "dotted"]
    assert found.labels == {"train": [1, 0], "val": [1], "test": [0]}
    assert found.images["val"] == [str(tmp_path / "dtd" / "images" / "a" / "3.jpg")]
    write(file, json.dumps({**splits, "test": [["b/4.jpg", 0, "striped"]]}))
    with pytest.raises(ValueError, match="class 0 is called 'banded' and 'striped'"):
        read_coop_dataset("dtd", tmp_path)
    write(file, json.dumps({**splits, "val": [["a/3.jpg", 5, "odd"]]}))
    with pytest.raises(ValueError, match="without gaps"):
        read_coop_dataset("dtd", tmp_path)
    write(file, json.dumps({"train": []}))
    with pytest.raises(ValueError, match="no split file of CoOp"):
        read_coop_dataset("dtd", tmp_path)
    with pytest.raises(ValueError, match="'mnist' is unknown"):
        read_coop_dataset("mnist", tmp_path)


def test_aircraft_and_imagenet(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    write(folder / "variants.txt", "707-320\nDC-10\n")
    for split in ("train", "val", "test"):
        write(folder / f"images_variant_{split}.txt", "0034309 DC-10\n")
    found = read_coop_dataset("fgvc_aircraft", tmp_path)
    assert found.labels["train"] == [1]
    assert found.images["train"] == [str(folder / "images" / "0034309.jpg")]
    write(tmp_path / "imagenet" / "classnames.txt", "n01 tench fish\nn02 goldfish\n")
    for split in ("train", "val"):
        for synset in ("n01", "n02"):
            picture(tmp_path / "imagenet" / "images" / split / synset / "x.jpg")
    found = read_coop_dataset("imagenet", tmp_path)
    assert found.class_names == ["tench fish", "goldfish"]
    assert set(found.images) == {"train", "test"}  # its val images are the test images, nobody chooses on them
    assert found.labels["test"] == [0, 1]


def test_every_published_data_set_has_a_reader_and_settings():
    assert set(COOP_DATASETS) == set(RECIPES)
    assert len(RECIPES) == 11
    assert RECIPES["imagenet"].channels(1024) == 500
    assert RECIPES["dtd"].channels(512) == 200
    assert RECIPES["dtd"].channels(512, trained=True) == 350
    assert max(RECIPES["eurosat"].grid().betas) < 30
    assert len(RECIPES["imagenet"].grid().gammas) == 5
    assert settings_of(RECIPES["eurosat"], 1024, 3).ape_epochs == 200


def test_class_folders(tmp_path):
    for name in ("train/cat/1.jpg", "train/dog/2.png", "validation/cat/3.jpg", "test/dog/4.jpg"):
        picture(tmp_path / name)
    write(tmp_path / "train" / "cat" / "notes.txt", "no image")
    found = read_class_folders(tmp_path)
    assert found.class_names == ["cat", "dog"]
    assert found.labels == {"train": [0, 1], "val": [0], "test": [1]}
    assert read_class_folders(tmp_path / "train").labels == {"train": [0, 1]}
    picture(tmp_path / "test" / "bird" / "5.jpg")
    with pytest.raises(ValueError, match=r"lacks: \['bird'\]"):
        read_class_folders(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        read_class_folders(tmp_path / "empty")


def test_data_set_with_class_labels(tmp_path):
    rows = {"image": [Image.new("RGB", (4, 4))] * 2, "label": [1, 0]}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["house_cat", "dog"])})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    found = read_hub_dataset(str(tmp_path))
    assert found.class_names == ["house cat", "dog"]
    assert found.labels == {"train": [1, 0]}
    assert len(found.images["train"]) == 2
    with pytest.raises(ValueError, match="no ClassLabel"):
        read_hub_dataset(str(tmp_path), label_column="image")


def test_class_sentences(tmp_path):
    file = tmp_path / "cupl.json"
    write(file, json.dumps({"House_Cat": ["It purrs."], "dog": ["It barks.", "It runs."], "other": ["x"]}))
    assert read_class_sentences(file, ["house cat", "dog"]) == {
        "house cat": ["It purrs."],
        "dog": ["It barks.", "It runs."],
    }
    with pytest.raises(ValueError, match=r"no sentences for 1 classes: \['bird'\]"):
        read_class_sentences(file, ["dog", "bird"])
    write(file, json.dumps({"dog": "It barks."}))
    with pytest.raises(ValueError, match="expected"):
        read_class_sentences(file, ["dog"])
