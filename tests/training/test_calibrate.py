"""Proposed thresholds mine what was asked for; the first bias makes the mean pair as likely as a positive one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_clipplus.ops.positives import default_owners, mine_positives
from hf_clipplus.training.calibrate import QUANTILES, calibrate, set_auto_bias

IMAGES, CAPTIONS, BATCH = 1200, 3, 120


@pytest.fixture(scope="module")
def features():
    """Features of images on a few themes, and of captions that resemble their image."""
    draw = torch.Generator().manual_seed(0)
    themes = torch.randn(40, 16, generator=draw)[torch.randint(40, (IMAGES,), generator=draw)]
    images = themes + torch.randn(IMAGES, 16, generator=draw)
    texts = images.repeat_interleave(CAPTIONS, 0) + torch.randn(IMAGES * CAPTIONS, 16, generator=draw)
    return images, texts, default_owners(IMAGES, IMAGES * CAPTIONS)


def mined_per_image(features, thresholds, rule="plain", stt="group_mean", epochs=8):
    """Counts per image and branch over batches that calibration has not drawn."""
    images, texts, _ = features
    total = dict.fromkeys(("total", "image_text", "image_image", "text_text"), 0.0)
    draw = torch.Generator().manual_seed(1)
    local = default_owners(BATCH, BATCH * CAPTIONS)
    for rows in (rows for _ in range(epochs) for rows in torch.randperm(IMAGES, generator=draw).split(BATCH)):
        captions = (rows[:, None] * CAPTIONS + torch.arange(CAPTIONS)).flatten()
        counts = mine_positives(images[rows], texts[captions], local, rule=rule, stt=stt, **thresholds)[1]
        total = {name: total[name] + int(counts[name]) / (IMAGES * epochs) for name in total}
    return total


@pytest.mark.parametrize("stt", ["group_mean", "caption_mean"])
@pytest.mark.parametrize("target", [0.3, 1.0])
def test_each_branch_mines_about_the_target(features, target, stt):
    found = calibrate(
        *features, batch_size=BATCH, target=target, rule="plain", stt=stt, generator=torch.Generator().manual_seed(0)
    )
    mined = mined_per_image(features, found.thresholds, stt=stt)
    for branch in ("image_text", "image_image", "text_text"):
        assert mined[branch] == pytest.approx(target, rel=0.35), branch
    assert mined["total"] == pytest.approx(found.mined_per_image, rel=0.35)
    assert max(mined[branch] for branch in mined if branch != "total") <= mined["total"] <= 3.5 * target


def test_the_gate_lets_the_asked_share_of_own_pairs_pass(features):
    images, texts, owner = features
    found = calibrate(*features, batch_size=BATCH, gate_quantile=0.3, generator=torch.Generator().manual_seed(0))
    own = nn.functional.cosine_similarity(images[owner], texts)
    assert (own > found.thresholds["p1_gate"]).float().mean() == pytest.approx(0.7, abs=0.02)
    plain, gated = (mined_per_image(features, found.thresholds, rule=rule) for rule in ("plain", "gated"))
    assert gated["image_image"] < plain["image_image"]


def test_same_generator_same_answer_and_it_prints(features):
    first, second = (
        calibrate(*features, batch_size=BATCH, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert first == second
    text = str(first)
    assert f"p2={first.thresholds['p2']:.4f}" in text
    assert f"batches of {BATCH}" in text
    assert all(len(row) == len(QUANTILES) and row == sorted(row) for row in first.quantiles.values())


def test_too_few_images(features):
    images, texts, owner = features
    with pytest.raises(ValueError, match="at least one batch of 120 images, got features of 100"):
        calibrate(images[:100], texts[:300], owner[:300], batch_size=BATCH)


class Towers(nn.Module):
    """Embeds by one matrix per side; its positives are own captions and pairs with an equal id."""

    image_inputs, text_inputs = ("pixel_values",), ("input_ids",)

    def __init__(self, scale=12.0):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 5), nn.Linear(4, 5)
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def embed(self, pixel_values, input_ids):
        embeddings = (self.image(pixel_values), self.text(input_ids))
        return SimpleNamespace(
            **dict(zip(("image_embeds", "text_embeds"), map(self.normalize, embeddings), strict=True))
        )

    @staticmethod
    def normalize(values):
        return nn.functional.normalize(values, dim=-1)

    def contrast(self, embeddings, caption_owner):
        return {"positives": torch.stack([caption_owner, torch.arange(len(caption_owner))])}


def make_batch(images, captions_per_image):
    owner = torch.arange(images).repeat_interleave(captions_per_image)
    inputs = {"pixel_values": torch.randn(images, 6), "input_ids": torch.randn(len(owner), 4)}
    return inputs | {"caption_owner": owner, "names": ["not a tensor"]}


@pytest.mark.parametrize("sizes", [[(8, 1), (8, 1)], [(8, 3), (3, 1)], [(16, 5)]])
def test_mean_logit_is_the_logit_of_the_share_of_positives(sizes):
    model = Towers()
    batches = [make_batch(*size) for size in sizes]
    bias = set_auto_bias(model, batches, device=torch.device("cpu"))
    assert model.logit_bias.item() == pytest.approx(bias)
    logits, positives = [], 0
    with torch.no_grad():
        for batch in batches:
            found = model.embed(batch["pixel_values"], batch["input_ids"])
            logits.append((model.logit_scale.exp() * found.image_embeds @ found.text_embeds.T + bias).flatten())
            positives += len(batch["caption_owner"])
    logits = torch.cat(logits)
    expected = torch.logit(torch.tensor(positives / len(logits)))
    assert logits.mean().item() == pytest.approx(expected.item(), abs=1e-4)
    assert model.logit_scale.exp().item() == pytest.approx(12.0)


def test_bias_needs_negatives():
    with pytest.raises(ValueError, match="more images per batch"):
        set_auto_bias(Towers(), [make_batch(1, 2)], device=torch.device("cpu"))
