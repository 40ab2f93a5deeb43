"""From rows to the batch of a contrastive model: decode, augment, choose captions, call the processor."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.processing_utils import ProcessorMixin

from hf_clipplus.ops.positives import NO_IMAGE

from .captions import CaptionSelection, select_captions
from .images import UnreadableImageError, load_image
from .report import DataReport
from .seeding import item_generator

if TYPE_CHECKING:
    from .hard_negatives import HardNegatives

REPORT_KINDS = (
    "unreadable image",
    "image without captions",
    "empty caption",
    "truncated caption",
    "row without mining features",
    "caption without structure",
    "missing hard negative",
    "hard negative like a caption of its batch",
)
UNKNOWN_ID = -1
IMAGE_STREAM, TEXT_STREAM, NEGATIVE_STREAM = 0, 1, 3

Augmentation = Callable[[Any, np.random.Generator], Any]
CaptionChoice = Callable[[Mapping[str, Any], np.random.Generator], CaptionSelection]


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
        choose: `(row, generator) -> CaptionSelection` instead of the three above, e.g. `SubCaptions`; a text that is
            no caption of the row has no `caption_id`, and must not meet mining features of several captions.
        augment_image: `(PIL image, generator) -> PIL image`; None leaves images alone.
        augment_text: `(str, generator) -> str`; None leaves texts alone.
        seed: of the augmentation and the choice of captions.
        equal_texts_are_positive: rows without `caption_id` get `caption_ids` made from the text, so that a caption
            that stands under two images of a batch is positive for both.
        on_bad_row: "skip" (and count) or "raise".
        report: where to count; `contrastive_report()` shared with whoever prints it.
        mining_processor: processor of the frozen model that mines; adds `mining_pixel_values`, `mining_input_ids`,
            `mining_attention_mask` made from the image and the captions as they are, not augmented.
        hard_negatives: makes false captions of each image (`HardNegatives`). They stand behind its captions with the
            `caption_owner` -1, "of no image", and have neither ids nor mining features. One that is a caption of the
            batch, or becomes one when it is cut at the context, is left out and counted.

    Raises:
        ValueError: hard negatives and `augment_text`, which might take away what makes them false.

    Ids and mining features that a row lacks, in a data set with such a column, are "not known" (id -1, features of
    zeros: similar to nothing). A single `caption_id` belongs to the raw caption; a list has one for each caption,
    raw first.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        mode: str = "all",
        captions_per_image: int = 5,
        use_raw_caption: str = "append",
        choose: CaptionChoice | None = None,
        augment_image: Augmentation | None = None,
        augment_text: Augmentation | None = None,
        equal_texts_are_positive: bool = False,
        seed: int = 0,
        on_bad_row: str = "skip",
        report: DataReport | None = None,
        mining_processor: ProcessorMixin | None = None,
        hard_negatives: "HardNegatives | None" = None,
    ):
        if on_bad_row not in ("skip", "raise"):
            raise ValueError(f"on_bad_row must be 'skip' or 'raise', got {on_bad_row!r}.")
        if hard_negatives is not None and augment_text is not None:
            raise ValueError(
                "hard_negatives cannot go with augment_text: it might take away the word that makes a caption false."
            )
        self.processor, self.mining_processor = processor, mining_processor
        self.selection = {
            "mode": mode,
            "captions_per_image": captions_per_image,
            "use_raw_caption": use_raw_caption,
        }
        self.choose = choose or partial(select_captions, **self.selection)
        self.augment_image, self.augment_text = augment_image, augment_text
        self.equal_texts_are_positive = equal_texts_are_positive
        self.seed, self.on_bad_row = seed, on_bad_row
        self.report = report or contrastive_report()
        self.hard_negatives = hard_negatives

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows with at least `image` and captions; `index` and `epoch` (see `IndexedRows`) seed them.

        Raises:
            ValueError: a bad row with `on_bad_row="raise"`, or no good row in the whole batch.
        """
        examples = [example for row in rows if (example := self._example(row)) is not None]
        if not examples:
            raise ValueError(f"Not one of the {len(rows)} rows of a batch could be used. {self.report.summary()}")
        true = {text_id(caption) for example in examples for caption in example["captions"]}
        for example in examples:
            example["false"] = [text for text in example["false"] if not self._is_true(text_id(text) in true, example)]
        texts = [example["captions"] + example["false"] for example in examples]
        batch = dict(self.processor(images=[e["image"] for e in examples], text=texts, return_tensors="pt"))
        batch.pop("dropped_tokens", None)
        if cut := int(batch.pop("truncated_captions", 0)):
            self.report.add("truncated caption", examples[0]["name"] if len(examples) == 1 else "", cut)
        if self.hard_negatives is not None:
            batch |= self._without_image(batch, examples)
        if any("image_id" in row for row in rows):
            batch["image_ids"] = torch.tensor([example["image_id"] for example in examples])
        if self.equal_texts_are_positive or any("caption_id" in row for row in rows):
            batch["caption_ids"] = torch.tensor([id for example in examples for id in example["caption_ids"]])
        features = [example["mining"] for example in examples if example["mining"] is not None]
        if features:
            unknown = [np.zeros_like(part[:1]) for part in features[0]]
            parts = [
                example["mining"] or (unknown[0], np.repeat(unknown[1], len(example["captions"]), 0))
                for example in examples
            ]
            names = ("mining_image_features", "mining_text_features")
            for name, arrays in zip(names, zip(*parts, strict=True), strict=True):
                batch[name] = torch.from_numpy(np.concatenate(arrays)).float()
        if self.mining_processor is not None:
            # SigLIP reads the padding too: it was trained on texts of full length
            siglip = "siglip" in type(self.mining_processor).__name__.lower()
            mining = self.mining_processor(
                images=[example["original"] for example in examples],
                text=[caption for example in examples for caption in example["chosen"]],
                return_tensors="pt",
                padding="max_length" if siglip else True,
                truncation=True,
            )
            names = ("pixel_values", "input_ids", "attention_mask")
            batch |= {f"mining_{key}": mining[key] for key in names if key in mining}
        batch["example_index"] = torch.tensor([example["index"] for example in examples])
        batch["return_loss"] = True
        return batch

    def _example(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        index, epoch = int(row.get("index", 0)), int(row.get("epoch", 0))
        name = row_name(row, index)
        try:
            original = row["image"] if is_plain_rgb(row["image"]) else load_image(row["image"], name=name)
        except UnreadableImageError:
            return self._bad_row("unreadable image", name)
        text_generator = item_generator(self.seed, epoch, index, TEXT_STREAM)
        chosen = self.choose(row, generator=text_generator)
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
            "false": self._false_captions(row, chosen.captions, name),
            "chosen": chosen.captions,
            "image_id": UNKNOWN_ID if row.get("image_id") is None else int(row["image_id"]),
            "caption_ids": self._caption_ids(row, chosen.captions),
            "mining": self._mining_features(row, chosen.captions, name),
        }

    def _false_captions(self, row: Mapping[str, Any], captions: list[str], name: str) -> list[str]:
        if self.hard_negatives is None:
            return []
        index, epoch = int(row.get("index", 0)), int(row.get("epoch", 0))
        generator = item_generator(self.seed, epoch, index, NEGATIVE_STREAM)
        made = self.hard_negatives(row, captions, generator=generator)
        for kind, count in (("caption without structure", made.unreadable), ("missing hard negative", made.missing)):
            if count:
                self.report.add(kind, name, count)
        return made.texts

    def _without_image(
        self, batch: dict[str, torch.Tensor], examples: list[dict[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """The entries of the texts, the false ones without an image, and without those that are cut to a caption."""
        of = [example for example in examples for _ in example["captions"] + example["false"]]
        false = [flag for e in examples for flag in [False] * len(e["captions"]) + [True] * len(e["false"])]
        owner = batch["caption_owner"].masked_fill(torch.tensor(false), NO_IMAGE)
        if "segment_owner" in batch:  # nothing was cut
            return {"caption_owner": owner}
        ids = batch["input_ids"].tolist()
        true = {tuple(tokens) for tokens, flag in zip(ids, false, strict=True) if not flag}
        kept = [
            not (flag and self._is_true(tuple(tokens) in true, example))
            for tokens, flag, example in zip(ids, false, of, strict=True)
        ]
        return {
            name: value[torch.tensor(kept)]
            for name, value in (batch | {"caption_owner": owner}).items()
            if name in ("input_ids", "attention_mask", "caption_owner")
        }

    def _is_true(self, is_caption: bool, example: dict[str, Any]) -> bool:
        """Counts a hard negative that is a caption."""
        if is_caption:
            self.report.add("hard negative like a caption of its batch", example["name"])
        return is_caption

    def _caption_ids(self, row: Mapping[str, Any], captions: list[str]) -> list[int]:
        """The id of each chosen caption: the row's, else the hash of its text if wanted, else unknown."""
        given = row.get("caption_id")
        candidates = caption_candidates(row)
        if not isinstance(given, (list, tuple, np.ndarray)):
            given = [given] + [None] * (len(candidates) - 1)
        _check_length(row, "caption_id", given, candidates)
        ids = [given[candidates.index(caption)] if caption in candidates else None for caption in captions]
        unknown = text_id if self.equal_texts_are_positive else lambda text: UNKNOWN_ID
        return [unknown(caption) if id is None else int(id) for id, caption in zip(ids, captions, strict=True)]

    def _mining_features(self, row, captions: list[str], name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """`[1, Df]` and `[captions, Df]`; None when the row has none, which counts if there are such columns."""
        image, text = row.get("mining_image_features"), row.get("mining_text_features")
        if image is None or text is None:
            if "mining_image_features" in row or "mining_text_features" in row:
                self.report.add("row without mining features", name)
            return None
        image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
        if text.ndim == 1:
            return image[None], np.repeat(text[None], len(captions), 0)
        candidates = caption_candidates(row)
        _check_length(row, "mining_text_features", text, candidates)
        return image[None], text[[candidates.index(caption) for caption in captions]]

    def _bad_row(self, kind: str, name: str) -> None:
        self.report.add(kind, name)
        if self.on_bad_row == "raise":
            raise ValueError(f"{kind}: {name}. Repair or remove the row, or pass on_bad_row='skip'.")


def text_id(text: str) -> int:
    """63 bits that depend on the text alone, letter case and outer blanks apart; equal on every machine."""
    digest = hashlib.blake2b(text.strip().lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def is_plain_rgb(image: Any) -> bool:
    """Whether it is a decoded RGB picture already, as the embedded worlds give."""
    return type(image) is Image.Image and image.mode == "RGB"


def row_name(row: Mapping[str, Any], index: int) -> str:
    """What a person can find the row by."""
    image = row.get("image")
    path = image.get("path") if isinstance(image, Mapping) else image
    path = path if isinstance(path, str | os.PathLike) else None
    return f"row {index}" + (f" ({path})" if path else "")


def caption_candidates(row: Mapping[str, Any]) -> list[str]:
    """All captions of a row, the raw one first, blank ones included: the order of columns with an entry for each."""
    texts = ([row["caption"]] if "caption" in row else []) + list(row.get("pseudo_captions") or [])
    return [(text or "").strip() for text in texts]


def _check_length(row: Mapping[str, Any], column: str, values: Sequence, candidates: list[str]) -> None:
    if len(values) != len(candidates):
        raise ValueError(
            f"{row_name(row, int(row.get('index', 0)))}: column {column} has {len(values)} entries, "
            f"the row has {len(candidates)} captions (raw and pseudo)."
        )
