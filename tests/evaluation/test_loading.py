"""Models load by name, or fail with words: never random weights."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, GroupViTConfig

from hf_clipplus import GroupViTPlusConfig
from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.loading import load_dual_encoder


@pytest.fixture
def folder(clip, tmp_path):
    model, processor = clip
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_a_saved_model_comes_back(clip, folder):
    model, processor = load_dual_encoder(folder, device="cpu")
    assert not model.training
    for name, value in clip[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert processor.tokenizer("red").input_ids == clip[1].tokenizer("red").input_ids


def test_missing_weights_are_an_error_not_random(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of CLIPModel.*visual_projection"):
        load_dual_encoder(folder)


def test_weights_of_another_shape_are_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load model"):
        load_dual_encoder(folder)


def test_a_wrong_name_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_dual_encoder(tmp_path / "nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="cannot load model 'nobody/no-such-model'"):
        load_dual_encoder("nobody/no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot load model"):
        load_dual_encoder(tmp_path / "empty")


def test_something_else_than_a_dual_encoder_is_an_error(clip, folder, tmp_path):
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(config).save_pretrained(tmp_path / "text")
    clip[1].save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="CLIPTextModel, which does not embed"):
        load_dual_encoder(tmp_path / "text")
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="processor"):
        load_dual_encoder(folder)


FINER = {"scales": [1, 2], "crops": 1}


def test_a_stock_clip_can_look_finer(clip, folder):
    """One scale gives its embeddings; more give others, of larger pictures."""
    stock, picture = clip[0], Image.effect_noise((50, 40), 60).convert("RGB")
    texts, images = encode_texts(*clip, ["red", "a blue"]), encode_images(*clip, [picture])
    embeds = {}
    for name, settings in {"one scale": {"scales": [1]}, "finer": FINER}.items():
        model, processor = load_dual_encoder(folder, device="cpu", finer_vision=settings)
        embeds[name] = encode_images(model, processor, [picture])
        torch.testing.assert_close(encode_texts(model, processor, ["red", "a blue"]), texts)
    torch.testing.assert_close(embeds["one scale"], images)
    assert not torch.allclose(embeds["finer"], embeds["one scale"], atol=1e-3)
    side = stock.config.vision_config.image_size
    assert processor(images=picture, return_tensors="pt")["pixel_values"].shape[-2:] == (2 * side, 2 * side)


def test_a_new_projection_may_be_missing(clip, folder, tmp_path):
    settings = FINER | {"fusion": "projection"}
    with_projection = load_dual_encoder(folder, device="cpu", finer_vision=settings)
    mean = load_dual_encoder(folder, device="cpu", finer_vision=FINER)
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    torch.testing.assert_close(encode_images(*with_projection, [picture]), encode_images(*mean, [picture]))


def test_what_has_no_finer_vision_is_an_error(clip, tmp_path):
    GroupViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a 'groupvit' has no finer_vision"):
        load_dual_encoder(tmp_path, finer_vision=FINER)
    GroupViTPlusConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GroupViTPlusConfig has no finer_vision: its tower takes larger pictures"):
        load_dual_encoder(tmp_path, finer_vision=FINER)
    with pytest.raises(ValueError, match="is no JSON"):
        load_dual_encoder(tmp_path, finer_vision="[1, 2")
