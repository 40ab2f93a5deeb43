"""Models from nothing: named sizes, and a byte-pair tokenizer trained on the captions at hand."""

import json
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPImageProcessorPil, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from hf_clipplus.models.fff import FFFConfig, FFFModel, FFFProcessor

# layers, width and heads of the towers; image side and patch in pixels; width of the joint space
SIZES = {
    "tiny": {"vision": (3, 128, 4), "text": (1, 128, 4), "image": 48, "patch": 16, "context": 32, "joint": 128},
    "small": {"vision": (4, 160, 5), "text": (1, 160, 5), "image": 48, "patch": 8, "context": 32, "joint": 160},
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


def build_fff(size: str, tokenizer: CLIPTokenizer, **config) -> tuple[FFFModel, FFFProcessor]:
    """A randomly initialised FFF model of a named size and its processor.

    Args:
        size: a key of `SIZES`.
        tokenizer: its ids, end token and context length go into the configuration.
        config: further fields of `FFFConfig`.

    Raises:
        ValueError: unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown: choose one of {', '.join(SIZES)}.")
    facts = SIZES[size]
    towers = {
        side: dict(zip(("num_hidden_layers", "hidden_size", "num_attention_heads"), facts[side], strict=True))
        | {"intermediate_size": 4 * facts[side][1], "hidden_act": "gelu"}
        for side in ("vision", "text")
    }
    text = CLIPTextConfig(
        **towers["text"],
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=facts["joint"],
    )
    vision = CLIPVisionConfig(
        **towers["vision"], image_size=facts["image"], patch_size=facts["patch"], projection_dim=facts["joint"]
    )
    model = FFFModel(
        FFFConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=facts["joint"], **config)
    )
    side = facts["image"]
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return model, FFFProcessor(image_processor, tokenizer)
