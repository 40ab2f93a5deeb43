"""Tiny dual encoders with random weights and a few pictures, for the tests of evaluation."""

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")


@pytest.fixture(scope="session")
def tokenizer():
    texts = [f"a photo of a {colour} square on paper" for colour in COLOURS]
    return CLIPTokenizer().train_new_from_iterator(texts * 5, vocab_size=600)


@pytest.fixture(scope="session")
def clip(tokenizer):
    """(CLIPModel, CLIPProcessor) of 32 pixels and 24 tokens."""
    torch.manual_seed(0)
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    text = {**layer, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    config = CLIPConfig(
        text_config=text, vision_config={**layer, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return CLIPModel(config).eval(), CLIPProcessor(CLIPImageProcessor(**size), tokenizer)


@pytest.fixture(scope="session")
def siglip(tokenizer):
    """(SiglipModel, SiglipProcessor) of 32 pixels and 24 tokens."""
    torch.manual_seed(0)
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layer, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 32}
    text |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    config = SiglipConfig(text_config=text, vision_config={**layer, "image_size": 32, "patch_size": 8})
    image_processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    return SiglipModel(config).eval(), SiglipProcessor(image_processor, tokenizer)


@pytest.fixture(scope="session")
def pictures():
    """Eight plain squares, named like COLOURS, of different sizes."""
    return [Image.new("RGB", (20 + 7 * i, 40), colour) for i, colour in enumerate(COLOURS)]
