"""Tiny towers, tokenizer and pictures that the model tests share."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # video_files, tiny_diva

CAPTIONS = ["a red cat", "a small dog on a hill", "two green boats", "a tiger", "the sun over the sea", "a cup of tea"]


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = CLIPTokenizer().train_new_from_iterator(CAPTIONS * 4, 400)
    tokenizer.model_max_length = 16
    return tokenizer


@pytest.fixture(scope="session")
def tower_configs(tokenizer):
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
    )
    return {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": 20}


@pytest.fixture(scope="session")
def image_processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})


@pytest.fixture(scope="session")
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (30, 40, 3), dtype=np.uint8)) for _ in CAPTIONS]


@pytest.fixture
def seeded():
    torch.manual_seed(0)
