"""Chooses the captions of an image and augments captions, reproducibly from a numpy generator."""

import contextlib
import functools
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

logger = logging.get_logger(__name__)

SELECTION_MODES = ("all", "sample_one", "raw")
RAW_CAPTION_USES = ("append", "replace")


class CaptionSelection(NamedTuple):
    """The captions of one image, and how many were dropped on the way: blank ones, and repeats of the same text."""

    captions: list[str]
    blank: int
    repeated: int


def select_captions(
    row: Mapping[str, Any],
    *,
    mode: str = "all",
    captions_per_image: int = 5,
    use_raw_caption: str = "append",
    generator: np.random.Generator,
) -> CaptionSelection:
    """The captions that stand for one image: never blank, never the same text twice, possibly none.

    Args:
        row: `caption` (str or None, the raw one) and `pseudo_captions` (strings or None), each optional.
        mode: "all" - the raw caption, then up to `captions_per_image` pseudo-captions, drawn without replacement when
            there are more, in their own order; "sample_one" - one of those candidates (raw and every pseudo-caption);
            "raw" - the raw caption only.
        captions_per_image: k, how many pseudo-captions at most; an image with fewer distinct ones gets fewer.
        use_raw_caption: whether pseudo-captions stand beside the raw one ("append") or replace it ("replace": it is
            then no candidate even where pseudo-captions are missing).
        generator: random numbers of this item.

    Returns:
        The captions, stripped of outer blanks, and counts of what was dropped. The list is empty when there is
        nothing to choose from; the caller decides what that means.

    Raises:
        ValueError: unknown `mode` or `use_raw_caption`, `captions_per_image` below 1, `pseudo_captions` is no list.
    """
    if mode not in SELECTION_MODES:
        raise ValueError(f"Unknown caption mode {mode!r}; choose one of {SELECTION_MODES}.")
    if use_raw_caption not in RAW_CAPTION_USES:
        raise ValueError(f"Unknown use_raw_caption {use_raw_caption!r}; choose one of {RAW_CAPTION_USES}.")
    if captions_per_image < 1:
        raise ValueError(f"captions_per_image must be at least 1, got {captions_per_image}.")
    if isinstance(row.get("pseudo_captions"), str):
        raise ValueError("pseudo_captions must be a list of strings, got one string; load_pairs() normalises it.")

    raw = [row["caption"]] if "caption" in row and (mode == "raw" or use_raw_caption == "append") else []
    pseudo = [] if mode == "raw" else list(row.get("pseudo_captions") or [])
    stripped = [(text or "").strip() for text in raw + pseudo]
    captions = list(dict.fromkeys(text for text in stripped if text))
    blank = stripped.count("")
    repeated = len(stripped) - blank - len(captions)

    if mode == "sample_one" and captions:
        captions = [captions[generator.integers(len(captions))]]
    if mode == "all":
        kept = 1 if raw and stripped[0] else 0  # the raw caption, when there is one, is always kept
        if len(captions) - kept > captions_per_image:
            chosen = generator.choice(len(captions) - kept, captions_per_image, replace=False)
            captions = captions[:kept] + [captions[kept + i] for i in sorted(chosen)]
    return CaptionSelection(captions, blank, repeated)


@dataclass(frozen=True)
class RandomWordDeletion:
    """With probability `p`, leaves out each word with probability `rate`; at least one word always stays."""

    rate: float = 0.1
    p: float = 1.0

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        words = text.split()
        if generator.random() >= self.p or len(words) < 2:
            return text
        keep = generator.random(len(words)) >= self.rate
        keep[generator.integers(len(words))] |= not keep.any()
        return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


@dataclass(frozen=True)
class SentenceReordering:
    """With probability `p`, puts the sentences of a caption in random order; one sentence stays as it is."""

    p: float = 1.0

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        sentences = re.split(r"(?<=[.!?])\s+|(?<=[。！？])\s*", text.strip())
        sentences = [sentence for sentence in sentences if sentence]
        if generator.random() >= self.p or len(sentences) < 2:
            return text
        return " ".join(sentences[i] for i in generator.permutation(len(sentences)))


@dataclass(frozen=True)
class SynonymReplacement:
    """With probability `p`, replaces each word that has synonyms with probability `rate`.

    Args:
        synonyms: a dict or function from a lower-case word to its synonyms (none: empty or, for a dict, absent), e.g.
            `wordnet_synonyms()`. Punctuation around the word and a capital first letter are kept.
    """

    synonyms: Mapping[str, Sequence[str]] | Callable[[str], Sequence[str]]
    rate: float = 0.1
    p: float = 1.0

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        if generator.random() >= self.p:
            return text
        words = text.split()
        chosen = generator.random(len(words)) < self.rate
        return " ".join(self._replace(w, generator) if c else w for w, c in zip(words, chosen, strict=True))

    def _replace(self, word: str, generator: np.random.Generator) -> str:
        before, core, after = re.fullmatch(r"(\W*)(.*?)(\W*)", word, re.DOTALL).groups()
        lookup = self.synonyms if callable(self.synonyms) else lambda key: self.synonyms.get(key, ())
        options = lookup(core.lower()) if core else ()
        if not options:
            return word
        synonym = options[generator.integers(len(options))]
        return before + (synonym[0].upper() + synonym[1:] if core[0].isupper() else synonym) + after


def wordnet_synonyms() -> Callable[[str], tuple[str, ...]]:
    """A function from an English word to the synonyms of its most frequent meaning in WordNet.

    Inflected forms ("dogs") and function words have none, so that a replacement does not break the sentence.

    Raises:
        ImportError: NLTK is not installed.
        LookupError: NLTK's WordNet data are not there.
    """
    _wordnet_lookup("picture")
    return _wordnet_lookup


# Short words that WordNet knows only, or first, as something else ("a" = angstrom, "in" = inch, "are" = 100 m²).
_FUNCTION_WORDS = frozenset(
    """
    a an am are as at be but by can could do for had has have he her him his i if in into is it its may me might my no
    not of off on or our out over so some than that the their them there they this to up us was we were what which who
    will with would you your
    """.split()  # noqa: SIM905
)


@functools.lru_cache(maxsize=100_000)
def _wordnet_lookup(word: str) -> tuple[str, ...]:
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise ImportError(
            "WordNet synonyms need NLTK: `pip install nltk`, then `python -m nltk.downloader wordnet`."
        ) from error
    if word in _FUNCTION_WORDS:
        return ()
    try:
        meanings = wordnet.synsets(word)
    except LookupError as error:
        raise LookupError(
            "NLTK is installed but its WordNet data are not: run `python -m nltk.downloader wordnet`, or set "
            "NLTK_DATA to a folder that holds corpora/wordnet."
        ) from error
    names = [name.replace("_", " ") for name in meanings[0].lemma_names()] if meanings else []
    return tuple(name for name in names if name.lower() != word) if word in map(str.lower, names) else ()


class BackTranslation:
    """Translates a caption into another language and back, with any two sequence-to-sequence translation models.

    Results are kept in an SQLite file, so that each text is translated once over all runs. Inside a DataLoader a text
    that is not there yet runs both models in the worker; call `translate` on all captions beforehand.

    Args:
        forward_model_id: model from the captions' language, e.g. "Helsinki-NLP/opus-mt-en-de".
        backward_model_id: model back into it.
        cache_dir: folder of the SQLite file; made when missing, safe to share between processes.
        languages: for multilingual models (NLLB, mBART) the codes of the captions' language and of the other one,
            e.g. `("eng_Latn", "deu_Latn")`; None for models of one pair (Marian).
        p: probability that a call translates at all.
        batch_size: texts per call of `generate`.
        device: where the models run.
    """

    def __init__(
        self,
        forward_model_id: str,
        backward_model_id: str,
        cache_dir: str | Path,
        *,
        languages: tuple[str, str] | None = None,
        p: float = 1.0,
        batch_size: int = 32,
        device: str | torch.device = "cpu",
    ):
        self.directions = [(str(forward_model_id), languages), (str(backward_model_id), languages and languages[::-1])]
        self.p = p
        self.batch_size = batch_size
        self.device = device
        self._models: dict[str, tuple] = {}
        self._cache = Path(cache_dir) / "back_translation.sqlite"
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS translations "
                "(models TEXT, text TEXT, result TEXT, PRIMARY KEY (models, text))"
            )

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        return self.translate([text])[0] if generator.random() < self.p else text

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The texts there and back, in order. A text that a model cannot hold (too long) or loses stays as it is."""
        key = repr(self.directions)
        known: dict[str, str] = {}
        with self._connect() as connection:
            for text in set(texts):
                found = connection.execute("SELECT result FROM translations WHERE models=? AND text=?", (key, text))
                known.update((text, result) for (result,) in found)
        missing = sorted(set(texts) - known.keys(), key=lambda text: (len(text), text))  # even lengths per batch
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            result = batch
            for model_id, languages in self.directions:
                result = self._run(model_id, languages, result)
            known.update(zip(batch, result, strict=True))
            with self._connect() as connection:
                rows = [(key, text, known[text]) for text in batch]
                connection.executemany("INSERT OR REPLACE INTO translations VALUES (?, ?, ?)", rows)
        return [known[text] for text in texts]

    @torch.inference_mode()
    def _run(self, model_id: str, languages: tuple[str, str] | None, texts: list[str]) -> list[str]:
        if model_id not in self._models:
            tokenizer = AutoTokenizer.from_pretrained(model_id)
            model = AutoModelForSeq2SeqLM.from_pretrained(model_id)
            self._models[model_id] = tokenizer, model.to(self.device).eval()
        tokenizer, model = self._models[model_id]
        options = {}
        if languages:
            tokenizer.src_lang = languages[0]
            options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(languages[1])
            if options["forced_bos_token_id"] in (None, tokenizer.unk_token_id):
                raise ValueError(f"{model_id} has no token for the language {languages[1]!r}.")
        fits = [len(ids) <= tokenizer.model_max_length for ids in tokenizer(texts).input_ids]
        short = [text for text, fit in zip(texts, fits, strict=True) if fit]
        if len(short) < len(texts):
            logger.warning(
                f"{len(texts) - len(short)} captions are longer than the {tokenizer.model_max_length} tokens that "
                f"{model_id} can translate; they stay as they are."
            )
        if not short:
            return texts
        inputs = tokenizer(short, padding=True, return_tensors="pt", return_token_type_ids=False).to(self.device)
        translated = iter(tokenizer.batch_decode(model.generate(**inputs, **options), skip_special_tokens=True))
        return [next(translated).strip() or text if fit else text for text, fit in zip(texts, fits, strict=True)]

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._cache, timeout=60)) as connection, connection:
            yield connection  # committed, then closed: an open connection must not cross a fork

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_models": {}}  # a spawned worker loads the models itself, if it ever needs them
