"""Prompts from the nouns of captions, for GroupViT's multi-label loss (2202.11094, section 3.2; published code)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .collators import ContrastiveCollator
from .seeding import item_generator

# The published code takes all verbs beside the nouns, and leaves out plural names (NNPS); the paper says nouns
PUBLISHED_TAGS = frozenset({"NN", "NNS", "NNP", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
NOUN_TAGS = frozenset({"NN", "NNS", "NNP"})
WORD_KINDS = ("published", "nouns", "noun_phrases")
PROMPT_STREAM = 2
# CLIP's prompts for ImageNet (2103.00020), in the published order
TEMPLATES = (
    *("a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}."),
    *("a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}."),
    *("a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}."),
    *("a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}."),
    *("a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}."),
    *(
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
    ),
    *(
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
    ),
    *("a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}."),
    *("a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game."),
    *("a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "a photo of a {}."),
    *("the origami {}.", "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}."),
    *("a origami {}.", "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}."),
    *("a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}."),
    *("a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}.", "art of a {}."),
    *("a sketch of the {}.", "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}."),
    *("a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}.", "a photo of the nice {}."),
    *("a photo of the small {}.", "a photo of the weird {}.", "the cartoon {}.", "art of the {}."),
    *("a drawing of the {}.", "a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}."),
    *("a dark photo of a {}.", "itap of a {}.", "graffiti of the {}.", "a toy {}."),
    *("itap of my {}.", "a photo of a cool {}.", "a photo of a small {}.", "a tattoo of the {}."),
)

Tagger = Callable[[str], Sequence[tuple[str, str]]]


def nltk_tagger() -> Tagger:
    """NLTK's tokenizer and tagger, as in the published code.

    Raises:
        ImportError: the package or its data is not there; says what to install.
    """
    try:
        import nltk

        nltk.pos_tag(nltk.word_tokenize("a test"))
    except (ImportError, LookupError) as error:
        raise ImportError(
            "tagging with NLTK needs `pip install nltk` and its data: `python -m nltk.downloader punkt_tab "
            "averaged_perceptron_tagger_eng`. Or use spacy_tagger, a tagger of your own, or a column `nouns`/`tags`."
        ) from error
    return lambda caption: nltk.pos_tag(nltk.word_tokenize(caption))


def spacy_tagger(model: str = "en_core_web_sm") -> Tagger:
    """spaCy's tagger, with the Penn tags that NLTK uses too.

    Raises:
        ImportError: the package or the model is not there; says what to install.
    """
    try:
        import spacy

        parse = spacy.load(model, disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise ImportError(
            f"tagging with spaCy needs `pip install spacy` and `python -m spacy download {model}`. Or use "
            "nltk_tagger, a tagger of your own, or a column `nouns` or `tags`."
        ) from error
    return lambda caption: [(token.text, token.tag_) for token in parse(caption)]


def find_tagger() -> Tagger:
    """NLTK's tagger if it is there with its data, else spaCy's.

    Raises:
        ImportError: neither is there.
    """
    for make in (nltk_tagger, spacy_tagger):
        try:
            return make()
        except ImportError as error:
            problem = error
    raise ImportError(f"neither NLTK nor spaCy can tag here. {problem}") from problem


def selectable_words(tagged: Sequence[tuple[str, str]], kind: str = "published") -> list[str]:
    """The words of a tagged caption that prompts may be made of, in their order, repeats kept.

    Args:
        tagged: (word, Penn tag) pairs.
        kind: "published" (nouns but NNPS, and verbs), "nouns", or "noun_phrases" (adjectives and nouns up to a noun;
            unlike the published routine, a phrase that ends the caption counts too).

    Raises:
        ValueError: unknown kind.
    """
    if kind not in WORD_KINDS:
        raise ValueError(f"kind of words {kind!r} is unknown: choose one of {WORD_KINDS}.")
    if kind != "noun_phrases":
        tags = PUBLISHED_TAGS if kind == "published" else NOUN_TAGS
        return [word for word, tag in tagged if tag in tags]
    phrases, run, end = [], [], 0
    for word, tag in [*tagged, ("", "")]:
        if tag == "JJ" or tag.startswith("NN"):
            run.append(word)
            end = len(run) if tag != "JJ" else end
        else:
            phrases += [" ".join(run[:end])] if end else []
            run, end = [], 0
    return phrases


def noun_prompts(
    caption: str,
    words: Sequence[str],
    prompts: int,
    generator: np.random.Generator,
    templates: Sequence[str] = TEMPLATES,
) -> list[str]:
    """K prompts of a caption: distinct places among its words, one template each; too few are filled with the caption.

    Args:
        caption: as it is.
        words: what may be chosen; a word that stands there twice can be chosen twice.
        prompts: K.
        generator: draws places and templates.
        templates: with `{}` for the word.
    """
    places = generator.permutation(len(words))[:prompts]
    made = [templates[int(generator.integers(len(templates)))].replace("{}", words[place]) for place in places]
    return made + [caption] * (prompts - len(made))


class NounPromptCollator(ContrastiveCollator):
    """Makes `{pixel_values, input_ids [B, 1 + K, L], attention_mask, ...}`: a caption and K noun prompts per image.

    The words come from the row's column `nouns` (texts) if it has one, else from `tags` ((word, Penn tag) pairs),
    else from the tagger. Pictures are resized to the crop's side itself, without the margin that the processor leaves
    for evaluation. Rows are checked, counted and seeded as by `ContrastiveCollator`.

    Args:
        processor: `GroupViTPlusProcessor`.
        prompts: K; 0 makes captions alone, `[B, L]`.
        tagger: see `find_tagger`; None is for rows with `nouns` or `tags`.
        word_kind: see `selectable_words`.
        templates: of the prompts.
        mode: "raw" (the caption) or "sample_one" (of caption and pseudo-captions).
        options: `augment_image`, `augment_text` (of the caption, before it is tagged), `seed`, `on_bad_row`, `report`.
    """

    def __init__(
        self,
        processor,
        *,
        prompts: int = 3,
        tagger: Tagger | None = None,
        word_kind: str = "published",
        templates: Sequence[str] = TEMPLATES,
        mode: str = "raw",
        **options: Any,
    ):
        if mode == "all":
            raise ValueError("GroupViT trains on one caption per image: mode must be 'raw' or 'sample_one'.")
        refuse_hard_negatives(options.get("hard_negatives"))
        super().__init__(_TrainingView(processor), mode=mode, **options)
        selectable_words([], word_kind)
        self.prompts, self.tagger, self.word_kind, self.templates = prompts, tagger, word_kind, tuple(templates)

    def _example(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        example = super()._example(row)
        if example is None or not self.prompts:
            return example
        caption = example["captions"][0]
        generator = item_generator(self.seed, int(row.get("epoch", 0)), example["index"], PROMPT_STREAM)
        example["captions"] = [
            caption,
            *noun_prompts(caption, self._words(row, caption), self.prompts, generator, self.templates),
        ]
        return example

    def _words(self, row: Mapping[str, Any], caption: str) -> list[str]:
        if row.get("nouns") is not None:
            return [word for word in row["nouns"] if word.strip()]
        if row.get("tags") is not None:
            return selectable_words(row["tags"], self.word_kind)
        if self.tagger is None:
            raise ValueError(
                "rows have neither `nouns` nor `tags`, and the collator has no tagger: pass "
                "tagger=hf_clipplus.data.nouns.find_tagger() (NLTK or spaCy) or a function caption -> (word, tag) "
                "pairs, or prompts=0 to train on captions alone."
            )
        return selectable_words(self.tagger(caption), self.word_kind)


def refuse_hard_negatives(wanted: Any) -> None:
    """Raises ValueError, with the reason, when GroupViT is to be trained with hard negatives."""
    if wanted:
        raise ValueError(
            "GroupViT takes no hard negatives: its text projector normalises over all texts of the batch, so that "
            "false captions would move the embeddings of the true ones (BatchNorm in the published model)."
        )


class _TrainingView:
    """A processor that resizes to the side of its crop."""

    def __init__(self, processor):
        self.processor = processor
        self.size = {"shortest_edge": dict(processor.image_processor.crop_size)["height"]}

    def __call__(self, images=None, text=None, **kwargs):
        if not isinstance(text[0], str) and all(len(each) == 1 for each in text):
            text = [each[0] for each in text]
        return self.processor(images=images, text=text, size=self.size, **kwargs)
