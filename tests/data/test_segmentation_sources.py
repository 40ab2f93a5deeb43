"""Folders in the published layouts of VOC, Pascal Context and COCO-Stuff, written here; GroupViT's augmentation."""

import numpy as np
import pytest
from PIL import Image

from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.rand_augment import OPERATIONS, RandomErasing
from hf_clipplus.data.segmentation_sources import (
    coco_objects,
    read_coco_object,
    read_context,
    read_hub_masks,
    read_mask,
    read_voc,
)
from hf_clipplus.models.groupvit.presets_groupvit import CLASS_NAMES


def save_pair(images, masks, name, levels):
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", levels.shape[::-1], "blue").save(images / f"{name}.jpg")
    palette = Image.fromarray(levels).convert("P") if levels.max() < 2 else Image.fromarray(levels)
    palette.save(masks / f"{name}.png")


@pytest.mark.parametrize(
    ("read", "lists", "masks"),
    [
        (read_voc, "Segmentation", "SegmentationClass"),
        (read_context, "SegmentationContext", "SegmentationClassContext"),
    ],
)
def test_voc_layouts(tmp_path, read, lists, masks):
    (tmp_path / "ImageSets" / lists).mkdir(parents=True)
    (tmp_path / "ImageSets" / lists / "val.txt").write_text("b\na\n")
    for name, level in (("a", 3), ("b", 255)):
        save_pair(tmp_path / "JPEGImages", tmp_path / masks, name, np.full((4, 6), level, np.uint8))
    rows = read(tmp_path)
    assert [row["mask"][0, 0] for row in rows] == [255, 3]
    assert rows[1]["image"].endswith("a.jpg")
    (tmp_path / masks / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 files are missing"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        read(tmp_path, "test")


def test_palette_numbers_are_kept_and_colours_refused():
    palette = Image.new("P", (3, 2), 7)
    palette.putpalette([0] * 768)
    assert (read_mask(palette) == 7).all()
    with pytest.raises(ValueError, match="mode 'RGB'"):
        read_mask(Image.new("RGB", (3, 2)))
    with pytest.raises(ValueError, match="0 to 255"):
        read_mask(np.full((2, 2), 300))


def test_coco_objects(tmp_path):
    levels = np.array([[0, 17, 89, 91, 255, 11]], np.uint8)
    names = [None if label == 0 else CLASS_NAMES["coco"][label - 1] for label in coco_objects(levels)[0]]
    assert names == ["person", "dog", "toothbrush", None, None, None]
    assert len(np.unique(coco_objects(np.arange(256)))) == 81
    save_pair(tmp_path / "images" / "val2017", tmp_path / "annotations" / "val2017", "000001", levels)
    rows = read_coco_object(tmp_path)
    assert len(rows) == 1
    assert (rows[0]["mask"] == coco_objects(levels)).all()
    with pytest.raises(FileNotFoundError, match="names no files"):
        read_coco_object(tmp_path, "train2017")


def test_hub_data_set_with_masks(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    pair = {"image": Image.new("RGB", (6, 4), "red"), "label": Image.fromarray(np.full((4, 6), 2, np.uint8))}
    datasets.Dataset.from_list([pair], features=features).to_parquet(tmp_path / "validation.parquet")
    rows = read_hub_masks("parquet", data_files={"validation": str(tmp_path / "*.parquet")}, mask_column="label")
    assert len(rows) == 1
    assert (rows[0]["mask"] == 2).all()
    with pytest.raises(ValueError, match="no column"):
        read_hub_masks("parquet", data_files={"validation": str(tmp_path / "*.parquet")})


def test_groupvit_augmentation_is_seeded_and_keeps_the_size():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    augment = image_augmentation("groupvit", size=32)
    made = [np.asarray(augment(picture, np.random.default_rng(seed))) for seed in (0, 0, 1)]
    assert made[0].shape == (32, 32, 3)
    assert (made[0] == made[1]).all()
    assert (made[0] != made[2]).any()
    for operation in OPERATIONS:
        for strength in (0.0, 0.9, 1.0):
            assert operation(picture, strength, np.random.default_rng(0)).size == picture.size
    changed = [np.asarray(operation(picture, 0.9, np.random.default_rng(0))) for operation in OPERATIONS]
    assert len({array.tobytes() for array in changed}) == len(OPERATIONS)


def test_random_erasing_changes_a_rectangle_and_no_more():
    picture = Image.new("RGB", (50, 40))
    erased = [np.asarray(RandomErasing()(picture, np.random.default_rng(seed))).any(2) for seed in range(200)]
    hit = [mask for mask in erased if mask.any()]
    assert len(hit) / 200 == pytest.approx(0.25, abs=0.1)
    for mask in hit:
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert mask.sum() > 0.95 * box
        assert 0.01 < box / mask.size < 0.36
