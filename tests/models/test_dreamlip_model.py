"""DreamLIPModel and DreamLIPProcessor: the losses of a batch, patches, checkpoints in and out, bad input."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, pipeline

from hf_clipplus import DreamLIPConfig, DreamLIPModel, DreamLIPProcessor
from hf_clipplus.models.dreamlip.convert_dreamlip import dreamlip_from_open_clip, dreamlip_to_open_clip, main
from hf_clipplus.models.open_clip_layout import write_checkpoint
from hf_clipplus.ops.contrastive import slot_softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss, grouping_loss
from hf_clipplus.training.gradient_cache import cached_backward

GROUPS = [["a red cat", "a tiger"], ["a small dog on a hill", "a tiger"], ["two green boats", "the sun"]]


@pytest.fixture
def processor(image_processor, tokenizer):
    return DreamLIPProcessor(image_processor, tokenizer)


@pytest.fixture
def model(tower_configs, seeded):
    return DreamLIPModel(DreamLIPConfig(**tower_configs)).eval()


@pytest.fixture
def batch(processor, pictures):
    return processor(images=pictures[:3], text=GROUPS, return_tensors="pt")


@pytest.mark.parametrize(
    "options",
    [
        {"grouping_loss_weight": 0.3, "multi_caption_weight": 2.0},
        {"grouping_negatives": "within_image"},
        {"grouping_negatives": "cross_image", "max_grouping_negatives": 1},
        {"grouping_normalization": "softmax", "grouping_threshold": 0.05},
        {"use_grouping_loss": False},
        {"use_circle_loss": True, "loss_tile_size": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_loss_is_the_sum_of_its_parts(options, tower_configs, batch, seeded):
    config = DreamLIPConfig(**tower_configs, **options)
    model = DreamLIPModel(config)
    out = model(**batch, return_loss=True)
    texts = out.text_embeds.unflatten(0, (3, 2))
    expected = config.multi_caption_weight * slot_softmax_loss(out.image_embeds, texts, model.logit_scale)
    names = {"multi_caption_loss"}
    if config.use_grouping_loss:
        names |= {"grouping_loss", "grouping_scale"}
        expected = expected + config.grouping_loss_weight * grouping_loss(
            texts,
            model.get_patch_features(batch["pixel_values"]),
            model.logit_scale_local,
            negatives=config.grouping_negatives,
            normalization=config.grouping_normalization,
            threshold=config.grouping_threshold,
            max_negatives=config.max_grouping_negatives,
        )
    if config.use_circle_loss:
        names.add("circle_loss")
        expected = expected + circle_loss(out.image_embeds, texts)
    torch.testing.assert_close(out.loss, expected)
    assert out.statistics.keys() == names
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_gradient_cache_leaves_the_same_gradients(model, batch):
    model(**batch, return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    cached_backward(model, dict(batch), chunk_size=2, backward=lambda loss: loss.backward())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="texts in segments"):
        cached_backward(model, {**batch, "segment_owner": torch.arange(6)}, chunk_size=2, backward=None)


@torch.no_grad()
def test_heat_maps_are_cosines_of_patches_and_texts(model, processor, batch, pictures):
    texts = ["a tiger", "two green boats"]
    inputs = processor(images=pictures[:3], text=texts, return_tensors="pt")
    heat = model.patch_similarity(**inputs)
    assert heat.shape == (3, 2, 3, 3)
    patches, embeds = model.get_patch_features(inputs["pixel_values"]), model.encode_text(inputs["input_ids"])
    torch.testing.assert_close(heat[2, 1, 0, 2], patches[2, 2] @ embeds[1])
    wide = torch.nn.functional.interpolate(inputs["pixel_values"], size=(24, 40))
    assert model.patch_similarity(wide, inputs["input_ids"], interpolate_pos_encoding=True).shape == (3, 2, 3, 5)


@torch.no_grad()
def test_without_a_grouping_loss_patches_go_the_way_of_the_class_token(tower_configs, batch, seeded):
    model = DreamLIPModel(DreamLIPConfig(**tower_configs, use_grouping_loss=False)).eval()
    assert not [name for name, _ in model.named_parameters() if "patch_projection" in name or "local" in name]
    hidden = model.vision_model(batch["pixel_values"]).last_hidden_state
    all_tokens = F.normalize(model.visual_projection(model.vision_model.post_layernorm(hidden)), dim=-1)
    torch.testing.assert_close(model.get_patch_features(batch["pixel_values"]), all_tokens[:, 1:])
    torch.testing.assert_close(model.encode_image(batch["pixel_values"]), all_tokens[:, 0])
    assert model(**batch, return_loss=True).patch_embeds is None


def test_both_temperatures_are_clamped_and_stay_float32(model, tmp_path):
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
        model.logit_scale_local.fill_(-1.0)
    model.clamp_logit_scale(50.0)
    assert model.logit_scale.exp().item() == pytest.approx(50)
    assert model.logit_scale_local == 0
    model.save_pretrained(tmp_path)
    half = DreamLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.logit_scale.dtype == half.logit_scale_local.dtype == torch.float32
    assert half.patch_projection.weight.dtype == torch.bfloat16


def test_patch_projection_starts_like_the_other_projection(tower_configs, seeded):
    model = DreamLIPModel(DreamLIPConfig(**tower_configs))
    width = model.patch_projection.in_features
    assert model.patch_projection.weight.std().item() == pytest.approx(width**-0.5, rel=0.1)
    assert model.logit_bias is None
    assert "logit_bias" not in model.state_dict()


def test_clip_checkpoint_loads_with_equal_embeddings(tower_configs, batch, tmp_path, seeded):
    clip = CLIPModel(CLIPConfig(**tower_configs)).eval()
    clip.save_pretrained(tmp_path)
    model, info = DreamLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"patch_projection.weight", "logit_scale_local"}
    assert not info["unexpected_keys"]
    with torch.no_grad():
        expected = clip(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
        found = model(**batch)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image)


def test_auto_classes_and_pipeline(model, processor, batch, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again(**batch, return_loss=True).loss, model(**batch, return_loss=True).loss)
    assert type(again) is DreamLIPModel
    assert type(AutoProcessor.from_pretrained(tmp_path)) is DreamLIPProcessor
    answer = pipeline("zero-shot-image-classification", model=str(tmp_path))(
        pictures[0], candidate_labels=["cat", "dog"]
    )
    assert {entry["label"] for entry in answer} == {"cat", "dog"}


def test_converter_on_the_command_line(model, processor, batch, tmp_path, capsys):
    processor.save_pretrained(tmp_path / "processor")
    state, _ = dreamlip_to_open_clip(model)
    write_checkpoint(state, tmp_path / "model.pt")
    heads = ["--vision-heads", "2", "--text-heads", "2"]
    source, folder, back = (str(tmp_path / name) for name in ("model.pt", "folder", "back.safetensors"))
    main(["from-open-clip", source, folder, *heads, "--processor", str(tmp_path / "processor")])
    assert "patch_projection.weight" in capsys.readouterr().out
    loaded = AutoModel.from_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).tokenizer.model_max_length == 16
    assert loaded.config.use_grouping_loss
    main(["to-open-clip", folder, back])
    again, _ = dreamlip_from_open_clip(back, vision_heads=2, text_heads=2)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_checkpoint_without_grouping_can_be_given_one(model, tmp_path):
    plain, report = dreamlip_from_open_clip(*_released(model, tmp_path), vision_heads=2, text_heads=2)
    assert not plain.config.use_grouping_loss
    started, report = dreamlip_from_open_clip(
        *_released(model, tmp_path), vision_heads=2, text_heads=2, use_grouping_loss=True
    )
    assert set(report.initialised) == {"patch_projection.weight", "logit_scale_local"}
    assert started.patch_projection is not None


def _released(model, folder):
    state, _ = dreamlip_to_open_clip(model)
    write_checkpoint(
        {k: v for k, v in state.items() if k not in ("visual.proj2", "logit_scale_local")}, folder / "r.pt"
    )
    return (folder / "r.pt",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([["a cat", "a dog"], ["a cat"], ["a", "b", "c"]], "equally many captions"),
        ([["a"], ["b", "c"], ["d"]], "evenly"),
    ],
)
def test_uneven_captions_are_named(texts, message, model, processor, pictures):
    batch = processor(images=pictures[:3], text=texts, return_tensors="pt")
    with pytest.raises(ValueError, match=message):
        model(**batch, return_loss=True)


@pytest.mark.parametrize("field", ["grouping_negatives", "grouping_normalization"])
def test_wrong_option_is_named(field):
    with pytest.raises(ValueError, match=field):
        DreamLIPConfig(**{field: "nonsense"})


def test_siglip_towers_are_refused():
    with pytest.raises(ValueError, match="DreamLIPConfig needs CLIP towers"):
        DreamLIPConfig(
            text_config={"model_type": "siglip_text_model"}, vision_config={"model_type": "siglip_vision_model"}
        )
