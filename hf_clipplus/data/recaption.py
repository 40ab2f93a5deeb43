"""Writes pseudo-captions for images with any transformers captioner: shard by shard, resumable, reproducible."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    TopPLogitsWarper,
)
from transformers.processing_utils import ProcessorMixin

from .images import UnreadableImageError, load_image
from .report import DataReport
from .seeding import item_generator
from .shards import write_shards

REPORT_KINDS = ("unreadable image", "image without a generated caption")
DECODING_METHODS = ("beam", "nucleus")
IMAGE_FORMS = ("bytes", "path")


class SeededNucleusSampler(LogitsProcessor):
    """Nucleus sampling whose randomness belongs to the sequence: what is drawn does not depend on the batch.

    Leaves exactly one token per step, found by inverting the distribution at a given uniform number, so that the
    sampling that `generate` does afterwards has no choice left.

    Args:
        uniforms: float `[sequences, steps]` in (0, 1].
        top_p: share of the probability mass to sample from.
        temperature: divides the logits first.
    """

    def __init__(self, uniforms: torch.Tensor, top_p: float, temperature: float):
        self.steps = iter(uniforms.unbind(1))
        self.top_p = TopPLogitsWarper(top_p)
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = self.top_p(input_ids, scores.float() / self.temperature)
        mass = kept.softmax(-1).cumsum(-1)  # [sequences, vocabulary]
        threshold = next(self.steps).to(mass)[:, None] * mass[:, -1:]
        token = (mass < threshold).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


class Captioner:
    """A transformers image-to-text model that gives several distinct captions per image.

    Works with the classes behind `AutoModelForImageTextToText`: BLIP, BLIP-2, GIT, vision-encoder-decoder models, and
    chat models, which need a `prompt`.

    Args:
        model_id: model on the Hub or in a folder.
        captions_per_image: k; repeats and blanks are dropped, so an image may get fewer.
        decoding: "beam" (the k best of k beams) or "nucleus" (k samples, more diverse).
        top_p, temperature: of nucleus sampling.
        max_new_tokens: longest caption in tokens.
        prompt: text that the caption continues or, for a chat model, the instruction; not part of the captions.
        seed: of nucleus sampling.
        device: where the model runs.

    Raises:
        ValueError: unknown `decoding`, a chat model without a prompt, or a prompt for a model that reads no text.
    """

    def __init__(
        self,
        model_id: str,
        *,
        captions_per_image: int = 5,
        decoding: str = "beam",
        top_p: float = 0.9,
        temperature: float = 1.0,
        max_new_tokens: int = 30,
        prompt: str | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        if decoding not in DECODING_METHODS:
            raise ValueError(f"Unknown decoding {decoding!r}; choose one of {DECODING_METHODS}.")
        self.model = AutoModelForImageTextToText.from_pretrained(model_id, dtype="auto").to(device).eval()
        self.processor = self.tokenizer = AutoProcessor.from_pretrained(model_id)
        if isinstance(self.processor, ProcessorMixin):
            self.tokenizer = self.processor.tokenizer
            self.tokenizer.padding_side = "left"  # a decoder continues its prompt
        elif prompt:
            raise ValueError(f"{model_id} has no processor for images and text together and cannot take a prompt.")
        else:  # a vision-encoder-decoder model saves its two halves apart
            self.processor = AutoImageProcessor.from_pretrained(model_id)
        self.is_chat = bool(getattr(self.processor, "chat_template", None))
        if self.is_chat and not prompt:
            raise ValueError(
                f"{model_id} is a chat model: give a prompt such as 'Describe the image in one sentence.'"
            )
        self.captions_per_image = captions_per_image
        self.decoding = decoding
        self.top_p = top_p
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.prompt = prompt
        self.seed = seed

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], rows: Sequence[int]) -> list[list[str]]:
        """Distinct captions of each image, best first for beams; `rows` are the images' numbers in their data set."""
        inputs = self._inputs(images).to(self.model.device, dtype=self.model.dtype)
        k = self.captions_per_image
        if self.decoding == "beam":
            options: dict[str, Any] = {"num_beams": k, "do_sample": False}
        else:
            generators = [item_generator(self.seed, 0, row, sample) for row in rows for sample in range(k)]
            uniforms = torch.from_numpy(1 - np.stack([g.random(self.max_new_tokens) for g in generators]))
            sampler = SeededNucleusSampler(uniforms, self.top_p, self.temperature)
            options = {"num_beams": 1, "do_sample": True, "logits_processor": LogitsProcessorList([sampler])}
        ids = self.model.generate(**inputs, **options, num_return_sequences=k, max_new_tokens=self.max_new_tokens)
        given = inputs.get("input_ids")
        if given is not None and torch.equal(ids[:, : given.shape[1]], given.repeat_interleave(k, 0)):
            ids = ids[:, given.shape[1] :]
        texts = [self._without_prompt(text) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        groups = [texts[start : start + k] for start in range(0, len(texts), k)]
        return [list(dict.fromkeys(text for text in group if text)) for group in groups]

    def _inputs(self, images: Sequence[Image.Image]):
        if not self.prompt:
            return self.processor(images=list(images), return_tensors="pt")
        if not self.is_chat:
            text = [self.prompt] * len(images)
            return self.processor(images=list(images), text=text, padding=True, return_tensors="pt")
        text = {"type": "text", "text": self.prompt}
        chats = [[{"role": "user", "content": [{"type": "image"}, text]}] for _ in images]
        texts = [self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        return self.processor(images=[[image] for image in images], text=texts, padding=True, return_tensors="pt")

    def _without_prompt(self, text: str) -> str:
        text = text.strip()
        if self.prompt and text.lower().startswith(self.prompt.lower()):  # BLIP repeats it, in lower case
            text = text[len(self.prompt) :]
        return text.strip()


def recaption(
    dataset: Any,
    captioner: Captioner,
    output_dir: str | Path,
    *,
    report: DataReport,
    shard_size: int = 1000,
    batch_size: int = 16,
    keep_image: str = "bytes",
    share: tuple[int, int] = (0, 1),
    max_shards: int | None = None,
) -> tuple[int, int]:
    """Writes `captions-<first row>-<end row>.parquet` shards that `load_pairs` reads back.

    A row's captions do not depend on the process, run or batch it falls into (up to rounding in the model).

    Args:
        dataset: from `load_pairs`, map-style or streaming.
        captioner: makes the captions.
        output_dir: folder of the shards; made when missing.
        report: counts of `REPORT_KINDS`; a row whose image cannot be read stays, without pseudo-captions.
        batch_size: images per call of the captioner.
        keep_image: "bytes" copies the encoded image into the shard, "path" keeps only its (absolute) path.
        shard_size, share, max_shards: see `write_shards`.

    Returns:
        How many shards were written, and how many were there already.

    Raises:
        ValueError: unknown `keep_image`, or "path" for images that lie in the source itself.
    """
    import datasets

    if keep_image not in IMAGE_FORMS:
        raise ValueError(f"Unknown keep_image {keep_image!r}; choose one of {IMAGE_FORMS}.")
    kept = {name: feature for name, feature in dataset.features.items() if name != "pseudo_captions"}
    extra = {"image": datasets.Image(), "pseudo_captions": datasets.List(datasets.Value("string"))}

    def caption(rows: list[dict[str, Any]], start: int) -> list[dict[str, Any]]:
        rows = [_with_image(row, keep_image) for row in rows]
        return _caption_rows(rows, start, captioner, batch_size, report)

    return write_shards(
        dataset,
        caption,
        output_dir,
        features=datasets.Features({**kept, **extra}),
        prefix="captions",
        shard_size=shard_size,
        share=share,
        max_shards=max_shards,
    )


def _with_image(row: dict[str, Any], keep_image: str) -> dict[str, Any]:
    image = row["image"] or {"bytes": None, "path": None}
    path = image["path"]
    if keep_image == "path":
        if image["bytes"] is not None:
            raise ValueError("This source holds the images themselves, not files: use keep_image='bytes'.")
        image = {"bytes": None, "path": path if not path or "://" in path else os.path.abspath(path)}
    elif image["bytes"] is None and path:
        try:
            with fsspec.open(path, "rb") as file:
                image = {"bytes": file.read(), "path": os.path.basename(path)}
        except OSError:
            pass  # keeps its path; load_image says what is wrong with it
    return {**row, "image": image}


def _caption_rows(
    rows: list[dict[str, Any]], start: int, captioner: Captioner, batch_size: int, report: DataReport
) -> list[dict[str, Any]]:
    names = [row["image"]["path"] or f"row {start + position}" for position, row in enumerate(rows)]
    captions: dict[int, list[str]] = {}
    for begin in range(0, len(rows), batch_size):
        images: dict[int, Image.Image] = {}
        for position in range(begin, min(begin + batch_size, len(rows))):
            try:
                images[position] = load_image(rows[position]["image"], name=names[position])
            except UnreadableImageError:
                report.add("unreadable image", names[position])
        if images:
            results = captioner(list(images.values()), [start + position for position in images])
            captions.update(zip(images, results, strict=True))
    for position, texts in captions.items():
        if not texts:
            report.add("image without a generated caption", names[position])
    return [{**row, "pseudo_captions": captions.get(position, [])} for position, row in enumerate(rows)]
