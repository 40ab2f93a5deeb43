"""Texts of no image in the contrastive losses: against dense formulas, in tiles, and apart from captions."""

import pytest
import torch
import torch.nn.functional as F

from hf_clipplus.ops.components import primary_component_losses
from hf_clipplus.ops.contrastive import NORMALIZERS, sigmoid_loss, slot_softmax_loss, softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss
from hf_clipplus.ops.positives import apart_from_negatives

N, K, M, D = 5, 3, 4, 6
SCALE, BIAS = torch.tensor(1.3, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)


@pytest.fixture
def embeds(seeded):
    def unit(*shape):
        return F.normalize(torch.randn(*shape, D, dtype=torch.float64), dim=-1).requires_grad_()

    return unit(N), unit(N, K), unit(M)


def assert_same(loss, expected, tensors):
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    found, wanted = (torch.autograd.grad(value, tensors, retain_graph=True) for value in (loss, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def two_cross_entropies(images, captions, negatives, smoothing=0.0):
    """CLIP's loss with more keys for the images; no query is added in the other direction."""
    target = torch.arange(len(images))
    rows = SCALE.exp() * images @ torch.cat([captions, negatives]).T
    cols = SCALE.exp() * captions @ images.T
    return (
        F.cross_entropy(rows, target, label_smoothing=smoothing)
        + F.cross_entropy(cols, target, label_smoothing=smoothing)
    ) / 2


@pytest.mark.parametrize("tile", [None, 1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax(embeds, tile, smoothing):
    images, captions, negatives = embeds
    captions = captions[:, 0]
    loss = softmax_loss(
        images, captions, torch.arange(N), SCALE, negatives=negatives, tile_size=tile, label_smoothing=smoothing
    )
    assert_same(loss, two_cross_entropies(images, captions, negatives, smoothing), embeds)


@pytest.mark.parametrize("tile", [None, 2])
def test_slots(embeds, tile):
    images, captions, negatives = embeds
    loss = slot_softmax_loss(images, captions, SCALE, negatives=negatives, tile_size=tile)
    expected = torch.stack([two_cross_entropies(images, captions[:, k], negatives) for k in range(K)]).mean()
    assert_same(loss, expected, embeds)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_sigmoid(embeds, normalizer):
    images, captions, negatives = embeds
    captions = captions.flatten(0, 1)
    owner = torch.arange(N).repeat_interleave(K)
    loss = sigmoid_loss(images, captions, owner, SCALE, BIAS, negatives=negatives, normalizer=normalizer, tile_size=1)
    logits = SCALE.exp() * images @ torch.cat([captions, negatives]).T + BIAS
    positive = F.pad(F.one_hot(owner, N).T.bool(), (0, M))
    weights = 1 - (0.5 - 0.5 / K) * positive.double() if normalizer == "per_anchor" else 1.0
    divisor = N if normalizer == "per_image" else N * (N * K + M)
    expected = (weights * F.softplus(torch.where(positive, -logits, logits))).sum() / divisor
    assert_same(loss, expected, embeds)


def test_circle(embeds):
    images, captions, negatives = embeds
    loss = circle_loss(images, captions, negatives=negatives, tile_size=2)
    total = 0.0
    for i in range(N):
        own = images[i] @ captions[i].T
        other = torch.cat([captions[:i].flatten(0, 1), captions[i + 1 :].flatten(0, 1), negatives]) @ images[i]
        pull, push = (1.25 - own).clamp(min=0).detach(), (other + 0.25).clamp(min=0).detach()
        positive = (-32 * pull * (own - 0.75)).logsumexp(0)
        total = total + F.softplus(positive + (32 * push * (other - 0.25)).logsumexp(0))
    assert_same(loss, total / N / 10, embeds)


def test_components_do_not_see_them(embeds):
    images, captions, negatives = embeds
    plain = primary_component_losses(images, captions[:, 0], captions[:, 1], SCALE, components=2)
    found = primary_component_losses(images, captions[:, 0], captions[:, 1], SCALE, components=2, negatives=negatives)
    assert found[0] > plain[0]
    assert torch.equal(found[1], plain[1])


def test_no_negatives_change_nothing(embeds):
    images, captions, negatives = embeds
    owner = torch.arange(N)
    for none in (None, negatives[:0]):
        assert torch.equal(
            softmax_loss(images, captions[:, 0], owner, SCALE, negatives=none),
            softmax_loss(images, captions[:, 0], owner, SCALE),
        )


def test_wrong_shapes(embeds):
    images, captions, negatives = embeds
    with pytest.raises(ValueError, match=r"negatives: expected \[M, 6\], got \[4, 5\]"):
        softmax_loss(images, captions[:, 0], torch.arange(N), SCALE, negatives=negatives[:, :5])
    ones = torch.ones(N, N)
    with pytest.raises(ValueError, match="not supported with negatives"):
        sigmoid_loss(images, captions[:, 0], torch.arange(N), SCALE, BIAS, weights=ones, negatives=negatives)


def test_apart():
    texts = torch.arange(10.0).view(5, 2)
    captions, owner, negatives = apart_from_negatives(texts, torch.tensor([1, -1, 0, 1, -1]))
    assert torch.equal(captions, texts[[0, 2, 3]])
    assert owner.tolist() == [1, 0, 1]
    assert torch.equal(negatives, texts[[1, 4]])
    assert apart_from_negatives(texts, torch.zeros(5).long())[2] is None
    assert apart_from_negatives(texts, None)[0] is texts
    with pytest.raises(ValueError, match=r"one entry per text \(5\)"):
        apart_from_negatives(texts, torch.tensor([0, -1]))
