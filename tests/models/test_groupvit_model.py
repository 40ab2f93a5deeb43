"""GroupViT's model, processor and pipeline on tiny random weights: sizes, batches, bad input, save and load."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from hf_clipplus import GroupViTPlusConfig, GroupViTPlusModel, GroupViTPlusProcessor
from hf_clipplus.evaluation.overlay import segmentation_overlay
from hf_clipplus.models.groupvit.segmentation_groupvit import windows
from hf_clipplus.models.text_buckets import OVERHEAD_TOKENS, cut_points, text_lengths

CLASSES = ["cat", "small dog", "green boat", "tiger", "sun", "cup", "hill"]
TASK = "clipplus-zero-shot-segmentation"


def make_config(tokenizer, **vision):
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 0}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    groups = {"depths": [1, 1, 1], "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3]}
    tower = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    return GroupViTPlusConfig(
        text_config=text | ids | ends,
        vision_config=tower | groups | vision,
        projection_dim=16,
        projection_intermediate_dim=24,
        prompts_per_image=2,
    )


@pytest.fixture(scope="module")
def processor(tokenizer):
    return GroupViTPlusProcessor.from_tokenizer(tokenizer, image_size=32)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = GroupViTPlusModel(make_config(tokenizer)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
        for name, parameter in model.vision_model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter *= 8  # the published initialisation assigns all tokens alike
    return model


@pytest.fixture(scope="module")
def classes(model, processor):
    return model.class_embeddings(**processor.class_inputs(CLASSES))


def picture(height, width, seed=0):
    levels = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST)


SIZES = [(40, 60), (64, 64), (33, 120)]


def test_a_batch_of_mixed_sizes_is_as_each_alone(model, processor, classes):
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    inputs = processor.segmentation_inputs(pictures, short_side=48)
    options = {
        "crop_size": 40,
        "stride": 24,
        "background_threshold": 0.3,
        "output_scores": True,
        "output_groups": True,
    }
    together = model.segment(**inputs, class_embeds=classes, crops_per_batch=3, **options)
    for i, found in enumerate(together):
        alone = {"pixel_values": inputs["pixel_values"][i : i + 1], "target_sizes": inputs["target_sizes"][i : i + 1]}
        (expected,) = model.segment(**alone, class_embeds=classes, **options)
        assert found.labels.shape == SIZES[i]
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.scores, expected.scores)
        assert found.scores.shape == (len(CLASSES) + 1, *SIZES[i])
        torch.testing.assert_close(found.scores.sum(0), torch.ones(SIZES[i]))
        assert [groups.shape for groups in found.groups] == [SIZES[i]] * 2
        assert found.group_classes.shape[1] == 3
    assert all(len(found.scores.flatten(1).unique(dim=1).T) > 1 for found in together), "nothing to tell apart"


def test_windows_cover_everything_and_stay_inside():
    for height, width in ((10, 30), (40, 41), (100, 64)):
        boxes = windows(height, width, crop_size=40, stride=24)
        covered = torch.zeros(height, width)
        for y1, y2, x1, x2 in boxes:
            assert 0 <= y1 < y2 <= height
            assert 0 <= x1 < x2 <= width
            covered[y1:y2, x1:x2] += 1
        assert covered.min() > 0


def test_segment_restores_training_flags_and_is_deterministic(model, processor, classes):
    inputs = processor.segmentation_inputs([picture(40, 40)], short_side=40)
    (first,) = model.segment(**inputs, class_embeds=classes)
    model.train()
    model.visual_projection.eval()
    (second,) = model.segment(**inputs, class_embeds=classes)
    assert model.training
    assert not model.visual_projection[1].training
    model.eval()
    assert torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("number", [1, 2])
def test_few_classes(model, processor, number):
    embeds = model.class_embeddings(**processor.class_inputs(CLASSES[:number]))
    inputs = processor.segmentation_inputs([picture(40, 40)], short_side=40)
    (found,) = model.segment(**inputs, class_embeds=embeds)
    assert found.labels.max() < number


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tiles"}, "mode 'tiles'"),
        ({"stride": 50, "crop_size": 40}, "0 < stride <= crop_size"),
        ({"target_sizes": [(4, 4), (5, 5)]}, "1 pictures but 2 target_sizes"),
        ({"class_embeds": torch.zeros(0, 16)}, "at least one class"),
        ({"class_embeds": torch.zeros(3, 15)}, "15 dimensions, the model 16"),
        ({"pixel_values": [torch.zeros(3, 7, 40)]}, "smaller than a patch"),
        ({"pixel_values": [torch.full((3, 40, 40), torch.nan)]}, r"pictures \[0\] hold NaN"),
    ],
)
def test_segment_refuses(model, classes, options, message):
    inputs = {"pixel_values": [torch.zeros(3, 40, 40)], "class_embeds": classes} | options
    with pytest.raises(ValueError, match=message):
        model.segment(**inputs)


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "at least one class"), (["cat", " "], "none of them blank"), (["cat", "dog", "cat "], r"\['cat'\]")],
)
def test_class_names_are_checked(processor, names, message):
    with pytest.raises(ValueError, match=message):
        processor.class_inputs(names)


def test_pictures_of_every_kind(processor):
    colour = picture(20, 30)
    grey, alpha = colour.convert("L"), colour.convert("RGBA")
    alpha.putalpha(0)
    inputs = processor.segmentation_inputs([colour, grey, alpha, np.asarray(grey)], short_side=16)
    assert [tuple(each.shape) for each in inputs["pixel_values"]] == [(3, 16, 24)] * 4
    assert torch.equal(inputs["pixel_values"][1], inputs["pixel_values"][3])
    white = (1 - torch.tensor(processor.image_processor.image_mean)) / torch.tensor(
        processor.image_processor.image_std
    )
    torch.testing.assert_close(inputs["pixel_values"][2][:, 3, 3], white)
    deep = Image.fromarray(np.full((20, 30), 40_000, np.uint16))
    with pytest.raises(ValueError, match="load_image"):
        processor.segmentation_inputs([deep])
    with pytest.raises(ValueError, match="float64"):
        processor.segmentation_inputs([np.zeros((4, 4, 3))])


def test_a_very_wide_picture(model, processor, classes):
    inputs = processor.segmentation_inputs([picture(16, 700)], short_side=48, long_side=400)
    with pytest.raises(ValueError, match="cut a very long picture into parts"):
        model.segment([inputs["pixel_values"][0][:, :6]], classes)
    (found,) = model.segment(**inputs, class_embeds=classes, crop_size=40, stride=40)
    assert found.labels.shape == (16, 700)


def test_texts_of_images_are_three_dimensional(processor):
    text = [["a red cat", "two green boats"], ["a tiger", "a cup of tea on a hill"]]
    batch = processor(images=[picture(20, 30)] * 2, text=text, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["input_ids"].shape[:2] == (2, 2)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    with pytest.raises(ValueError, match="equally long"):
        processor(text=[["a"], ["b", "c"]])
    with pytest.raises(ValueError, match="1 images but 2 lists"):
        processor(images=[picture(20, 30)], text=text)
    long = processor(text=["a cat " * 40, "a"], return_tensors="pt")
    assert long["truncated_captions"] == 1
    assert long["input_ids"].shape == (2, 16)


def test_padding_and_mask_do_not_change_a_text(model, processor):
    texts = ["a red cat", "a small dog on a hill"]
    together = processor(text=texts, return_tensors="pt")
    full = processor(text=texts, padding="max_length", return_tensors="pt")
    for i, text in enumerate(texts):
        alone = model.encode_text(**processor(text=[text], return_tensors="pt"))[0]
        for batch in (together, full):
            torch.testing.assert_close(model.encode_text(batch["input_ids"], batch["attention_mask"])[i], alone)
            torch.testing.assert_close(model.encode_text(batch["input_ids"])[i], alone)


def test_texts_share_batch_statistics_in_training(model, processor):
    """In training one call of the projector sees all texts, whatever their lengths, also through `encode_text`."""
    model = deepcopy(model).train()
    texts = ["sun"] * 60 + ["a small dog a green boat a tiger a cup"] * 3  # cheaper in two groups than in one
    batch = processor(text=texts, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    lengths = text_lengths(batch["input_ids"], model.config.text_config.eos_token_id)
    assert len(cut_points(lengths.tolist(), OVERHEAD_TOKENS["cpu"])) == 2
    tower = model.text_model(**batch).pooler_output
    expected = torch.nn.functional.normalize(model.text_projection(tower), dim=-1)
    torch.testing.assert_close(model.encode_text(**batch), expected)
    torch.testing.assert_close(model.embed(**batch).text_embeds, expected)
    assert model.text_projection[1].num_batches_tracked == 3
    before = model.text_projection[1].running_mean.clone()
    classes = model.class_embeddings(**processor.class_inputs(CLASSES))
    assert torch.equal(model.text_projection[1].running_mean, before)
    assert model.training
    torch.testing.assert_close(model.eval().class_embeddings(**processor.class_inputs(CLASSES)), classes)


def test_training_batch(model, processor):
    model = deepcopy(model)  # batch norm learns
    text = [["a red cat", "a tiger", "a cup"], ["a tiger", "a cup of tea", "a hill"], ["two boats", "a cup", "sun"]]
    batch = processor(images=[picture(20, 30, i) for i in range(3)], text=text, return_tensors="pt")
    model.train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)  # of DropPath
        found.append(model(**batch, return_loss=True, generator=torch.Generator().manual_seed(seed)))
    assert found[0].loss.isfinite()
    assert found[0].loss == found[1].loss != found[2].loss
    statistics = found[0].statistics
    assert statistics.keys() >= {"groups_used_0", "assignment_entropy_1", "groups_with_pixels", "multi_label_loss"}
    assert 1 <= statistics["groups_with_pixels"] <= 3
    with pytest.raises(ValueError, match="one caption per image"):
        model(batch["pixel_values"][:2], batch["input_ids"], return_loss=True)
    with pytest.raises(ValueError, match="needs both"):
        model(batch["pixel_values"], return_loss=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_islands(model, processor, dtype):
    """Under autocast the assignment stays exact: sums of one over groups, hard maps of zeros and ones."""
    pixels = processor(images=[picture(64, 64)], return_tensors="pt")["pixel_values"]
    with torch.no_grad(), torch.autocast("cpu", dtype):
        out = model.vision_model(pixels, output_assignments=True)
        embeds = model.embed(pixels)
    for soft, hard in zip(out.soft_assignments, out.hard_assignments, strict=True):
        assert soft.dtype == hard.dtype == torch.float32
        torch.testing.assert_close(soft.sum(1), torch.ones_like(soft.sum(1)))
        assert ((hard - hard.round()).abs() < 1e-6).all()
    assert embeds.image_embeds.dtype == torch.float32
    assert embeds.image_embeds.isfinite().all()


@pytest.mark.parametrize(
    "vision",
    [
        {"depths": [2], "num_group_tokens": [0], "num_output_groups": []},
        {"depths": [1, 1], "num_group_tokens": [5, 0], "num_output_groups": [4]},
        {"depths": [1, 1, 1], "num_group_tokens": [5, 2, 0], "num_output_groups": [6, 3], "embed_factors": [1, 2, 2]},
        {
            "depths": [1] * 4,
            "num_group_tokens": [5, 4, 3, 0],
            "num_output_groups": [8, 4, 2],
            "hard_assignment": False,
        },
    ],
    ids=["plain ViT", "1 stage", "2 widths", "3 stages, soft"],
)
def test_any_number_of_stages(tokenizer, processor, vision):
    model = GroupViTPlusModel(make_config(tokenizer, **vision))
    batch = processor(images=[picture(20, 30, i) for i in range(2)], text=[["a", "b", "c"]] * 2, return_tensors="pt")
    model(**batch, return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    classes = model.class_embeddings(**processor.class_inputs(CLASSES[:3]))
    inputs = processor.segmentation_inputs([picture(40, 70)], short_side=40)
    (found,) = model.segment(**inputs, class_embeds=classes, crop_size=40, stride=30, output_groups=True)
    assert len(found.groups) == max(1, len(vision["depths"]) - 1)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"num_group_tokens": [6, 0]}, "expected 3 entries"),
        ({"num_group_tokens": [6, 3, 2]}, "the last does not"),
        ({"hidden_size": 30}, "no multiple of its 4 heads"),
        ({"num_output_groups": [6, 3, 3]}, "expected 2 entries"),
    ],
)
def test_configuration_is_checked(tokenizer, vision, message):
    with pytest.raises(ValueError, match=message):
        make_config(tokenizer, **vision)


def test_position_embedding_for_good_is_as_on_the_fly(tokenizer):
    model = GroupViTPlusModel(make_config(tokenizer)).eval()
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = model.encode_image(pixels)
        model.set_image_size(48)
        torch.testing.assert_close(model.encode_image(pixels), expected)
    assert model.config.vision_config.image_size == 48


def test_saved_model_segments_the_same_through_auto_classes_and_pipeline(model, processor, classes, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is GroupViTPlusModel
    assert not any(info.values())
    assert type(AutoProcessor.from_pretrained(tmp_path)) is GroupViTPlusProcessor
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    options = {"crop_size": 40, "stride": 24}
    inputs = processor.segmentation_inputs(pictures, short_side=48)
    expected = model.segment(**inputs, class_embeds=classes, background_threshold=0.95, **options)
    segment = pipeline(TASK, model=str(tmp_path))
    found = segment(pictures, class_names=CLASSES, background="voc", short_side=48, batch_size=2, **options)
    for one, other in zip(found, expected, strict=True):
        assert (one["labels"] == other.labels.numpy()).all()
        assert one["class_names"] == ["background", *CLASSES]
        shares = [np.asarray(each["mask"]).mean() for each in one["segments"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(255)
        assert all(0 < each["score"] <= 1 for each in one["segments"])
    pictures[0].save(tmp_path / "picture.png")
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(tmp_path / "deep.png")
    alone = segment(
        str(tmp_path / "picture.png"), CLASSES, background=0.95, short_side=48, output_scores=True, **options
    )
    assert (alone["labels"] == found[0]["labels"]).all()
    assert alone["scores"].shape == (8, *SIZES[0])
    deep = segment(str(tmp_path / "deep.png"), class_names="voc", short_side=48, output_groups=True)
    assert deep["class_names"][:2] == ["background", "aeroplane"]
    assert len(deep["groups"]) == 2
    prompts = segment(pictures[0], ["one cat.", "the sea"], templates=("{}",), short_side=48)
    assert prompts["class_names"] == ["one cat.", "the sea"]
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    scores = classify(pictures[0], candidate_labels=CLASSES)
    assert sum(each["score"] for each in scores) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "class_names is missing"),
        ({"class_names": "ade"}, "class_names='ade'"),
        ({"class_names": ["a"], "background": "ade"}, "background threshold 'ade'"),
        ({"class_names": ["a"], "background": 3}, r"affinity in \[0, 1\]"),
        ({"class_names": ["a"], "colour": 3}, r"unknown options \['colour'\]"),
    ],
)
def test_pipeline_refuses(model, processor, options, message):
    segment = pipeline(TASK, model=model, processor=processor)
    with pytest.raises(ValueError, match=message):
        segment(picture(40, 40), **options)


def test_overlay_has_the_colours_and_a_legend():
    labels = np.zeros((30, 40), int)
    labels[:, 20:] = 2
    plain = segmentation_overlay(picture(30, 40), labels, ["background", "cat", "dog"], legend=False, opacity=1)
    assert plain.size == (40, 30)
    assert len(set(plain.get_flattened_data())) == 2
    drawn = segmentation_overlay(picture(30, 40), labels, ["background", "cat", "dog"])
    assert drawn.height > 30
    with pytest.raises(ValueError, match="do not fit"):
        segmentation_overlay(picture(30, 41), labels, ["a"] * 3)
    with pytest.raises(ValueError, match="label 2 has no name"):
        segmentation_overlay(picture(30, 40), labels, ["a"])
