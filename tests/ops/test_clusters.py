"""Balanced clusters: equal shares where plain k-means has none, numbers that last, and what cannot be clustered."""

import pytest
import torch
import torch.nn.functional as F

from hf_clipplus.ops.clusters import assign_clusters, balance_offsets, balanced_kmeans


def features(count=600):
    """Two thirds in one tight bunch, the rest all over the sphere."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(count, 6, generator=draw)
    rows[: count * 2 // 3] = torch.tensor([3.0, 0, 0, 0, 0, 0]) + 0.4 * rows[: count * 2 // 3]
    return F.normalize(rows, dim=-1)


def test_offsets_give_equal_columns():
    scores = features() @ features(7).T / 0.05
    assert (scores.softmax(1).sum(0) - 600 / 7).abs().max() > 40
    plan = (scores + balance_offsets(scores, iterations=100)).softmax(1)
    torch.testing.assert_close(plan.sum(0), torch.full((7,), 600 / 7), rtol=1e-3, atol=0)


def test_clusters_have_equal_shares_where_nearest_centroids_have_not():
    rows = features()
    centroids, offsets = balanced_kmeans(rows, 8, generator=torch.Generator().manual_seed(1))
    sizes = assign_clusters(rows, centroids, offsets).bincount(minlength=8)
    assert sizes.min() > 0.8 * 600 / 8
    assert sizes.max() < 1.2 * 600 / 8
    nearest = (rows @ centroids.T).argmax(1).bincount(minlength=8)
    assert nearest.max() > 1.2 * 600 / 8
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(8))


def test_groups_that_are_there_are_found_and_keep_their_numbers():
    draw = torch.Generator().manual_seed(0)
    truth = torch.arange(4).repeat_interleave(50)
    rows = F.normalize(torch.eye(6)[truth] + 0.1 * torch.randn(200, 6, generator=draw), dim=-1)
    centroids, offsets = balanced_kmeans(rows, 4, start=torch.eye(6)[:4], generator=draw)
    assert torch.equal(assign_clusters(rows, centroids, offsets), truth)
    again, offsets = balanced_kmeans(rows[torch.randperm(200, generator=draw)], 4, start=centroids, generator=draw)
    assert torch.equal(assign_clusters(rows, again, offsets), truth)


@pytest.mark.parametrize("clusters", [1, 21])
def test_numbers_of_clusters_that_cannot_be(clusters):
    with pytest.raises(ValueError, match=rf"20 features cannot be put into {clusters} clusters"):
        balanced_kmeans(features(20), clusters, generator=torch.Generator())
