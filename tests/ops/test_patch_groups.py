"""DreamLIP's losses where the fixtures do not look: corner cases, images as negatives, memory, tiles."""

import pytest
import torch
import torch.nn.functional as F

from hf_clipplus.ops.contrastive import slot_softmax_loss, softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss, group_patches, grouping_loss, patch_weights
from hf_clipplus.ops.tiles import sum_over_tiles

SCALE = torch.tensor(2.0)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("normalization", ["minmax", "softmax"])
@pytest.mark.parametrize(
    ("patches", "threshold"),
    [(1, -1.0), (1, 0.0), (5, 1.5), (5, 2.0)],
    ids=["one patch", "one patch, nothing cut", "threshold above 1", "threshold far above 1"],
)
def test_empty_groups_take_all_patches_evenly(patches, threshold, normalization):
    similarity = torch.randn(2, 3, patches).requires_grad_()
    weights = patch_weights(similarity, normalization=normalization, threshold=threshold)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / patches))
    (weights * torch.randn_like(weights)).sum().backward()
    assert torch.isfinite(similarity.grad).all()


@pytest.mark.parametrize("negatives", ["batch", "within_image", "cross_image"])
def test_equal_patches_give_no_nan(negatives):
    texts = unit(2, 3, 8).requires_grad_()
    patches = unit(2, 1, 8, seed=1).expand(2, 5, 8).clone().requires_grad_()
    loss = grouping_loss(texts, patches, SCALE, negatives=negatives)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(texts.grad).all()
    assert torch.isfinite(patches.grad).all()


def test_the_threshold_cuts_patches_off():
    weights = patch_weights(torch.tensor([0.0, 0.1, 0.5, 1.0]), threshold=0.3)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 1 / 3, 2 / 3]))


def reference_cross_image(texts, patches, scale, shown):
    """One caption after the other, one image after the other."""
    rows, images = [], len(texts)
    for i in range(images):
        for caption in texts[i]:
            groups = []
            for step in range(shown):
                candidates = patches[(i + step) % images]
                share = candidates @ caption
                share = (share - share.min()) / (share.max() - share.min() + 1e-10)
                share = torch.where(share < 1 / len(share), 0.0, share)
                groups.append(F.normalize((share / share.sum()) @ candidates, dim=0))
            logits = scale.exp() * torch.stack(groups) @ caption
            rows.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(rows).mean()


@pytest.mark.parametrize("tile_size", [None, 1, 3])
@pytest.mark.parametrize("max_negatives", [None, 2, 9])
def test_other_images_as_negatives(max_negatives, tile_size):
    leaves = [unit(4, 2, 6).requires_grad_(), unit(4, 5, 6, seed=1).requires_grad_(), SCALE.double().requires_grad_()]
    shown = min(4, 1 + (3 if max_negatives is None else max_negatives))
    expected = torch.autograd.grad(reference := reference_cross_image(*leaves, shown), leaves)
    loss = grouping_loss(*leaves, negatives="cross_image", max_negatives=max_negatives, tile_size=tile_size)
    torch.testing.assert_close(loss, reference)
    for found, grad in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        torch.testing.assert_close(found, grad)


def test_slots_are_single_losses():
    images, texts = unit(4, 8), unit(4, 3, 8, seed=1)
    each = [softmax_loss(images, texts[:, k], torch.arange(4), SCALE) for k in range(3)]
    torch.testing.assert_close(slot_softmax_loss(images, texts, SCALE), torch.stack(each).mean())


def test_label_smoothing_is_that_of_cross_entropy():
    images, texts = unit(5, 8).requires_grad_(), unit(5, 8, seed=1).requires_grad_()
    scale = SCALE.double().requires_grad_()
    logits = scale.exp() * images @ texts.T
    target = torch.arange(5)
    expected = sum(F.cross_entropy(side, target, label_smoothing=0.1) for side in (logits, logits.T)) / 2
    loss = softmax_loss(images, texts, target, scale, label_smoothing=0.1, tile_size=2)
    torch.testing.assert_close(loss, expected)
    leaves = (images, texts, scale)
    pairs = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True)
    for found, grad in pairs:
        torch.testing.assert_close(found, grad)


def test_one_image_has_a_circle_loss():
    images = unit(1, 8).requires_grad_()
    circle_loss(images, unit(1, 2, 8, seed=1)).backward()
    assert torch.isfinite(images.grad).all()


def test_float32_under_autocast():
    texts, patches = unit(3, 2, 8).float(), unit(3, 4, 8, seed=1).float()
    expected = grouping_loss(texts, patches, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for negatives in ("within_image", "cross_image"):
            assert grouping_loss(texts, patches, SCALE, negatives=negatives).dtype == torch.float32
        assert torch.equal(grouping_loss(texts, patches, SCALE), expected)
        assert group_patches(texts.bfloat16(), patches.bfloat16()).embeds.dtype == torch.float32


def test_tiles_see_every_row_once_and_keep_nothing():
    rows, shared = torch.arange(7.0).requires_grad_(), torch.tensor(2.0)
    total = sum_over_tiles(lambda rows, shared: (rows * shared).sum(), (rows,), (shared,), tile_size=3)
    total.backward()
    assert total == 2 * 21
    assert torch.equal(rows.grad, torch.full((7,), 2.0))
    assert shared.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"negatives": "all"}, "negatives 'all'"), ({"normalization": "sum"}, "normalization 'sum'")],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        grouping_loss(unit(2, 2, 4), unit(2, 3, 4), SCALE, **options)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="same images and width"):
        grouping_loss(unit(2, 2, 4), unit(3, 3, 4), SCALE)
    with pytest.raises(ValueError, match=r"expected \[2, K, D\], got \[3, 2, 4\]"):
        slot_softmax_loss(unit(2, 4), unit(3, 2, 4), SCALE)
