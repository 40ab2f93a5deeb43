"""Metrics against naive dense computations, ties, tiles, merging and memory."""

from itertools import permutations
from math import comb

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hf_clipplus.evaluation import metrics
from hf_clipplus.evaluation.metrics import (
    ClassificationAccuracy,
    Ranks,
    RetrievalRecall,
    chance_at_k,
    hits_at_k,
    mean_per_class_accuracy,
    ranks_from_embeddings,
    ranks_from_scores,
    top_k_accuracy,
)


def ragged_data(seed, images=60, dim=6, distinct=None):
    """Image and caption embeddings with 1 to 7 captions per image, captions in random order."""
    rng = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 8, (images,), generator=rng)
    owner = torch.repeat_interleave(torch.arange(images), counts)
    owner = owner[torch.randperm(len(owner), generator=rng)]
    image_embeds = normalize(torch.randn(images, dim, generator=rng), dim=-1)
    text_embeds = normalize(image_embeds[owner] + 0.8 * torch.randn(len(owner), dim, generator=rng), dim=-1)
    if distinct:  # few distinct embeddings: ties everywhere
        image_embeds = image_embeds[torch.randint(distinct, (images,), generator=rng)]
        text_embeds = text_embeds[torch.randint(distinct, (len(owner),), generator=rng)]
    return image_embeds, text_embeds, owner


def naive_recall(queries, candidates, query_owner, candidate_owner, k):
    """Sorts every row of the dense matrix with numpy; right where there are no ties."""
    scores = queries.double().numpy() @ candidates.double().numpy().T
    top = np.argsort(-scores, axis=1)[:, :k]
    return float((candidate_owner.numpy()[top] == query_owner.numpy()[:, None]).any(1).mean())


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_recall_equals_the_dense_computation_both_ways(k, seed):
    images, texts, owner = ragged_data(seed)
    index = torch.arange(len(images))
    for side in ((texts, images, owner, index), (images, texts, index, owner)):
        recall = RetrievalRecall((k,))
        recall.update(ranks_from_embeddings(*side, tile=16))
        expected = naive_recall(*side, k)
        assert 0 < expected < 1
        assert recall.compute() == {f"R@{k}": pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("distinct", [None, 5])
def test_the_tile_size_changes_nothing(distinct):
    images, texts, owner = ragged_data(3, distinct=distinct)
    index = torch.arange(len(images))
    whole = ranks_from_scores(metrics.similarity(texts, images), owner[:, None] == index)
    if distinct:
        assert whole.foreign_tied.max() > 3
    for tile in (1, 7, 16, 1000):
        ranks = ranks_from_embeddings(texts, images, owner, index, tile=tile)
        for got, expected in zip(ranks, whole, strict=True):
            assert torch.equal(got, expected)


def test_ties_are_the_mean_over_every_order():
    # One candidate above; two own and three foreign ones tied; one below.
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1]])
    own = torch.tensor([[False, True, True, False, False, False, False]])
    ranks = ranks_from_scores(scores, own)
    assert [int(part) for part in ranks] == [1, 2, 3]
    orders = list(permutations(range(1, 6)))
    for k in range(1, 8):
        hits = [bool({1, 2} & set((0, *order, 6)[:k])) for order in orders]
        assert float(hits_at_k(ranks, k)) == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_a_constant_embedding_scores_exactly_at_chance():
    images, texts, owner = ragged_data(0)
    index = torch.arange(len(images))
    constant = normalize(torch.randn(1, images.shape[1]), dim=-1)
    images, texts = constant.expand_as(images), constant.expand_as(texts)
    counts = torch.bincount(owner, minlength=len(images))
    for k in (1, 5, 10):
        text_to_image = hits_at_k(ranks_from_embeddings(texts, images, owner, index, tile=13), k).mean()
        image_to_text = hits_at_k(ranks_from_embeddings(images, texts, index, owner, tile=13), k).mean()
        assert float(text_to_image) == pytest.approx(k / len(images), abs=1e-12)
        exact = np.mean([1 - comb(len(texts) - c, k) / comb(len(texts), k) for c in counts.tolist()])
        assert float(image_to_text) == pytest.approx(exact, abs=1e-12)
        assert chance_at_k(counts, len(texts), k) == pytest.approx(exact, abs=1e-12)


def test_equal_embeddings_tie_exactly_wherever_they_stand():
    images, texts, owner = ragged_data(1, images=50, dim=512)
    images = torch.cat([images, images])  # every image twice: each caption sees own and double as equal
    ranks = ranks_from_embeddings(texts, images, owner, torch.arange(100), tile=33)
    assert ranks.foreign_tied.eq(1).all()


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_equals_topk_and_sklearn(k):
    from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

    rng = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(200, 7, generator=rng), torch.randint(7, (200,), generator=rng)
    expected = top_k_accuracy_score(targets, scores, k=k, labels=range(7))
    assert top_k_accuracy(scores, targets, k) == pytest.approx(expected, abs=1e-12)
    expected = balanced_accuracy_score(targets, scores.argmax(1))
    assert mean_per_class_accuracy(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_scores_are_not_truncated_to_integers():
    # ALIP keeps 100 * cosine in an integer tensor: here it sees only ties and takes the first class, always.
    cosine = torch.tensor([[0.2511, 0.2519], [0.2519, 0.2511]])
    targets = torch.tensor([1, 1])
    assert (100 * cosine).long().argmax(1).tolist() == [0, 0]
    assert top_k_accuracy(cosine, targets) == 0.5
    with pytest.raises(TypeError, match="floating point"):
        top_k_accuracy((100 * cosine).long(), targets)
    # and neighbouring float32 values are told apart when they come from embeddings
    near = torch.nextafter(torch.tensor(0.25), torch.tensor(1.0))
    ranks = ranks_from_embeddings(
        torch.ones(1, 1), torch.stack([torch.tensor([0.25]), near[None]]), torch.tensor([1]), torch.tensor([0, 1])
    )
    assert hits_at_k(ranks, 1).item() == 1


def test_constant_scores_give_one_over_classes():
    metric = ClassificationAccuracy(8)
    metric.update(torch.zeros(80, 8), torch.zeros(80, dtype=torch.long))
    result = metric.compute()
    assert result["top1"] == pytest.approx(1 / 8)
    assert result["top5"] == pytest.approx(5 / 8)
    assert result["classes_without_samples"] == 7


def test_classification_merge_equals_whole_and_reset_forgets():
    rng = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(101, 9, generator=rng), torch.randint(9, (101,), generator=rng)
    whole, first, second = (ClassificationAccuracy(9) for _ in range(3))
    whole.update(scores, targets)
    first.update(scores[:40], targets[:40])
    second.update(scores[40:], targets[40:])
    assert first.compute() != whole.compute()
    first.merge(second)
    assert first.compute() == whole.compute()
    first.reset()
    with pytest.raises(ValueError, match="no samples"):
        first.compute()
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge(ClassificationAccuracy(8))


def test_recall_merge_equals_whole_and_reset_forgets():
    images, texts, owner = ragged_data(5)
    index = torch.arange(len(images))
    ranks = ranks_from_embeddings(texts, images, owner, index)
    whole, first, second = (RetrievalRecall() for _ in range(3))
    whole.update(ranks)
    first.update(ranks_from_embeddings(texts[:50], images, owner[:50], index))
    second.update(ranks_from_embeddings(texts[50:], images, owner[50:], index))
    assert first.compute() != whole.compute()
    first.merge(second)
    assert first.compute() == whole.compute()
    first.reset()
    with pytest.raises(ValueError, match="no queries"):
        first.compute()
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge(RetrievalRecall((1,)))


@pytest.mark.parametrize(("classes", "keys"), [(1, {"top1"}), (5, {"top1"}), (6, {"top1", "top5"})])
def test_a_k_that_is_always_reached_is_not_reported(classes, keys):
    metric = ClassificationAccuracy(classes)
    metric.update(torch.randn(4, classes), torch.zeros(4, dtype=torch.long))
    assert {key for key in metric.compute() if key.startswith("top")} == keys


def test_a_wrong_input_never_produces_a_number():
    eye, index = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="query 2 has no own candidate"):
        ranks_from_embeddings(eye, eye, torch.tensor([0, 1, 7]), index, tile=2)
    with pytest.raises(ValueError, match="query 1 has no own candidate"):
        ranks_from_scores(eye, torch.tensor([[True, False, False], [False] * 3, [True] * 3]))
    broken = eye.clone()
    broken[1, 1] = torch.nan
    with pytest.raises(ValueError, match="row 1 of candidates"):
        ranks_from_embeddings(eye, broken, index, index)
    with pytest.raises(ValueError, match="row 1 of scores"):
        top_k_accuracy(broken, index)
    with pytest.raises(ValueError, match="target 3 of sample 0"):
        top_k_accuracy(eye, torch.tensor([3, 0, 0]))
    with pytest.raises(ValueError, match="target -1 of sample 2"):
        top_k_accuracy(eye, torch.tensor([0, 0, -1]))
    with pytest.raises(ValueError, match="expected embeddings"):
        ranks_from_embeddings(eye, torch.eye(4), index, torch.arange(4))
    with pytest.raises(ValueError, match="one owner per embedding"):
        ranks_from_embeddings(eye, eye, index[:2], index)


def test_no_tensor_is_larger_than_a_tile(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    images, texts, owner = ragged_data(0, images=300, dim=4)
    inputs = max(images.numel(), texts.numel())
    with Watch():
        ranks_from_embeddings(texts, images, owner, torch.arange(300), tile=32)
    assert largest <= max(32 * 32, inputs)
    assert len(texts) * len(images) > 20 * inputs


def test_no_queries_are_no_ranks():
    empty = torch.zeros(0, 3)
    ranks = ranks_from_embeddings(empty, torch.eye(3), torch.zeros(0, dtype=torch.long), torch.arange(3))
    assert isinstance(ranks, Ranks)
    assert hits_at_k(ranks, 5).shape == (0,)
