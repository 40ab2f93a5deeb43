"""A tiny model of every variant, with random weights, for everything that goes through the Hub."""

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hf_clipplus import get_variant
from hf_clipplus.models.ape import APEForImageClassification, APEProcessor
from hf_clipplus.models.clip_fsar import CLIPFSARConfig, CLIPFSARForFewShotVideoClassification, CLIPFSARProcessor
from hf_clipplus.models.groupvit import GroupViTPlusConfig, GroupViTPlusModel, GroupViTPlusProcessor
from hf_clipplus.models.ma_clip import MACLIPConfig, MACLIPForFewShotVideoClassification, MACLIPProcessor
from hf_clipplus.models.video_processing import VideoFrameProcessor
from hf_clipplus.training.scratch import train_tokenizer
from hf_clipplus.tuners.ma_clip import attach_ma_clip, export_ma_clip

CAPTIONS = ("a red boat", "two cats on a hill", "a cup of tea", "a photo of a tiger.", "the sun over the sea")
CLASSES = ("boat", "cat", "tea")
CONTEXT, SIDE = 16, 16
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def tiny(variant_id: str):
    """A model in eval mode and its processor; a variant with CLIP's towers and no more to set needs no entry."""
    torch.manual_seed(0)
    model, processor = MAKERS.get(variant_id, two_towers)(get_variant(variant_id))
    return model.eval(), processor


def tiny_tokenizer():
    return train_tokenizer(CAPTIONS * 3, vocab_size=560, context=CONTEXT)


def text_tower(tokenizer) -> dict:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return TOWER | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}


def pictures(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(count)]


def clip(seed: int, frames: int = 4) -> np.ndarray:
    """A video as an array."""
    return np.random.default_rng(seed).integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)


def two_towers(variant):
    tokenizer = tiny_tokenizer()
    vision = TOWER | {"image_size": SIDE, "patch_size": 8}
    config = variant.load(variant.config)(text_config=text_tower(tokenizer), vision_config=vision, projection_dim=12)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return variant.load(variant.model)(config), variant.load(variant.processor)(
        CLIPImageProcessorPil(**size), tokenizer
    )


def groupvit(variant):
    """As wide as a published head, so that its converter can tell the number of heads."""
    tokenizer = tiny_tokenizer()
    one_head = {"hidden_size": 64, "num_attention_heads": 1}
    groups = {"depths": [1, 1, 1], "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3]}
    vision = one_head | groups | {"image_size": SIDE, "patch_size": 8}
    joint = {"projection_dim": 12, "projection_intermediate_dim": 20}
    config = GroupViTPlusConfig(text_config=text_tower(tokenizer) | one_head, vision_config=vision, **joint)
    return GroupViTPlusModel(config), GroupViTPlusProcessor.from_tokenizer(tokenizer, image_size=SIDE)


def ape(variant):
    backbone, processor = tiny("fff")
    model = APEForImageClassification.from_clip(backbone)
    processor = APEProcessor(processor.image_processor, processor.tokenizer)
    return model.fit(pictures(6), [0, 1, 2] * 2, CLASSES, processor=processor), processor


def clip_fsar(variant):
    """With a support set, so that it is an ordinary video classifier."""
    tokenizer = tiny_tokenizer()
    towers = {"text_config": text_tower(tokenizer), "vision_config": TOWER | {"image_size": SIDE, "patch_size": 8}}
    head = {"projection_dim": 12, "temporal_heads": 2, "temporal_ffn_dim": 16, "num_frames": 2}
    model = CLIPFSARForFewShotVideoClassification(CLIPFSARConfig(**towers, **head))
    processor = CLIPFSARProcessor(VideoFrameProcessor(resize=SIDE, crop=SIDE, num_frames=2), tokenizer)
    model.encode_support([clip(1), clip(2), clip(3)], ["boat", "boat", "tea"], processor=processor)
    return model, processor


def ma_clip_base():
    """Frozen towers and an untrained prototype module, for adapters."""
    tokenizer = tiny_tokenizer()
    towers = {"text_config": text_tower(tokenizer), "vision_config": TOWER | {"image_size": SIDE, "patch_size": 8}}
    head = {"projection_dim": 12, "temporal_heads": 2, "temporal_ffn_dim": 16, "num_frames": 2}
    model = MACLIPForFewShotVideoClassification(MACLIPConfig(**towers, **head)).eval()
    return model, MACLIPProcessor(VideoFrameProcessor(resize=SIDE, crop=SIDE, num_frames=2), tokenizer)


def trained_adapter(base):
    """Adapters on a base, with values as training would give them."""
    model = attach_ma_clip(base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def ma_clip(variant):
    """Self-contained, with a support set, so that it is an ordinary video classifier."""
    base, processor = ma_clip_base()
    model = export_ma_clip(trained_adapter(base))
    model.encode_support([clip(1), clip(2), clip(3)], ["boat", "boat", "tea"], processor=processor)
    return model, processor


MAKERS = {"groupvit": groupvit, "ape": ape, "clip_fsar": clip_fsar, "ma_clip": ma_clip}
