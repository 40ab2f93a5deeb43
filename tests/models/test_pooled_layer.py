"""The last layer for the pooled token alone gives the embeddings and gradients of the whole layer."""

import pytest
import torch

from hf_clipplus import FFFConfig, FFFModel

CAPTIONS = ["tea", "a red cat", "a small dog on a hill", "the sun over the sea"]


@pytest.fixture
def batch(tokenizer):
    texts = tokenizer(CAPTIONS, padding="max_length", max_length=16, return_tensors="pt")
    return dict(texts) | {"pixel_values": torch.randn(4, 3, 24, 24, dtype=torch.float64)}


def make_model(tower_configs, attention="sdpa"):
    torch.manual_seed(0)
    config = FFFConfig(**tower_configs)
    config._attn_implementation = attention
    return FFFModel(config).double()


def gradients_of(model, batch):
    model.zero_grad()
    found = model.embed(**batch)
    ((found.image_embeds**3).sum() + (found.text_embeds**3).sum()).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return found, gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_gives_the_embeddings_and_gradients_of_whole_towers(tower_configs, batch, attention, checkpointing):
    model = make_model(tower_configs, attention)
    whole, expected = gradients_of(model.eval(), batch)
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    pooled, gradients = gradients_of(model, batch)
    assert whole.vision_model_output is not None
    assert pooled.vision_model_output is None
    torch.testing.assert_close(pooled.image_embeds, whole.image_embeds, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pooled.text_embeds, whole.text_embeds, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12, msg=name)


def test_the_last_mlp_sees_the_pooled_token_only(tower_configs, batch):
    model = make_model(tower_configs).train()
    seen = []
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.mlp.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    model.embed(**batch)
    vision, text = seen[:2], seen[2:]
    assert vision == [(4, 10, 32), (4, 32)]
    assert all(len(shape) == 3 for shape in text[::2])
    assert all(len(shape) == 2 for shape in text[1::2])
    seen.clear()
    model.eval().embed(**batch)
    assert all(len(shape) == 3 for shape in seen)


def test_a_text_without_end_token_pools_where_the_whole_tower_does(tower_configs, batch):
    model = make_model(tower_configs)
    batch["input_ids"][1] = 5
    batch["attention_mask"][2, 1] = 0
    whole = model.eval().embed(**batch)
    torch.testing.assert_close(model.train().embed(**batch).text_embeds, whole.text_embeds, rtol=1e-10, atol=1e-12)


def test_encode_image_equals_the_features(tower_configs, batch):
    model = make_model(tower_configs).eval()
    expected = model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(
        model.encode_image(batch["pixel_values"], normalize=False), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("wish", ["output_hidden_states", "output_attentions"])
def test_asking_for_more_gives_whole_towers(tower_configs, batch, wish):
    model = make_model(tower_configs, "eager").train()
    found = model.embed(**batch, **{wish: True})
    assert found.vision_model_output.last_hidden_state.shape == (4, 10, 32)
    assert found.vision_model_output.last_hidden_state[:, 1:].abs().sum() > 0
