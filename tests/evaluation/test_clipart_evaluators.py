"""The embedded evaluators run on a model of the zoo, and the right answers are the best ones."""

import pytest
import torch

from hf_clipplus.data.clipart import load_drawings
from hf_clipplus.evaluation.clipart import clipart_evaluators, clipart_scores
from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.training.scratch import build_fff, train_tokenizer


@pytest.fixture(scope="module")
def fff():
    names = [drawing.name for drawing in load_drawings("validation")]
    torch.manual_seed(0)
    return build_fff("tiny", train_tokenizer(names, vocab_size=800, context=32))


def test_fff_is_evaluated_near_chance_when_untrained(fff):
    zero_shot, retrieval, by_name = clipart_evaluators("validation", image_size=48)
    found = zero_shot(*fff)
    assert found["classes"] == 24
    assert found["samples"] == sum(drawing.class_name is not None for drawing in load_drawings("validation"))
    assert found["top1"] < 0.3
    found = retrieval(*fff)
    assert found["images"] == len(load_drawings("validation"))
    assert found["text_to_image_R@1"] < 0.1
    names = [evaluator.name for evaluator in (zero_shot, retrieval, by_name)]
    assert names == ["clipart_zero_shot", "clipart_retrieval", "clipart_retrieval_by_name"]
    merged = clipart_scores(*fff, "validation")
    assert merged["text_to_image_R@10"] == found["text_to_image_R@10"]
    assert merged["name_text_to_image_R@10"] == by_name(*fff)["text_to_image_R@10"]
    assert merged["chance_name_text_to_image_R@10"] == pytest.approx(10 / found["images"])


def test_embeddings_are_those_of_fff(fff, pictures):
    model, processor = fff
    texts = ["a drawing of a tiger", "cat"]
    batch = processor(images=pictures, text=texts, return_tensors="pt")
    with torch.no_grad():
        images = model.encode_image(batch["pixel_values"])
        tokens = model.encode_text(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(encode_images(model, processor, pictures), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(encode_texts(model, processor, texts), tokens, atol=1e-5, rtol=0)
    encode_texts(model, processor, ["a very long text " * 50])  # FFF counts what it cuts: no tensor, not passed on
