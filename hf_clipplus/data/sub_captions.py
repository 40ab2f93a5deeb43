"""Draws the K captions of an image from its long captions, cut into sentences (DreamLIP, 2403.17007).

The samplers are `choose` of `ContrastiveCollator`; what they draw depends on the generator alone, which the collator
makes from (seed, epoch, item).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_clipplus.ops.sentences import split_sentences

from .captions import CaptionSelection

SAMPLERS = ("default", "paper", "released")
SOURCES = ("IB", "SV", "LLA")  # InstructBLIP, ShareGPT4V, LLaVA-1.5, in the order of the published CSV files
LENGTHS = ("short", "long")


def caption_column(length: str, source: str) -> str:
    """Name of a column of the published caption files, e.g. `longSV_captions`."""
    return f"{length}{source}_captions"


@dataclass(frozen=True)
class SubCaptions:
    """Draws K captions of a row: its raw caption (`caption`) and sentences of its long and short captions.

    The sentences come from the columns `shortIB_captions`, `longIB_captions`, ... of the published files, where the
    row has them, and from `pseudo_captions`. All sentences have the same chance, so a source with more of them is
    drawn more often. Without replacement where there are enough, else with.

    Args:
        captions_per_image: K, the raw caption included.
        sampler: "default": the raw caption first, the rest from all sentences; the raw caption K times where there
            are none. "paper": all K from the raw caption, the short captions as they are, and the sentences of the
            long ones. "released": the published code, which never draws the last sentence (the last two starts when
            sentences are merged) and fails where there are fewer than two.
        merged_sentences: consecutive sentences that are joined to one caption ("default" and "released").
        sources: captioners, in the order in which their sentences are numbered.
        lengths: which of the captions of a captioner.
        min_chars, keep_decimals: see `split_sentences`.

    Raises:
        ValueError: an unknown sampler, source or length, or a number below 1.
        IndexError: "released" with too few sentences.
    """

    captions_per_image: int = 7
    sampler: str = "default"
    merged_sentences: int = 1
    sources: Sequence[str] = SOURCES
    lengths: Sequence[str] = LENGTHS
    min_chars: int = 0
    keep_decimals: bool = False

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r} is unknown: choose one of {SAMPLERS}.")
        for name, allowed in (("sources", SOURCES), ("lengths", LENGTHS)):
            if unknown := set(getattr(self, name)) - set(allowed):
                raise ValueError(f"{name} {sorted(unknown)} are unknown: choose among {allowed}.")
        for name in ("captions_per_image", "merged_sentences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def __call__(self, row: Mapping[str, Any], generator: np.random.Generator) -> CaptionSelection:
        """The captions of a row; none where it has neither a raw caption nor a sentence."""
        raw = (row.get("caption") or "").strip()
        blank = int("caption" in row and not raw)
        if self.sampler == "released":
            seeded = random.Random(int(generator.integers(2**63)))
            return CaptionSelection(self.released(row.get("caption") or "", self.pool(row), seeded), 0, 0)
        if self.sampler == "paper":
            union = [*([raw] if raw else []), *self._short_captions(row), *self.pool(row, ("long",))]
            return CaptionSelection(_draw(union, self.captions_per_image, generator), blank, 0)
        pool = self._merged(self.pool(row))
        first = [raw] if raw else []
        rest = _draw(pool or first, self.captions_per_image - len(first), generator)
        return CaptionSelection(first + rest, blank, 0)

    def pool(self, row: Mapping[str, Any], lengths: Sequence[str] | None = None) -> list[str]:
        """All sentences of a row, in order."""
        columns = [caption_column(length, source) for source in self.sources for length in LENGTHS
                   if length in self.lengths and length in (lengths or LENGTHS)]  # fmt: skip
        texts = [row.get(column) for column in columns] + list(row.get("pseudo_captions") or [])
        return [sentence for text in texts for sentence in self._split(text)]

    def released(self, raw: str, pool: Sequence[str], generator: random.Random) -> list[str]:
        """The published draw with CPython's generator: the raw caption, then K - 1 sentences or runs of them."""
        merged, drawn = self.merged_sentences, self.captions_per_image - 1
        starts = len(pool) - (1 if merged == 1 else merged + 1)
        if starts < 1:
            raise IndexError(
                f"the published sampler cannot draw from {len(pool)} sentences (merged_sentences={merged}): "
                "use sampler='default'."
            )
        numbers = range(starts)
        chosen = generator.sample(numbers, drawn) if starts >= drawn else generator.choices(numbers, k=drawn)
        return [raw, *(". ".join(pool[start : start + merged]) for start in chosen)]

    def _split(self, text: str | None) -> list[str]:
        return split_sentences(text or "", min_chars=self.min_chars, keep_decimals=self.keep_decimals)

    def _short_captions(self, row: Mapping[str, Any]) -> list[str]:
        if "short" not in self.lengths:
            return []
        parts = (self._split(row.get(caption_column("short", source))) for source in self.sources)
        return [". ".join(sentences) for sentences in parts if sentences]

    def _merged(self, pool: list[str]) -> list[str]:
        """Runs of consecutive sentences; all of them in one where there are too few."""
        if not pool:
            return []
        runs = max(1, len(pool) - self.merged_sentences + 1)
        return [". ".join(pool[start : start + self.merged_sentences]) for start in range(runs)]


@dataclass(frozen=True)
class LongAndShortCaption:
    """The long caption of a row and its beginning up to the first ". " (Long-CLIP, 2403.15378), in this order.

    Args:
        column: of the long caption; line breaks in it become blanks.
    """

    column: str = "caption"

    def __call__(self, row: Mapping[str, Any], generator: np.random.Generator) -> CaptionSelection:
        long = (row.get(self.column) or "").replace("\n", " ").strip()
        return CaptionSelection([long, long.split(". ")[0]] if long else [], int(not long), 0)


def _draw(items: list[str], count: int, generator: np.random.Generator) -> list[str]:
    if not items:
        return []
    return [items[i] for i in generator.choice(len(items), count, replace=len(items) < count)]
