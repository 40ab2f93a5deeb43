"""Pointing, training-free segmentation and heat maps with a model whose patches are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTokenizer, pipeline

from hf_clipplus import DreamLIPConfig, DreamLIPModel, DreamLIPProcessor
from hf_clipplus.evaluation.heat_map import heat_map_overlay, text_heat_map
from hf_clipplus.evaluation.patch_segmentation import PatchSegmentation
from hf_clipplus.evaluation.pointing import PointingAccuracy
from hf_clipplus.evaluation.scenes import PREAMBLE, long_text_evaluators, scene_evaluators

CLASSES = ["red", "green", "blue"]
SIDE, PATCH = 16, 2


class ColourModel(DreamLIPModel):
    """Patches are their mean colour; a class is its colour: red, green, blue."""

    def get_patch_features(self, pixel_values):
        colours = torch.nn.functional.avg_pool2d(pixel_values, PATCH).flatten(2).transpose(1, 2)
        return torch.nn.functional.normalize(colours + 1e-6, dim=-1)

    def encode_text(self, input_ids, attention_mask=None, normalize=True):
        names = [self.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in input_ids]
        return torch.eye(3)[[next(i for i, colour in enumerate(CLASSES) if colour in name) for name in names]]


@pytest.fixture(scope="module")
def processor():
    tokenizer = CLIPTokenizer().train_new_from_iterator(["a photo of a red green blue."] * 4, 300)
    tokenizer.model_max_length = 16
    size = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessorPil(
        size=size[0], crop_size=size[1], image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0]
    )
    return DreamLIPProcessor(image_processor, tokenizer)


@pytest.fixture(scope="module")
def model(processor):
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = DreamLIPConfig(
        text_config={"model_type": "clip_text_model", "vocab_size": len(processor.tokenizer), **tower},
        vision_config={"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH, **tower},
        projection_dim=3,
    )
    found = ColourModel(config)
    found.processor = processor
    return found


def picture(mask):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    return {"image": Image.fromarray(colours[mask]), "mask": mask.astype(np.uint8)}


@pytest.fixture(scope="module")
def rows():
    first, second = np.zeros((2, SIDE, SIDE), dtype=int)
    first[:4, :8], first[8:, 12:] = 1, 3
    second[4:12, 4:12] = 2
    return [picture(first), picture(second)]


def test_pointing(model, processor, rows):
    found = PointingAccuracy(rows, CLASSES, templates=("{}", "a photo of a {}."))(model, processor)
    assert found == {
        "pointing_accuracy": 1.0,
        "chance_pointing_accuracy": pytest.approx((2 / 16 + 2 / 16 + 4 / 16) / 3),
        "queries": 3.0,
    }
    wrong = [{**rows[0], "mask": rows[0]["mask"][::-1, ::-1].copy()}]
    assert PointingAccuracy(wrong, CLASSES)(model, processor)["pointing_accuracy"] == 0


def test_equally_similar_patches_count_by_their_share(model, processor, rows):
    grey = Image.new("RGB", (SIDE, SIDE), (80, 80, 80))
    found = PointingAccuracy([{"image": grey, "mask": rows[1]["mask"]}], CLASSES)(model, processor)
    assert found["pointing_accuracy"] == pytest.approx(found["chance_pointing_accuracy"]) == pytest.approx(4 / 16)


def test_nothing_to_point_at_is_refused(model, processor, rows):
    with pytest.raises(ValueError, match="no mask shows a class"):
        PointingAccuracy([{**rows[0], "mask": np.zeros((SIDE, SIDE), np.uint8)}], CLASSES)(model, processor)


@pytest.mark.parametrize("copies", [1, 3])
def test_segmentation_of_pictures_of_any_size(copies, model, processor, rows):
    """One window, and several that overlap; a black patch is equally like every class, so background."""
    wide = [picture(np.tile(row["mask"], (1, copies))) for row in rows]
    evaluator = PatchSegmentation(wide, CLASSES, background=0.5, short_side=SIDE)
    found = evaluator(model, processor)
    assert found["pixel_accuracy"] > 0.8  # the upsampled scores blur the borders of patches
    assert found["mIoU"] > 2 * max(found["chance_mIoU"], found["chance_mIoU_one_class"])
    assert evaluator.iou_per_class().keys() == {"background", *CLASSES}


def test_the_pipeline_segments_by_patches(model, processor, rows):
    wide = rows[0]["image"].resize((2 * SIDE, SIDE), Image.Resampling.NEAREST)
    segment = pipeline("clipplus-zero-shot-segmentation", model=model, processor=processor)
    found = segment(wide, class_names=CLASSES, templates=("{}",), background=0.5, short_side=SIDE)
    assert found["labels"].shape == (SIDE, 2 * SIDE)
    assert [int(found["labels"][place]) for place in ((1, 2), (-2, -2), (-2, 2))] == [1, 3, 0]
    assert {entry["label"] for entry in found["segments"]} == {"background", "red", "blue"}
    assert all(0.3 < entry["score"] <= 1 for entry in found["segments"])


def test_small_pictures_are_padded(model, processor, rows):
    small = [picture(np.full((6, 10), 2))]
    assert PatchSegmentation(small, CLASSES, background=None, short_side=6)(model, processor)["samples"] == 1


def test_heat_map():
    heat = np.zeros((2, 2))
    heat[0, 1] = 1
    drawn = np.asarray(heat_map_overlay(Image.new("RGB", (8, 8), "grey"), torch.from_numpy(heat), opacity=1.0))
    assert drawn[0, 7].tolist() == [255, 90, 20]
    assert drawn[7, 0].tolist() == [20, 30, 90]
    assert heat_map_overlay(Image.new("RGB", (8, 8)), np.ones((2, 2))).size == (8, 8)
    with pytest.raises(ValueError, match="finite matrix"):
        heat_map_overlay(Image.new("RGB", (8, 8)), np.full((2, 2), np.nan))


@pytest.mark.parametrize("scale", [1, 3])
def test_a_text_is_where_its_colour_is(scale, model, processor, rows):
    image = rows[0]["image"].resize((2 * SIDE * scale, SIDE * scale), Image.Resampling.NEAREST)
    heat = text_heat_map(model, processor, image, "blue")
    assert heat.shape == (SIDE * scale, 2 * SIDE * scale)
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    assert image.getpixel((column, row)) == (0, 0, 255)


def test_scene_texts():
    by_summary, by_long, pointing = scene_evaluators("validation", image_size=48, length=6)
    assert len(by_summary.captions) == len(by_long.captions) == len(pointing.rows) == 6
    for summary, long in zip(by_summary.captions, by_long.captions, strict=True):
        assert long.startswith(summary)
    late = long_text_evaluators("validation", image_size=48, length=6)[2]
    start = " ".join(PREAMBLE)
    assert all(text == f"{start} {long}" for text, long in zip(late.captions, by_long.captions, strict=True))
    assert len(start.split()) > 77  # words, so tokens of any tokenizer
