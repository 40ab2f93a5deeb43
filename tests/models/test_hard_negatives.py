"""False captions in the batch of every variant that takes them: the same loss wherever they stand, and in chunks."""

import pytest
import torch

from hf_clipplus import (
    DIVAConfig,
    DIVAModel,
    DreamLIPConfig,
    DreamLIPModel,
    FFFConfig,
    FFFModel,
    LongCLIPConfig,
    LongCLIPModel,
)
from hf_clipplus.ops.components import primary_component_losses
from hf_clipplus.ops.contrastive import sigmoid_loss, slot_softmax_loss, softmax_loss
from hf_clipplus.training.gradient_cache import cached_backward

IMAGES, FALSE = 6, 5  # two captions for each image
VARIANTS = {
    "fff": (FFFModel, FFFConfig, {"mining_features": None}),
    "fff softmax": (FFFModel, FFFConfig, {"mining_features": None, "contrastive_loss": "softmax"}),
    "dreamlip": (DreamLIPModel, DreamLIPConfig, {"captions_per_image": 2}),
    "longclip": (LongCLIPModel, LongCLIPConfig, {"components": 3}),
}


def build(name, tower_configs):
    model_class, config_class, options = VARIANTS[name]
    torch.manual_seed(0)
    return model_class(config_class(**tower_configs, **options)).double()


@pytest.fixture(scope="module")
def batch(tower_configs):
    """A batch in which the false captions of an image stand behind its captions."""
    draw = torch.Generator().manual_seed(1)
    owner = torch.tensor([0, 0, -1, 1, 1, -1, -1, 2, 2, 3, 3, -1, 4, 4, 5, 5, -1])
    ids = torch.randint(3, 200, (len(owner), 7), generator=draw)
    ids[:, -1] = tower_configs["text_config"]["eos_token_id"]
    pixels = torch.randn(IMAGES, 3, 24, 24, generator=draw, dtype=torch.float64)
    return {"pixel_values": pixels, "input_ids": ids, "caption_owner": owner}


def expected_loss(name, model, images, captions, false):
    scale, owner = model.logit_scale, torch.arange(IMAGES).repeat_interleave(2)
    if name == "fff":
        return sigmoid_loss(images, captions, owner, scale, model.logit_bias, negatives=false)
    if name == "fff softmax":
        return softmax_loss(images, captions, owner, scale, negatives=false)
    if name == "dreamlip":
        return slot_softmax_loss(images, captions.unflatten(0, (-1, 2)), scale, negatives=false)
    return sum(primary_component_losses(images, captions[::2], captions[1::2], scale, components=3, negatives=false))


@pytest.mark.parametrize("name", VARIANTS)
def test_false_captions_are_negatives_of_the_loss(name, batch, tower_configs):
    model = build(name, tower_configs)
    output = model(**batch, return_loss=True)
    true = batch["caption_owner"] >= 0
    captions, false = output.text_embeds[true], output.text_embeds[~true]
    assert len(false) == FALSE
    found = output.statistics["multi_caption_loss"] if name == "dreamlip" else output.loss
    expected = expected_loss(name, model, output.image_embeds, captions, false)
    torch.testing.assert_close(found, expected.detach() if name == "dreamlip" else expected, rtol=1e-10, atol=0)
    plain = model(
        batch["pixel_values"], batch["input_ids"][true], caption_owner=batch["caption_owner"][true], return_loss=True
    )
    assert output.loss > plain.loss + 1e-5
    order = torch.cat([true.nonzero(), (~true).nonzero()]).squeeze(1)
    last = {key: batch[key][order] for key in ("input_ids", "caption_owner")}
    torch.testing.assert_close(
        model(batch["pixel_values"], **last, return_loss=True).loss, output.loss, rtol=1e-10, atol=0
    )
    if name == "dreamlip":
        assert output.statistics["grouping_loss"] == pytest.approx(float(plain.statistics["grouping_loss"]))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_cache(name, batch, tower_configs):
    grads = []
    for chunk in (None, 4):
        model = build(name, tower_configs).train()
        if chunk is None:
            model(**batch, return_loss=True).loss.backward()
        else:
            cached_backward(model, batch, chunk_size=chunk, backward=lambda loss: loss.backward())
        grads.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, value in grads[0].items():
        torch.testing.assert_close(grads[1][key], value, rtol=1e-8, atol=1e-11, msg=key)


def test_targets_are_of_captions(batch, tower_configs):
    model = build("fff", tower_configs)
    captions = torch.arange(2 * IMAGES) % 5
    output = model(**batch, caption_ids=captions, return_loss=True)
    true = batch["caption_owner"] >= 0
    plain = model(
        batch["pixel_values"],
        batch["input_ids"][true],
        caption_owner=batch["caption_owner"][true],
        caption_ids=captions,
        return_loss=True,
    )
    assert torch.equal(output.positives, plain.positives)
    with pytest.raises(ValueError, match="caption_ids"):
        model(**batch, caption_ids=torch.arange(17), return_loss=True)


def test_wrong_owners(batch, tower_configs):
    wrong = batch | {"caption_owner": batch["caption_owner"].clone()}
    wrong["caption_owner"][2] = -2
    with pytest.raises(ValueError, match="found -2"):
        build("fff", tower_configs)(**wrong, return_loss=True)
    with pytest.raises(ValueError, match="one entry per text"):
        build("dreamlip", tower_configs)(**batch | {"caption_owner": batch["caption_owner"][:-1]}, return_loss=True)


def test_a_model_without_such_a_loss_refuses(batch, tower_configs):
    with pytest.raises(ValueError, match="DIVAModel has no contrastive loss"):
        DIVAModel(DIVAConfig(**tower_configs)).double()(**batch, return_loss=True)
