"""DreamLIP's sub-captions and patches with FFF's mined positives and sigmoid loss on one model."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from hf_clipplus import DreamLIPConfig, DreamLIPModel, DreamLIPProcessor, FFFConfig, FFFModel
from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.ops.patch_groups import grouping_loss
from hf_clipplus.training import set_auto_bias
from hf_clipplus.training.gradient_cache import cached_backward

MINING = {"mining_features": "online", "p1": 0.9, "p1_gate": 0.0, "p2": 0.5, "p3": 0.99}
ADDED = {"logit_bias", "logit_scale_local", "patch_projection.weight"}


@pytest.fixture
def batch(tokenizer, image_processor, pictures):
    """Three rows of two captions; one sentence is true of two pictures."""
    rows = [
        {"image": picture, "caption": caption, "pseudo_captions": [f"{caption}. a cup of tea."], "index": index}
        for index, (picture, caption) in enumerate(zip(pictures, ("a red cat", "a tiger"), strict=False))
    ]
    rows.append({"image": pictures[2], "caption": "a cat", "pseudo_captions": ["two green boats"], "index": 2})
    made = {"choose": SubCaptions(captions_per_image=3), "equal_texts_are_positive": True}
    return ContrastiveCollator(DreamLIPProcessor(image_processor, tokenizer), **made)(rows)


@pytest.fixture
def model(tower_configs, seeded):
    config = DreamLIPConfig(**tower_configs, contrastive_loss="sigmoid", grouping_loss_weight=0.5, **MINING)
    return DreamLIPModel(config).eval()


def inputs_of(batch):
    return {key: value for key, value in batch.items() if key not in ("example_index", "return_loss")}


def test_the_loss_is_that_of_fff_and_that_of_the_patches(model, batch, tower_configs):
    inputs = inputs_of(batch) | {"mine_online": True}
    out = model(**inputs, return_loss=True)
    fff = FFFModel(FFFConfig(**tower_configs, **MINING)).eval()
    fff.load_state_dict({key: value for key, value in model.state_dict().items() if key in fff.state_dict()})
    alone = fff(**inputs, return_loss=True)
    patches = model.get_patch_features(batch["pixel_values"])
    grouping = grouping_loss(out.text_embeds.unflatten(0, (3, 3)), patches, model.logit_scale_local)
    torch.testing.assert_close(out.loss, alone.loss + 0.5 * grouping)
    assert torch.equal(out.positives, alone.positives)
    assert out.statistics.keys() == alone.statistics.keys() | {"multi_caption_loss", "grouping_loss", "grouping_scale"}
    assert out.statistics["mined"] > 0
    assert out.positives.shape[1] > 9
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    logits = model(**inputs).logits_per_image
    torch.testing.assert_close(logits, fff(**inputs).logits_per_image)  # with the bias


def test_a_shared_sentence_is_positive_for_every_picture_that_it_is_true_of(model, batch):
    positives = model(**inputs_of(batch), return_loss=True, mine_online=False).positives.T.tolist()
    ids = batch["caption_ids"].view(3, 3).tolist()
    shared = [k for k in range(6) if ids[k // 3][k % 3] in set(ids[0]) & set(ids[1])]
    assert {k // 3 for k in shared} == {0, 1}
    assert all([row, k] in positives for k in shared for row in (0, 1))
    assert not any([2, k] in positives for k in range(6))


def test_saving_loading_and_starting_from_clip(model, batch, tower_configs, tokenizer, image_processor, tmp_path):
    model.save_pretrained(tmp_path / "combined")
    DreamLIPProcessor(image_processor, tokenizer).save_pretrained(tmp_path / "combined")
    loaded, processor = (auto.from_pretrained(tmp_path / "combined") for auto in (AutoModel, AutoProcessor))
    assert (type(loaded), type(processor)) == (DreamLIPModel, DreamLIPProcessor)
    inputs = inputs_of(batch) | {"mine_online": True, "return_loss": True}
    assert torch.equal(loaded.eval()(**inputs).loss, model(**inputs).loss)
    CLIPModel(CLIPConfig(**tower_configs)).save_pretrained(tmp_path / "clip")
    options = {"contrastive_loss": "sigmoid", "output_loading_info": True}
    started, info = DreamLIPModel.from_pretrained(tmp_path / "clip", **options)
    assert set(info["missing_keys"]) == ADDED
    assert started.logit_bias.item() == -10
    bias = set_auto_bias(started, [batch], device=torch.device("cpu"))
    assert started.logit_bias.item() == pytest.approx(bias)
    assert bias > -10


def test_false_captions_are_negatives_of_the_sigmoid_loss_and_tied_to_no_patch(model, batch):
    """Every image has one more negative; a text is negative wherever it stands."""
    inputs = inputs_of(batch) | {"mine_online": False, "return_loss": True}
    plain = model(**inputs)
    false = {"input_ids": torch.cat([batch["input_ids"], batch["input_ids"][:1].flip(1)])}
    false |= {"attention_mask": torch.ones_like(false["input_ids"])}
    false |= {"caption_owner": torch.cat([batch["caption_owner"], torch.tensor([-1])])}
    out = model(**inputs | false)
    assert torch.equal(out.positives, plain.positives)
    torch.testing.assert_close(out.statistics["grouping_loss"], plain.statistics["grouping_loss"])
    cosines = out.image_embeds @ out.text_embeds[-1]
    added = torch.nn.functional.softplus(model.logit_scale.exp() * cosines + model.logit_bias).sum() / 3
    torch.testing.assert_close(out.loss - plain.loss, added, rtol=1e-3, atol=1e-5)


def test_a_gradient_cache_leaves_the_same_gradients(model, batch):
    inputs = inputs_of(batch) | {"mine_online": True}
    model(**inputs, return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    cached_backward(model, inputs, chunk_size=2, backward=lambda loss: loss.backward())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_off_is_what_it_was(tower_configs, batch, seeded):
    """Neither targets nor the fields of the sigmoid loss change DreamLIP's own loss, and it has no bias."""
    model = DreamLIPModel(DreamLIPConfig(**tower_configs)).eval()
    inputs = inputs_of(batch)
    plain = {key: value for key, value in inputs.items() if key != "caption_ids"}
    assert torch.equal(model(**inputs, return_loss=True).loss, model(**plain, return_loss=True).loss)
    assert model.logit_bias is None
    assert model(**plain, return_loss=True).positives is None


def test_wrong_settings_are_named(tower_configs, model, tokenizer, image_processor):
    with pytest.raises(ValueError, match=r"contrastive_loss='softmax' is unknown: choose one of \('slot_softmax'"):
        DreamLIPConfig(**tower_configs, contrastive_loss="softmax")
    with pytest.raises(ValueError, match="mining_features='online' needs contrastive_loss='sigmoid'"):
        DreamLIPConfig(**tower_configs, mining_features="online")
    with pytest.raises(ValueError, match=r"DreamLIPConfig\.mining_rule='loose' is unknown"):
        DreamLIPConfig(**tower_configs, contrastive_loss="sigmoid", mining_rule="loose")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    texts = [["a red cat"], ["a tiger", "two green boats"]]
    ragged = DreamLIPProcessor(image_processor, tokenizer)(images=[picture] * 2, text=texts, return_tensors="pt")
    with pytest.raises(ValueError, match=r"captions|owner"):
        model(**ragged, return_loss=True)
