"""Stretched positions, principal components and segments where the fixtures do not look."""

import pytest
import torch
import torch.nn.functional as F

from hf_clipplus.ops.components import keep_components
from hf_clipplus.ops.position import stretch_positions
from hf_clipplus.ops.segments import pad_segments, segment_scores, weighted_mean


def test_kept_rows_and_every_ratio_th_row_are_the_old_ones():
    table = torch.randn(10, 4)
    long = stretch_positions(table, kept=3, ratio=5)
    assert len(long) == 3 + 5 * 7
    assert torch.equal(long[:3], table[:3])
    torch.testing.assert_close(long[3::5], table[3:])
    torch.testing.assert_close(long[-1] - long[-2], (table[-1] - table[-2]) / 5)
    assert torch.equal(stretch_positions(table, kept=3, ratio=1), table)
    assert stretch_positions(table.half(), kept=3).dtype == torch.float16


@pytest.mark.parametrize(("kept", "ratio"), [(10, 4), (-1, 4), (3, 0)])
def test_stretching_refuses_what_has_no_meaning(kept, ratio):
    with pytest.raises(ValueError, match="kept < 10"):
        stretch_positions(torch.randn(10, 4), kept=kept, ratio=ratio)


def test_gradient_of_the_components_is_the_numerical_one():
    embeds = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: keep_components(x, 3), (embeds,))


def test_equal_singular_values_of_kept_components_do_no_harm():
    """Two kept directions of equal variance: the decomposition's own gradient is infinite there."""
    axes = torch.eye(6, dtype=torch.float64)
    embeds = torch.cat([axes[:2] * 3, -axes[:2] * 3, axes[2:] * 0.1, -axes[2:] * 0.1]).requires_grad_()
    keep_components(embeds, 2).square().sum().backward()
    assert torch.isfinite(embeds.grad).all()
    assert embeds.grad[:4].abs().max() < 100


def test_segments_are_padded_by_text():
    embeds = torch.arange(6.0)[:, None]
    padded, mask = pad_segments(embeds, torch.tensor([0, 0, 0, 1, 2, 2]))
    assert padded.squeeze(-1).tolist() == [[0, 1, 2], [3, 0, 0], [4, 5, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert weighted_mean(padded, mask).flatten().tolist() == [1, 3, 4.5]


@pytest.mark.parametrize("owner", [[1, 1], [0, 2], [1, 0], [0]])
def test_owners_out_of_order_are_refused(owner):
    with pytest.raises(ValueError, match="segment_owner: expected 2 numbers"):
        pad_segments(torch.zeros(2, 3), torch.tensor(owner))


def test_scores_of_segments():
    images = F.normalize(torch.randn(3, 4), dim=-1)
    segments, mask = pad_segments(F.normalize(torch.randn(5, 4), dim=-1), torch.tensor([0, 0, 0, 1, 1]))
    cosines = [images @ part[keep].T for part, keep in zip(segments, mask, strict=True)]
    by_max, by_mean = (segment_scores(images, segments, mask, score=name) for name in ("max", "mean_similarity"))
    torch.testing.assert_close(by_max, torch.stack([each.amax(1) for each in cosines], dim=1))
    torch.testing.assert_close(by_mean, torch.stack([each.mean(1) for each in cosines], dim=1))
    whole = torch.stack([F.normalize(part[keep].mean(0), dim=0) for part, keep in zip(segments, mask, strict=True)])
    torch.testing.assert_close(segment_scores(images, segments, mask), images @ whole.T)
    with pytest.raises(ValueError, match="score 'best'"):
        segment_scores(images, segments, mask, score="best")
