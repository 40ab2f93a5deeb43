"""From rows to the batch of a contrastive model: decode, augment, choose captions, call the processor."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.processing_utils import ProcessorMixin

from .captions import select_captions
from .images import UnreadableImageError, load_image
from .report import DataReport
from .seeding import item_generator

REPORT_KINDS = ("unreadable image", "image without captions", "empty caption", "truncated caption")
IMAGE_STREAM, TEXT_STREAM = 0, 1

Augmentation = Callable[[Any, np.random.Generator], Any]


def contrastive_report() -> DataReport:
    """A report of the kinds that `ContrastiveCollator` counts."""
    return DataReport(REPORT_KINDS)


class ContrastiveCollator:
    """Makes `{pixel_values, input_ids, attention_mask, caption_owner, ...}` from canonical rows (see `load_pairs`).

    What happens to row i in epoch e depends only on (seed, e, i). A row whose image cannot be read, or that has no
    caption left, is left out of the batch and counted, or stops the run.

    Args:
        processor: of the model.
        mode: captions of an image: "all", "sample_one" or "raw", see `select_captions`.
        captions_per_image, use_raw_caption: see `select_captions`.
        augment_image: `(PIL image, generator) -> PIL image`; None leaves images alone.
        augment_text: `(str, generator) -> str`; None leaves texts alone.
        seed: of the augmentation and the choice of captions.
        equal_texts_are_positive: rows without `caption_id` get `caption_ids` made from the text, so that a caption
            that stands under two images of a batch is positive for both.
        on_bad_row: "skip" (and count) or "raise".
        report: where to count; `contrastive_report()` shared with whoever prints it.
        mining_processor: processor of the frozen model that mines; adds `mining_pixel_values`, `mining_input_ids`,
            `mining_attention_mask` made from the image as it is, not augmented.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        mode: str = "all",
        captions_per_image: int = 5,
        use_raw_caption: str = "append",
        augment_image: Augmentation | None = None,
        augment_text: Augmentation | None = None,
        equal_texts_are_positive: bool = False,
        seed: int = 0,
        on_bad_row: str = "skip",
        report: DataReport | None = None,
        mining_processor: ProcessorMixin | None = None,
    ):
        if on_bad_row not in ("skip", "raise"):
            raise ValueError(f"on_bad_row must be 'skip' or 'raise', got {on_bad_row!r}.")
        self.processor, self.mining_processor = processor, mining_processor
        self.selection = {
            "mode": mode,
            "captions_per_image": captions_per_image,
            "use_raw_caption": use_raw_caption,
        }
        self.augment_image, self.augment_text = augment_image, augment_text
        self.equal_texts_are_positive = equal_texts_are_positive
        self.seed, self.on_bad_row = seed, on_bad_row
        self.report = report or contrastive_report()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows with at least `image` and captions; `index` and `epoch` (see `IndexedRows`) seed them.

        Raises:
            ValueError: a bad row with `on_bad_row="raise"`, or no good row in the whole batch.
        """
        examples = [example for row in rows if (example := self._example(row)) is not None]
        if not examples:
            raise ValueError(f"Not one of the {len(rows)} rows of a batch could be used. {self.report.summary()}")
        captions = [example["captions"] for example in examples]
        batch = dict(self.processor(images=[e["image"] for e in examples], text=captions, return_tensors="pt"))
        if cut := int(batch.pop("truncated_captions", 0)):
            self.report.add("truncated caption", examples[0]["name"] if len(examples) == 1 else "", cut)
        for key, name in (("image_id", "image_ids"), ("caption_ids", "caption_ids")):
            if all(example.get(key) is not None for example in examples):
                batch[name] = torch.as_tensor(np.concatenate([np.atleast_1d(e[key]) for e in examples]))
        for name in ("mining_image_features", "mining_text_features"):
            if all(example.get(name) is not None for example in examples):
                batch[name] = torch.as_tensor(np.concatenate([np.atleast_2d(e[name]) for e in examples])).float()
        if self.mining_processor is not None:
            flat = [caption for group in captions for caption in group]
            mining = self.mining_processor(
                images=[e["original"] for e in examples],
                text=flat,
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            names = ("pixel_values", "input_ids", "attention_mask")
            batch |= {f"mining_{key}": mining[key] for key in names if key in mining}
        batch["example_index"] = torch.tensor([example["index"] for example in examples])
        batch["return_loss"] = True
        return batch

    def _example(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        index, epoch = int(row.get("index", 0)), int(row.get("epoch", 0))
        name = _name(row, index)
        try:
            original = row["image"] if _is_plain(row["image"]) else load_image(row["image"], name=name)
        except UnreadableImageError:
            return self._bad_row("unreadable image", name)
        text_generator = item_generator(self.seed, epoch, index, TEXT_STREAM)
        chosen = select_captions(row, generator=text_generator, **self.selection)
        if chosen.blank:
            self.report.add("empty caption", name, chosen.blank)
        if not chosen.captions:
            return self._bad_row("image without captions", name)
        image, captions = original, chosen.captions
        if self.augment_image is not None:
            image = self.augment_image(image, item_generator(self.seed, epoch, index, IMAGE_STREAM))
        if self.augment_text is not None:
            captions = [self.augment_text(caption, text_generator) for caption in captions]
        return {
            "index": index,
            "name": name,
            "image": image,
            "original": original,
            "captions": captions,
            "image_id": row.get("image_id"),
            "caption_ids": self._caption_ids(row, chosen.captions),
            "mining_image_features": row.get("mining_image_features"),
            "mining_text_features": _of_captions(row, "mining_text_features", chosen.captions),
        }

    def _caption_ids(self, row: Mapping[str, Any], captions: list[str]) -> np.ndarray | None:
        ids = _of_captions(row, "caption_id", captions)
        if ids is None and self.equal_texts_are_positive:
            return np.array([text_id(caption) for caption in captions], dtype=np.int64)
        return ids

    def _bad_row(self, kind: str, name: str) -> None:
        self.report.add(kind, name)
        if self.on_bad_row == "raise":
            raise ValueError(f"{kind}: {name}. Repair or remove the row, or pass on_bad_row='skip'.")


def text_id(text: str) -> int:
    """63 bits that depend on the text alone, letter case and outer blanks apart; equal on every machine."""
    digest = hashlib.blake2b(text.strip().lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _is_plain(image: Any) -> bool:
    """Whether it is a decoded RGB picture already, as the embedded worlds give."""
    return type(image) is Image.Image and image.mode == "RGB"


def _name(row: Mapping[str, Any], index: int) -> str:
    """What a person can find the row by."""
    image = row.get("image")
    path = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, str) else None
    return f"row {index}" + (f" ({path})" if path else "")


def _of_captions(row: Mapping[str, Any], column: str, captions: list[str]) -> np.ndarray | None:
    """Entries of the chosen captions in a column with one entry per caption (raw first), or one for all."""
    value = row.get(column)
    if value is None:
        return None
    value = np.asarray(value)
    single = value.ndim == (0 if column == "caption_id" else 1)
    candidates = [row["caption"]] if "caption" in row else []
    candidates = [(text or "").strip() for text in candidates + list(row.get("pseudo_captions") or [])]
    if single:
        return np.stack([value] * len(captions))
    if len(value) != len(candidates):
        raise ValueError(
            f"{_name(row, int(row.get('index', 0)))}: column {column} has {len(value)} entries, "
            f"the row has {len(candidates)} captions (raw and pseudo)."
        )
    return value[[candidates.index(caption) for caption in captions]]
