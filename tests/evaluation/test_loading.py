"""Models load by name, or fail with words: never random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

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
