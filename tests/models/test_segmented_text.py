"""Texts longer than the context: what the processor reports, segments, and the exactness of trimming."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F

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
from hf_clipplus.models.processing_dual_encoder import DualEncoderProcessor
from hf_clipplus.ops.sentences import split_sentences
from hf_clipplus.training.scratch import train_tokenizer

SHORT = ["a red cat", "two green boats. the sun", "a tiger"]
# of words that the tokenizer of these tests knows
STORY = "a red cat on a hill\ntwo green boats over the sea. the sun. " + "a small dog a tiger a cup of tea " * 2


@pytest.fixture
def processor(image_processor, tokenizer):
    return DualEncoderProcessor(image_processor, tokenizer)


@pytest.fixture
def model(tower_configs, seeded):
    return LongCLIPModel(LongCLIPConfig(**tower_configs)).eval()


def content(processor, text):
    return processor.tokenizer(text, add_special_tokens=False).input_ids


def test_cut_tokens_are_reported(processor):
    batch = processor(text=[SHORT[0], STORY], return_tensors="pt")
    lost = len(content(processor, STORY)) - (16 - 2)
    assert lost > 0
    assert batch["truncated_captions"] == 1
    assert batch["dropped_tokens"] == [0, lost]
    assert "dropped_tokens" not in processor(text=SHORT)


def test_segments_hold_every_token_of_every_sentence(processor):
    batch = processor(text=[SHORT[0], STORY], text_mode="segmented")
    bos, eos = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    parts = {0: [], 1: []}
    for ids, mask, owner in zip(batch["input_ids"], batch["attention_mask"], batch["segment_owner"], strict=True):
        assert len(ids) <= 16
        real = ids[: sum(mask)]
        assert (real[0], real[-1]) == (bos, eos)
        parts[owner].append(real[1:-1])
    assert parts[0] == [content(processor, SHORT[0])]
    sentences = [content(processor, sentence) for sentence in split_sentences(STORY)]
    assert max(map(len, sentences)) > 14, "one sentence is to need two windows"
    assert len(parts[1]) > len(sentences)
    assert list(chain.from_iterable(parts[1])) == list(chain.from_iterable(sentences))
    assert "truncated_captions" not in batch


def test_a_text_of_one_segment_is_plain_clip(model, processor):
    plain, segmented = (
        processor(text=SHORT, text_mode=mode, return_tensors="pt") for mode in ("extended", "segmented")
    )
    assert segmented["segment_owner"].tolist() == [0, 1, 2]
    assert torch.equal(segmented["input_ids"], plain["input_ids"])
    for normalize in (True, False):
        expected = model.encode_text(**plain, normalize=normalize)
        assert torch.equal(model.encode_text(**segmented, normalize=normalize), expected)
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(model(images, **segmented).logits_per_image, model(images, **plain).logits_per_image)


def test_a_long_text_is_the_mean_of_its_segments(model, processor):
    batch = processor(text=[SHORT[0], STORY, STORY[:70]], text_mode="segmented", return_tensors="pt")
    found = model.encode_text_segments(**batch)
    each = model.encode_text(batch["input_ids"], batch["attention_mask"])
    for number in range(3):
        own = each[batch["segment_owner"] == number]
        torch.testing.assert_close(found.segment_embeds[number][found.segment_mask[number]], own)
        torch.testing.assert_close(found.text_embeds[number], F.normalize(own.mean(0), dim=0))
    assert found.segment_mask.sum() == len(each)
    assert (found.segment_embeds[~found.segment_mask] == 0).all()


@pytest.mark.parametrize(("config_class", "model_class"), [(FFFConfig, FFFModel), (DIVAConfig, DIVAModel)])
def test_forward_takes_texts_in_segments(config_class, model_class, tower_configs, processor, seeded):
    model, images = model_class(config_class(**tower_configs)).eval(), torch.randn(2, 3, 24, 24)
    batch = processor(text=[SHORT[0], STORY], text_mode="segmented", return_tensors="pt")
    found = model(images, **batch)
    torch.testing.assert_close(found.text_embeds, model.encode_text(**batch))
    assert found.logits_per_image.shape == (2, 2)
    if model_class is DIVAModel:
        with pytest.raises(ValueError, match="DIVAModel has no contrastive loss"):
            model(images, **batch, return_loss=True)
    else:
        assert model(images, **batch, return_loss=True).positives.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("pooling", ["length", "attention"])
def test_hierarchical_pooling(pooling, tower_configs, processor, seeded):
    model = LongCLIPModel(LongCLIPConfig(**tower_configs, segment_pooling=pooling)).eval()
    batch = processor(text=[STORY, SHORT[0]], text_mode="hierarchical", return_tensors="pt")
    each = model.encode_text(batch["input_ids"], batch["attention_mask"])[batch["segment_owner"] == 0]
    lengths = batch["attention_mask"].sum(1)[batch["segment_owner"] == 0].float()
    weights = lengths / lengths.sum() if pooling == "length" else torch.full_like(lengths, 1 / len(lengths))
    torch.testing.assert_close(model.encode_text(**batch)[0], F.normalize(weights @ each, dim=0))
    if pooling == "attention":
        model.segment_attention.weight.data[:] = 30 * each[1]
        torch.testing.assert_close(model.encode_text(**batch)[0], each[1], rtol=0, atol=0.05)
        model.encode_text(**batch).sum().backward()
        assert model.segment_attention.weight.grad.abs().sum() > 0


def test_a_saved_tokenizer_forgets_where_its_last_call_cut(processor, tmp_path):
    story = "a cat on a hill " * 40
    context = processor.tokenizer.model_max_length
    assert len(processor(text=story)["input_ids"][0]) == context
    processor.save_pretrained(tmp_path)
    again = DualEncoderProcessor.from_pretrained(tmp_path)
    again.tokenizer.model_max_length = 2 * context
    assert len(again(text=story)["input_ids"][0]) == 2 * context
    assert len(again(text=story, max_length=9)["input_ids"][0]) == 9


def test_spans_are_the_parts(processor):
    def nouns(text):
        return [(text.index(word), text.index(word) + len(word)) for word in ("cat", "hill")]

    batch = processor(text="a cat on a hill", text_mode="segmented", spans=nouns)
    assert [ids[1:-1] for ids in batch["input_ids"]] == [content(processor, "cat"), content(processor, "hill")]
    assert batch["segment_owner"] == [0, 0]
    with pytest.raises(ValueError, match="spans are for"):
        processor(text="a cat", spans=nouns)
    processor.default_spans = nouns
    try:
        assert processor(text="a cat on a hill", text_mode="segmented")["input_ids"] == batch["input_ids"]
        assert "segment_owner" not in processor(text="a cat on a hill")
    finally:
        del processor.default_spans


@pytest.mark.parametrize("text", ["", " \n ", "...", "cat " * 5000, "</s>" * 30, "<|endoftext|> cat"])
@pytest.mark.parametrize("mode", ["extended", "segmented"])
def test_odd_texts_have_finite_embeddings(text, mode, model, processor):
    batch = processor(text=[text, "a cat"], text_mode=mode, return_tensors="pt")
    assert batch["input_ids"].shape[1] <= 16
    embeds = model.encode_text(**{key: batch[key] for key in batch if isinstance(batch[key], torch.Tensor)})
    assert embeds.shape == (2, 20)
    assert torch.isfinite(embeds).all()


def test_special_tokens_in_a_text_are_text(image_processor):
    tokenizer = train_tokenizer(["a cat"], vocab_size=600, context=32)  # one that knows every byte
    batch = DualEncoderProcessor(image_processor, tokenizer)(text=["<|endoftext|> cat"], return_tensors="pt")
    assert batch["input_ids"].eq(tokenizer.eos_token_id).sum() == 1
    assert "endoftext" in tokenizer.decode(batch["input_ids"][0, 1:-1])


def test_wrong_modes_are_named(image_processor, tokenizer, processor):
    for make in (
        lambda: DualEncoderProcessor(image_processor, tokenizer, "cut"),
        lambda: processor(text="a", text_mode="x"),
    ):
        with pytest.raises(ValueError, match="text_mode"):
            make()


@pytest.mark.parametrize(("config_class", "model_class"), [(FFFConfig, FFFModel), (DreamLIPConfig, DreamLIPModel)])
def test_trimming_is_exact_in_inference(config_class, model_class, tower_configs, processor, seeded):
    """The forward pass cuts a batch behind its longest text; nothing but the length of the hidden states changes."""
    model = model_class(config_class(**tower_configs)).eval()
    tight = processor(text=SHORT, return_tensors="pt")
    wide = processor(text=SHORT, padding="max_length", return_tensors="pt")
    assert tight["input_ids"].shape[1] < wide["input_ids"].shape[1] == 16
    with torch.no_grad():
        found, expected = model.get_text_features(**wide), model.get_text_features(**tight)
        full = model.get_text_features(**wide, output_hidden_states=True)
    assert torch.equal(found.pooler_output, expected.pooler_output)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert full.last_hidden_state.shape[1] == 16
    torch.testing.assert_close(full.pooler_output, found.pooler_output)


def test_shares_of_segments(model, processor):
    text = "a red cat on a hill, two green boats"
    spans = {text: [(0, len(text), 0.5), (0, 9, 0.2), (21, 36, 0.3)], "a tiger": []}
    batch = processor(text=[text, "a tiger"], text_mode="segmented", spans=spans.get, return_tensors="pt")
    assert batch["segment_shares"].tolist() == pytest.approx([0.5, 0.2, 0.3, 1.0])
    found = model.encode_text(**batch)
    each = model.encode_text(**processor(text=[text, "a red cat", "two green boats", "a tiger"], return_tensors="pt"))
    fused = F.normalize(0.5 * each[0] + 0.2 * each[1] + 0.3 * each[2], dim=0)
    torch.testing.assert_close(found, torch.stack([fused, each[3]]))
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(model(images, **batch).text_embeds, found)
    even = processor(text=[text], text_mode="segmented", spans=lambda text: [(0, 9), (21, 36)], return_tensors="pt")
    assert "segment_shares" not in even
    long = processor(text=[STORY], text_mode="segmented", spans=lambda text: [(0, len(text), 1.0)])
    windows = len(long["segment_owner"])
    assert windows > 2
    assert long["segment_shares"] == pytest.approx([1 / windows] * windows)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 99)], r"\(0, 99\) does not lie within the 7 characters of 'a tiger'"),
        ([(-3, 2)], r"\(-3, 2\) does not lie"),
        ([(4, 4)], r"\(4, 4\) does not lie"),
        ([(0, 2, -1.0), (2, 4, 2.0)], "weights must not be negative"),
        ([(0, 2, 0.0)], "weights must not be negative, nor all 0"),
    ],
)
def test_wrong_spans(spans, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(text=["a tiger"], text_mode="segmented", spans=lambda text: spans)
