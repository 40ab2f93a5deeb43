"""Texts encoded in groups of like length give the embeddings and gradients of the padded batch."""

import itertools

import pytest
import torch

from hf_clipplus import FFFConfig, FFFModel
from hf_clipplus.models import text_buckets
from hf_clipplus.models.text_buckets import cut_points, encode_in_buckets, text_lengths

TEXTS = ["tea", "a tiger", "a red cat", "two green boats", "a small dog on a hill", "the sun over the sea"]


@pytest.fixture
def no_overhead(monkeypatch):
    monkeypatch.setitem(text_buckets.OVERHEAD_TOKENS, "cpu", 0)


@pytest.fixture
def model(tower_configs, seeded):
    return FFFModel(FFFConfig(**tower_configs)).double()


@pytest.fixture
def texts(tokenizer):
    return dict(tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt"))


def cost(lengths, cuts, overhead):
    ends = [min(cut for cut in cuts if cut >= length) for length in lengths]
    return sum(ends) + overhead * len(set(ends))


@pytest.mark.parametrize("overhead", [0, 1, 3, 10, 1000])
def test_cut_points_cost_least(overhead):
    draw = torch.Generator().manual_seed(overhead)
    lengths = torch.randint(2, 9, (12,), generator=draw).tolist()
    different = sorted(set(lengths))
    choices = [
        [*some, different[-1]]
        for count in range(len(different))
        for some in itertools.combinations(different[:-1], count)
    ]
    best = min(cost(lengths, cuts, overhead) for cuts in choices)
    assert cost(lengths, cut_points(lengths, overhead), overhead) == best


def test_lengths_reach_the_token_that_transformers_pools_at():
    ids = torch.tensor([[0, 5, 9, 9], [0, 9, 5, 5], [0, 5, 5, 5]])
    assert text_lengths(ids, 9).tolist() == [3, 2, 1]  # the third has no end token: pooled at its first
    assert text_lengths(ids, 2).tolist() == [3, 2, 2]  # published configurations: the first highest id


def test_training_gives_the_gradients_of_the_padded_batch(model, texts, no_overhead):
    seen = []
    model.text_model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    gradients = []
    for training in (True, False):
        model.train(training).zero_grad()
        options = {} if training else {"output_hidden_states": True}  # asks for all positions
        embeds = model.embed(**texts, **options)["text_embeds"]
        (embeds * torch.linspace(-1, 1, embeds.numel()).view_as(embeds)).sum().backward()
        gradients.append([embeds.detach()] + [p.grad.clone() for p in model.text_model.parameters()])
    assert len(seen) > 2, "groups in training"
    assert seen[-1] == (6, 16), "stock where hidden states are asked for"
    assert max(width for _, width in seen[:-1]) < 16
    for ours, stock in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize("shared", [True, False])
def test_position_ids_and_order_are_kept(model, texts, no_overhead, shared):
    positions = torch.arange(15, -1, -1)[None].repeat(1 if shared else len(TEXTS), 1)
    stock = model.eval().embed(**texts, position_ids=positions)["text_embeds"]
    ours = model.train().embed(**texts, position_ids=positions)["text_embeds"]
    torch.testing.assert_close(ours, stock)


def test_inference_never_reads_padding(model, texts):
    stock = model.eval().get_text_features(**texts, output_hidden_states=True).pooler_output
    widths = []
    model.text_model.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    torch.testing.assert_close(model.encode_text(**texts, normalize=False), stock)
    assert max(widths) < 16


def test_who_asks_for_the_towers_output_gets_it(model, texts):
    assert model.train().embed(**texts).text_model_output is None
    assert model.embed(**texts, output_hidden_states=True)["text_model_output"].last_hidden_state.shape[:2] == (6, 16)
    model.config.output_hidden_states = True
    assert model.embed(**texts).text_model_output is not None


def test_one_group_is_not_copied(texts):
    lengths = torch.full((6,), 7)
    got = encode_in_buckets(lambda ids, mask, positions: ids, lengths, texts["input_ids"])
    assert got.shape == (6, 7)
    assert got.data_ptr() == texts["input_ids"].data_ptr()
