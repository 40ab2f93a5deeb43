"""Training starts in float32 from a checkpoint in half precision, and never from weights that nobody read."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from hf_clipplus import DreamLIPModel, FFFModel
from hf_clipplus.training.start import load_to_train

TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": 20, "max_position_embeddings": 8}


@pytest.fixture
def half(tmp_path):
    towers = {"text_config": TOWER | TEXT, "vision_config": TOWER | {"image_size": 8, "patch_size": 4}}
    CLIPModel(CLIPConfig(**towers, projection_dim=8)).half().save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_half_precision_checkpoint_is_trained_in_float32(half):
    assert FFFModel.from_pretrained(half).vision_model.dtype == torch.float16
    model, random = load_to_train(FFFModel, half, added=("logit_bias",), logit_bias_init_value=-3.0)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert random == {"logit_bias"}
    assert model.logit_bias.item() == -3.0


def test_weights_that_a_checkpoint_lacks_are_named(half):
    with pytest.raises(ValueError, match=r"lacks weights that would stay random: \['patch_projection.weight'\]"):
        load_to_train(DreamLIPModel, half, added=("logit_scale_local",))
    model, random = load_to_train(DreamLIPModel, half, added=("logit_scale_", "patch_projection.weight"))
    assert isinstance(model, DreamLIPModel)
    assert random == {"logit_scale_local", "patch_projection.weight"}
