"""Models from nothing: named sizes, a tokenizer trained on the captions, a first layer fitted to the images."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPImageProcessorPil, CLIPTokenizer, PreTrainedModel, ProcessorMixin

from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.models.dual_encoder import DualEncoderModel
from hf_clipplus.models.fff import FFFModel, FFFProcessor

# layers, width and heads of the towers; image side and patch in pixels; width of the joint space
SIZES = {
    "tiny": {"vision": (1, 128, 4), "text": (1, 128, 4), "image": 48, "patch": 8, "context": 32, "joint": 128},
    "small": {"vision": (2, 160, 5), "text": (1, 160, 5), "image": 48, "patch": 8, "context": 32, "joint": 160},
    "scene": {"vision": (2, 128, 4), "text": (1, 128, 4), "image": 96, "patch": 16, "context": 77, "joint": 128},
    "scene-fine": {"vision": (2, 128, 4), "text": (1, 128, 4), "image": 96, "patch": 8, "context": 77, "joint": 128},
    "vit-b-32": {
        "vision": (12, 768, 12),
        "text": (12, 512, 8),
        "image": 224,
        "patch": 32,
        "context": 77,
        "joint": 512,
    },
    "vit-b-16": {
        "vision": (12, 768, 12),
        "text": (12, 512, 8),
        "image": 224,
        "patch": 16,
        "context": 77,
        "joint": 512,
    },
}


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context: int) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer trained on `texts`; the same texts give the same tokenizer.

    Args:
        texts: captions.
        vocab_size: number of tokens; the smallest vocabulary has 514 (256 bytes, the same at the end of a word, and
            the start and end tokens).
        context: most tokens of a text, both end tokens included.
    """
    # Named here, the bytes at the end of a word get fixed ids and are all there. Left alone, the trainer numbers those
    # that it meets in the order of a hash table, and a word that ends otherwise becomes CLIP's unknown: the end token.
    endings = [f"{byte}</w>" for byte in sorted(ByteLevel.alphabet())]
    trained = CLIPTokenizer().train_new_from_iterator(
        texts, vocab_size, new_special_tokens=endings, show_progress=False
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=context)  # the endings not special


def build_from_nothing(
    model_class: type[DualEncoderModel],
    processor_class: type[ProcessorMixin],
    size: str,
    tokenizer: CLIPTokenizer,
    **config,
) -> tuple[DualEncoderModel, ProcessorMixin]:
    """A randomly initialised model of a named size and its processor.

    Args:
        model_class, processor_class: of a variant with CLIP towers.
        size: a key of `SIZES`.
        tokenizer: its ids, end token and context length go into the configuration.
        config: further fields of the variant's configuration.

    Raises:
        ValueError: unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown: choose one of {', '.join(SIZES)}.")
    facts = SIZES[size]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    towers = {
        side: dict(zip(names, facts[side], strict=True))
        | {"model_type": f"clip_{side}_model", "intermediate_size": 4 * facts[side][1], "hidden_act": "gelu"}
        | {"projection_dim": facts["joint"]}
        for side in ("vision", "text")
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    model = model_class(
        model_class.config_class(
            text_config=towers["text"] | ids | sizes,
            vision_config=towers["vision"] | {"image_size": facts["image"], "patch_size": facts["patch"]},
            projection_dim=facts["joint"],
            **config,
        )
    )
    side = picture_side(model.config)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return model, processor_class(image_processor, tokenizer)


def build_fff(size: str, tokenizer: CLIPTokenizer, **config) -> tuple[FFFModel, FFFProcessor]:
    """An FFF model of a named size and its processor, see `build_from_nothing`."""
    return build_from_nothing(FFFModel, FFFProcessor, size, tokenizer, **config)


def start_vision(model: DualEncoderModel, processor: Any, images: Iterable[Image.Image]) -> None:
    """What a tower from nothing needs to see anything within minutes: `whiten_patches` and `sine_positions`."""
    whiten_patches(model, processor, images)
    sine_positions(model)


@torch.no_grad()
def whiten_patches(
    model: PreTrainedModel, processor: Any, images: Iterable[Image.Image], *, limit: int = 2000, ridge: float = 0.1
) -> None:
    """Start the patch embedding of a vision tower from the whitened principal components of the images' patches.

    A random patch embedding mostly shows the mean colour of a patch, and few steps do not mend that. Here the first
    tokens of the images have mean 0 and, up to `ridge`, unit variance along every direction that the patches vary in;
    the mean goes into the bias, or into the position embeddings where there is none, as in CLIP.

    Args:
        model: a model from nothing with the vision tower of CLIP or GroupViT; changed in place.
        processor: turns the images into pixel values.
        images: a sample of the training images.
        limit: images looked at, at most.
        ridge: added to the variances before the root, as a share of their mean, so that noise is not blown up.

    Raises:
        ValueError: no images.
    """
    sample = list(itertools.islice(images, limit))
    if not sample:
        raise ValueError("whiten_patches: expected at least one image.")
    embeddings = model.vision_model.embeddings
    convolution = getattr(embeddings, "patch_embedding", None)
    if convolution is None:
        convolution = embeddings.patch_embeddings.projection
    (patch, _), width = convolution.kernel_size, convolution.out_channels
    mean, moment, count = 0.0, 0.0, 0
    for start in range(0, len(sample), 64):
        pixels = processor(images=sample[start : start + 64], return_tensors="pt")["pixel_values"].double()
        patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)  # [P, 3 patch^2]
        mean, moment, count = mean + patches.sum(0), moment + patches.T @ patches, count + len(patches)
    mean = mean / count
    variances, directions = torch.linalg.eigh(moment / count - mean[:, None] * mean)
    kept = min(width, len(variances))
    variances, directions = variances.flip(0)[:kept], directions.flip(1)[:, :kept]
    components = (directions / (variances + ridge * variances.mean()).sqrt()).T  # [kept, 3 patch^2]
    rotation = torch.linalg.qr(torch.randn(width, kept, dtype=torch.float64))[0]  # no channel is a component's own
    weight = rotation @ components
    convolution.weight.copy_(weight.view_as(convolution.weight))
    if convolution.bias is not None:
        convolution.bias.copy_(-weight @ mean)
    else:
        embeddings.position_embedding.weight[1:] -= (weight @ mean).to(embeddings.position_embedding.weight.dtype)


@torch.no_grad()
def sine_positions(model: DualEncoderModel, *, amplitude: float = 0.5) -> None:
    """Add sines and cosines of row and column, of three wave lengths, to the positions of a CLIP vision tower.

    Positions of CLIP's usual start (standard deviation 0.02) are invisible beside whitened patches, and few steps do
    not mend that: a tower that started so could not tell the left from the right after 1000 steps.

    Args:
        model: a model from nothing with a CLIP vision tower; changed in place.
        amplitude: standard deviation of what is added, roughly; whitened patches have 1.
    """
    positions = model.vision_model.embeddings.position_embedding.weight[1:]  # [side^2, width]
    side = round(len(positions) ** 0.5)
    turns = torch.pi * torch.arange(side, dtype=torch.float64) / side
    waves = torch.cat([f(k * turns)[:, None] for k in (1, 2, 4) for f in (torch.sin, torch.cos)], dim=1)  # [side, 6]
    grid = torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], dim=1)  # [side^2, 12]
    grid = grid - grid.mean(0)
    mix = torch.randn(grid.shape[1], positions.shape[1], dtype=torch.float64)
    added = grid @ mix
    positions += (amplitude * added / added.std()).to(positions.dtype)
