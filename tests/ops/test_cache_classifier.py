"""Cache classifiers against the published loops: any label order, unequal numbers of keys, ties, chunks, bad input."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hf_clipplus.ops import cache_classifier as ops
from hf_clipplus.ops.cache_search import correct_on_grid, first_maximum, published_axis

SIZES = (3, 1, 5, 2, 3, 4)


@pytest.fixture
def cache():
    """Text, keys, labels of unequal counts in no order, queries and their labels; float64."""
    draw = torch.Generator().manual_seed(3)
    text = F.normalize(torch.randn(len(SIZES), 16, generator=draw, dtype=torch.float64), dim=1)
    labels = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    labels = labels[torch.randperm(len(labels), generator=draw)]
    targets = torch.arange(60) % len(SIZES)

    def near(classes, noise):
        shift = noise * torch.randn(len(classes), 16, generator=draw, dtype=torch.float64)
        return F.normalize(text[classes] + shift, dim=1)

    return text, near(labels, 0.3), labels, near(targets, 0.45), targets


def looped_similarity(text, keys, labels):
    """The published loop over pairs of classes and their members, each pair of classes weighing the same."""
    members = [torch.cat([text[c : c + 1], keys[labels == c]]) for c in range(len(text))]
    pairs = list(itertools.permutations(members, 2))
    return sum((a[:, None] * b[None]).mean((0, 1)) for a, b in pairs) / len(pairs)


def looped_counts(queries, keys, labels, base, targets, difficulty, grid):
    """The published triple loop with its dense one-hot matrix."""
    betas, alphas, gammas = grid
    counts = torch.zeros(len(betas), len(alphas), len(gammas), dtype=torch.int64)
    one_hot = F.one_hot(labels, base.shape[1]).to(base.dtype)
    for (i, beta), (j, alpha), (k, gamma) in itertools.product(*map(enumerate, grid)):
        values = one_hot * torch.exp(gamma * difficulty)[:, None]
        logits = base + alpha * (torch.exp(-beta * (1 - queries @ keys.T)) @ values)
        counts[i, j, k] = (logits.argmax(1) == targets).sum()
    return counts


def test_similarity_equals_the_loop_for_unequal_numbers_of_keys(cache):
    text, keys, labels, *_ = cache
    torch.testing.assert_close(ops.channel_similarity(text, keys, labels), looped_similarity(text, keys, labels))
    torch.testing.assert_close(ops.channel_similarity(text), looped_similarity(text, keys[:0], labels[:0]))


def test_text_only_criterion_is_a_trade_of_mean_and_variance(cache):
    text, w0, w1 = cache[0], 0.7, 0.3
    expected = -w0 * text.mean(0) ** 2 + (w1 + w0 / len(text)) * text.var(0)
    torch.testing.assert_close(ops.channel_criterion(text, weights=(w0, w1)), expected)


def test_channels_are_those_that_separate_the_classes():
    text = torch.tensor([[1.0, 0.5, 0.2], [-1.0, 0.5, -0.2], [0.0, 0.5, 0.3]])
    assert ops.select_channels(ops.channel_criterion(text), 3).tolist() == [0, 2, 1]
    assert ops.select_channels(torch.ones(4), 2).tolist() == [0, 1]


def test_one_class_and_impossible_numbers_of_channels():
    with pytest.raises(ValueError, match="at least 2 are needed, got 1"):
        ops.channel_criterion(torch.ones(1, 4))
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"expected 1 to 4 .*, got {count}"):
            ops.select_channels(torch.ones(4), count)


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_class_sums_equal_the_dense_product(cache, chunk):
    text, keys, labels, queries, _ = cache
    values = torch.linspace(0.5, 2, len(keys), dtype=torch.float64)
    dense = torch.exp(-3 * (1 - queries @ keys.T)) @ (F.one_hot(labels, len(text)) * values[:, None])
    found = ops.cache_term(queries, keys, labels, len(text), beta=3, values=values, chunk_elements=chunk)
    torch.testing.assert_close(found, dense)
    more_classes = ops.cache_term(queries, keys, labels, len(text) + 1, beta=3, values=values)
    assert torch.equal(more_classes[:, -1], torch.zeros(len(queries), dtype=torch.float64))


@pytest.mark.parametrize("chunk", [1, 3000, 10**7])
def test_grid_equals_the_triple_loop(cache, chunk, monkeypatch):
    monkeypatch.setattr("hf_clipplus.ops.cache_search.CHUNK_ELEMENTS", chunk)
    text, keys, labels, queries, targets = cache
    base, difficulty = 3 * queries @ text.T, ops.key_difficulty(keys, labels, text)
    grid = (published_axis(20, 9), [0.0, *published_axis(9, 7)], published_axis(2, 5, 0.0))
    expected = looped_counts(queries, keys, labels, base, targets, difficulty, grid)
    assert expected.min() < expected.max() < len(targets)  # it neither saturates nor is flat
    names = dict(zip(("betas", "alphas", "gammas"), grid, strict=True))
    found = correct_on_grid(queries, keys, labels, base, targets, difficulty=difficulty, **names)
    assert torch.equal(found, expected)
    flat = [
        (i, j, k) for i, j, k in itertools.product(*map(range, expected.shape)) if expected[i, j, k] == expected.max()
    ]
    assert first_maximum(found) == flat[0]


def test_grid_when_the_cache_says_nothing(cache):
    """Affinities that underflow to zero, and two classes that are the same: argmax's rule decides."""
    text, keys, labels, queries, targets = (each.float() if each.is_floating_point() else each for each in cache)
    base = queries @ text.T
    base = torch.cat([base, base[:, :1]], dim=1)  # the last class repeats the first
    options = {"betas": [1e4], "alphas": [1.0, 5.0]}
    found = correct_on_grid(queries, keys, labels, base, targets, **options)
    assert found.flatten().tolist() == [int((base.argmax(1) == targets).sum())] * 2
    last = torch.full_like(targets, len(text))
    assert correct_on_grid(queries, keys, labels, base, last, **options).sum() == 0


def test_grid_without_points_or_with_gammas_that_weigh_nothing(cache):
    text, keys, labels, queries, targets = cache
    with pytest.raises(ValueError, match="axis without values"):
        correct_on_grid(queries, keys, labels, queries @ text.T, targets, betas=[], alphas=[1])
    with pytest.raises(ValueError, match="give difficulty"):
        correct_on_grid(queries, keys, labels, queries @ text.T, targets, betas=[1], alphas=[1], gammas=[0.5])


def test_difficulty_is_high_where_text_and_label_disagree(cache):
    text, keys, labels, *_ = cache
    right = ops.key_difficulty(keys, labels, text)
    wrong = ops.key_difficulty(keys, (labels + 1) % len(text), text)
    assert wrong.mean() > right.mean() > 0


def test_closed_form_heads_learn_from_the_images(cache):
    text, keys, labels, queries, targets = cache
    weights, biases = ops.gda_classifier(keys, labels, len(text))
    assert (queries @ weights.T + biases).argmax(1).eq(targets).double().mean() > 0.6
    liar = text.roll(1, 0)  # text calls every class by another's name
    options = {"beta": 1.0, "strength": 10.0}
    coefficients = ops.proker_coefficients(keys, labels, liar, **options)
    kernel = torch.exp(keys @ keys.T - 1)
    torch.testing.assert_close(kernel @ coefficients / 10 + coefficients, F.one_hot(labels) - keys @ liar.T)
    term = ops.cache_term(queries, keys, labels, len(text), beta=1.0, values=coefficients)
    with_images, alone = ((queries @ liar.T + x).argmax(1).eq(targets).double().mean() for x in (term, 0))
    assert with_images > alone + 0.2
