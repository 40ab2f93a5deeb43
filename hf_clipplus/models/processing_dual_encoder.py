"""The processor of two towers: images, any number of texts per image, and texts longer than the context."""

import html
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hf_clipplus.ops.sentences import split_sentences

from .ready_images import prepare_images

TEXT_MODES = ("extended", "segmented", "hierarchical")
PADDING_ID = 0
HAS_FTFY = find_spec("ftfy") is not None

TextInput = str | list[str] | list[list[str]]
Spans = Callable[[str], Sequence[tuple[int, int] | tuple[int, int, float]]]


class LongTextKwargs(TextKwargs, total=False):
    """What a dual encoder's processor takes for texts, beside what a tokenizer does.

    Args:
        text_mode: instead of the processor's `default_text_mode`.
        spans: with segments: function from a text to the (start, end) of its parts in characters, e.g. phrases or
            roles; applied to every text, also to those that fit the context. What it leaves out is not encoded; a text
            in which it finds nothing is treated as without it. With (start, end, weight) the parts count so much in
            their text, on top of what the model makes of them.
    """

    text_mode: str | None
    spans: Spans | None


class DualEncoderProcessorKwargs(ProcessingKwargs, total=False):
    """What a dual encoder's processor takes beside images and text, and its defaults."""

    text_kwargs: LongTextKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "split_special_tokens": True}}


class DualEncoderProcessor(ProcessorMixin):
    """CLIP's image processor and tokenizer, for texts alone, texts grouped by image, and long texts.

    Texts are cleaned as CLIP's published tokenizer does (HTML entities, blanks; mojibake too when the package `ftfy`
    is there); a special token that stands in a text is read as plain text. They are padded with 0 to the longest of
    the batch.

    Args:
        default_text_mode: what becomes of a text that is longer than the context. "extended": one sequence, cut at the
            context (which `model.extend_context` lengthens), the end token kept. "segmented", "hierarchical": cut into
            sentences, and sentences into windows, which the model encodes and joins; nothing is lost.

    Attributes:
        default_spans: `spans` of calls that give none, in the modes that take them; not saved.

    Raises:
        ValueError: unknown text mode.

    Example:

    ```python
    >>> processor(images=[cat, dog], text=[["a cat", "a small cat"], ["a dog", "it runs"]], return_tensors="pt")
    >>> batch = processor(text=[story], text_mode="segmented", return_tensors="pt")
    >>> model.encode_text(**batch)  # [1, D]; model.encode_text_segments(**batch) has both levels
    ```
    """

    valid_processor_kwargs = DualEncoderProcessorKwargs
    default_spans: Spans | None = None

    def __init__(self, image_processor=None, tokenizer=None, default_text_mode: str = "extended", **kwargs):
        _check_mode(default_text_mode)
        self.default_text_mode = default_text_mode
        forget_last_cut(tokenizer)
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images=None,
        text: TextInput | None = None,
        **kwargs: Unpack[DualEncoderProcessorKwargs],
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list.
            text: one text, a list (one text each), or a list of lists (the texts of each image).
            kwargs: for the image processor, the tokenizer (`return_tensors`, `padding`, `max_length`, `size`, ...) and
                long texts (`LongTextKwargs`), by name or in `images_kwargs` and `text_kwargs`.

        Returns:
            `pixel_values [N, 3, H, W]`; `input_ids`, `attention_mask [C, L]`; for a list of lists also
            `caption_owner [C]`; with segments `segment_owner [P]` instead of one row per text, and, where spans have
            weights, `segment_shares [P]`. When texts were cut, `truncated_captions` (how many) and `dropped_tokens`
            (a list: tokens lost of each text).

        Raises:
            ValueError: nothing given, an image without texts, an empty one, a different number of images and lists, a
                span outside its text, weights that are negative or all 0.
        """
        if images is None and text is None:
            raise ValueError(f"{type(self).__name__}: give images, text or both.")
        options = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        text_options = dict(options["text_kwargs"])
        mode, spans = text_options.pop("text_mode", None) or self.default_text_mode, text_options.pop("spans", None)
        _check_mode(mode)
        if spans is not None and mode == "extended":
            raise ValueError("spans are for text_mode='segmented' or 'hierarchical'.")
        batch = {}
        if images is not None:
            batch.update(prepare_images(self.image_processor, images, options["images_kwargs"]))
        if text is None:
            return BatchFeature(batch)
        captions, owner = flatten_captions(text)
        if owner is not None and images is not None and len(text) != len(batch["pixel_values"]):
            raise ValueError(f"{len(batch['pixel_values'])} images but {len(text)} lists of captions.")
        return_tensors = text_options.pop("return_tensors", None)
        if mode == "extended":
            encoded, dropped = self._one_sequence([clean_text(caption) for caption in captions], text_options)
        else:
            encoded, dropped = self._segments(captions, spans or self.default_spans, text_options), []
        if owner is not None:
            encoded["caption_owner"] = owner
        batch.update(BatchFeature(encoded, tensor_type=return_tensors))
        if any(dropped):
            batch["truncated_captions"], batch["dropped_tokens"] = sum(map(bool, dropped)), dropped
        return BatchFeature(batch)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]

    def _one_sequence(self, captions: list[str], options: dict) -> tuple[dict[str, list], list[int]]:
        """Ids and masks of texts, and how many tokens each lost."""
        encoded = self.tokenizer(captions, **options)
        lost = [
            sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
            for encoding in encoded.encodings or []
        ]
        found = dict(encoded)
        if "attention_mask" in found:
            found["input_ids"] = [
                [token if real else PADDING_ID for token, real in zip(ids, mask, strict=True)]
                for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)
            ]
        return found, lost

    def _segments(self, captions: list[str], spans: Spans | None, options: dict) -> dict[str, list]:
        """Ids, masks and owners of the segments of all texts."""
        context = options.get("max_length") or self.tokenizer.model_max_length
        ids, owner, shares = [], [], []
        for number, caption in enumerate(captions):
            for part, share in self._windows(caption, spans, context - 2, options["split_special_tokens"]):
                ids.append([self.tokenizer.bos_token_id, *part, self.tokenizer.eos_token_id])
                owner.append(number)
                shares.append(share)
        length = context if options.get("padding") == "max_length" else max(map(len, ids))
        encoded = {
            "input_ids": [part + [PADDING_ID] * (length - len(part)) for part in ids],
            "attention_mask": [[1] * len(part) + [0] * (length - len(part)) for part in ids],
            "segment_owner": owner,
        }
        if any(share is not None for share in shares):
            encoded["segment_shares"] = [1.0 if share is None else share for share in shares]
        return encoded

    def _windows(
        self, caption: str, spans: Spans | None, size: int, as_text: bool
    ) -> list[tuple[list[int], float | None]]:
        """Content tokens of the segments of a text, and their weights: parts, or sentences if it is too long.

        What is too long for the context is cut into windows, which share the weight.
        """

        def content(part: str) -> list[int]:
            return self.tokenizer(
                clean_text(part),
                add_special_tokens=False,
                split_special_tokens=as_text,
                truncation=False,
                verbose=False,
            ).input_ids

        found = [] if spans is None else _checked_spans(caption, spans(caption))
        parts = [(content(caption[start:end]), weight) for start, end, weight in found]
        if not any(part for part, _ in parts):
            whole = content(caption)
            if len(whole) <= size:
                return [(whole, None)]
            parts = [(content(sentence), None) for sentence in split_sentences(caption)] or [(whole, None)]
        windows = []
        for part, weight in parts:
            cut = [part[start : start + size] for start in range(0, len(part), size)]
            windows += [(window, None if weight is None else weight / len(cut)) for window in cut]
        return windows


def forget_last_cut(tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Take from a tokenizer the length that its last call before it was saved had cut texts at.

    It is saved with a tokenizer and read as a setting: texts would be cut there for ever, also where the context has
    become longer since. A `max_length` that a tokenizer was given when it was made stays.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    last = getattr(backend, "truncation", None)
    if last is not None and tokenizer.init_kwargs.get("max_length") == last["max_length"]:
        tokenizer.init_kwargs.pop("max_length")
        backend.no_truncation()


def _checked_spans(text: str, spans: Sequence) -> list[tuple[int, int, float | None]]:
    """(start, end, weight or None) of each span.

    Raises:
        ValueError: a span outside the text or without end behind its start; weights that are negative or all 0.
    """
    found = [(*span, None)[:3] for span in spans]
    for start, end, _ in found:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"spans: ({start}, {end}) does not lie within the {len(text)} characters of {text!r}.")
    weights = [weight for *_, weight in found if weight is not None]
    if weights and (min(weights) < 0 or not sum(weights) > 0):
        raise ValueError(f"spans: weights must not be negative, nor all 0, got {weights} for {text!r}.")
    return found


def _check_mode(text_mode: str) -> None:
    if text_mode not in TEXT_MODES:
        raise ValueError(f"text_mode {text_mode!r} is unknown: choose one of {TEXT_MODES}.")


def clean_text(text: str) -> str:
    """Text as CLIP's published tokenizer cleans it before lower-casing."""
    if HAS_FTFY:
        import ftfy

        text = ftfy.fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def flatten_captions(text: TextInput) -> tuple[list[str], list[int] | None]:
    """Flat captions, and their owners when captions came grouped by image.

    Raises:
        ValueError: an empty list, a text among lists, an image without captions or with a blank one, or no text.
    """
    if isinstance(text, str):
        text = [text]
    if not text:
        raise ValueError("text is an empty list: there is nothing to encode.")
    grouped = not isinstance(text[0], str)
    groups = text if grouped else [[caption] for caption in text]
    captions, owner = [], []
    for i, group in enumerate(groups):
        if isinstance(group, str) or not group:
            what = "is a text among lists of texts" if isinstance(group, str) else "has no captions at all"
            raise ValueError(f"text[{i}] {what}: every image needs a list of at least one caption.")
        for j, caption in enumerate(group):
            where = f"text[{i}][{j}]" if grouped else f"text[{i}]"
            if not isinstance(caption, str):
                raise ValueError(f"{where} is {type(caption).__name__}, not a text.")
            if grouped and not caption.strip():
                raise ValueError(f"{where} is an empty caption: leave it out.")
            captions.append(caption)
            owner.append(i)
    return captions, owner if grouped else None
