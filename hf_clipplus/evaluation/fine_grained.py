"""Fine-grained evaluation of any dual encoder: look-alike pairs scored like Winoground, captions against false ones.

Example::

    evaluator = FineGrainedEvaluator(fine_grained_pairs("test"))     # or of read_winoground(...), read_mmvp(...)
    evaluator(model, processor)                                      # {"text": 0.4, "image": 0.3, "group": 0.2, ...}
    fine_grained_table(score_models(evaluator, {"CLIP": (clip, processor), "ours": (tuned, processor)}))
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_clipplus.data.mmvp_source import ImagePair
from hf_clipplus.data.sugarcrepe_source import CaptionChoice

from .encode import encode_images, encode_texts
from .fine_grained_scores import CHANCES, FineGrainedScores
from .mmvp import PairEvaluator
from .mmvp_scores import PairScores


class FineGrainedEvaluator(PairEvaluator):
    """Evaluator: text, image and group score of pairs, and MMVP's, over all and by kind; Trainer can run it.

    Args:
        pairs: each text is true of one image of its pair, and the two of different ones.
        prefix: put before every text.
        name: prefix for the results.
        kwargs: of `PairEvaluator`.

    Attributes:
        scores: the `FineGrainedScores` of the last evaluation.

    Raises:
        ValueError: there are no pairs, or both texts of one are true of the same image.
    """

    def __init__(self, pairs: Sequence[ImagePair], *, prefix: str = "", name: str = "fine_grained", **kwargs: Any):
        super().__init__(pairs, prefix=prefix, name=name, **kwargs)
        if wrong := [number for number, pair in enumerate(self.pairs) if len(set(pair.first_is_true)) < 2]:
            raise ValueError(f"both texts of {len(wrong)} pairs are true of the same image, the first is {wrong[0]}.")

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is.

        Returns:
            `text`, `image`, `group` and `mmvp`: means over the kinds, in [0, 1]; `<score>_<kind>` of each kind;
            `chance_<score>`; and `pairs`.
        """
        logits = self.similarities(model, processor)
        swapped = torch.tensor([not pair.first_is_true[0] for pair in self.pairs])
        logits = torch.where(swapped[:, None, None], logits.flip(1), logits)
        self.scores = FineGrainedScores(logits, tuple(pair.pattern for pair in self.pairs))
        found = {}
        for name, chance in (CHANCES | {"mmvp": CHANCES["image"]}).items():
            score = getattr(self.scores, name)
            found |= {name: score.average()} | {f"{name}_{kind}": share for kind, share in score.shares().items()}
            found[f"chance_{name}"] = chance
        return found | {"pairs": float(len(self.pairs))}


class CaptionChoiceEvaluator:
    """Evaluator: share of images that are more similar to their caption than to a false one; a tie is wrong.

    Args:
        choices: from `read_sugarcrepe`, or of your own.
        name: prefix for the results.
        batch_size: images and texts of a forward pass.

    Attributes:
        scores: the `PairScores` of the last evaluation.

    Raises:
        ValueError: there are no choices.
    """

    def __init__(self, choices: Sequence[CaptionChoice], *, name: str = "caption_choice", batch_size: int = 64):
        if not choices:
            raise ValueError("there are no captions to choose from.")
        self.choices, self.name, self.batch_size = list(choices), name, batch_size
        self.scores: PairScores | None = None

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is.

        Returns:
            `average` over the categories and each category's accuracy in [0, 1]; `chance_average`; and `choices`.
        """
        options = {"batch_size": self.batch_size}
        numbers: dict[Any, int] = {}  # an image has several false captions, and is encoded once
        of_choice = [numbers.setdefault(_identity(choice.image), len(numbers)) for choice in self.choices]
        images = {number: choice.image for number, choice in zip(of_choice, self.choices, strict=True)}
        image_embeds = encode_images(model, processor, list(images.values()), **options)[of_choice]
        texts = [text for choice in self.choices for text in (choice.caption, choice.negative)]
        text_embeds = encode_texts(model, processor, texts, **options).unflatten(0, (-1, 2))
        own, other = torch.einsum("nd,ntd->tn", image_embeds, text_embeds)
        self.scores = PairScores(own > other, tuple(choice.category for choice in self.choices))
        counts = {"chance_average": 1 / 2, "choices": float(len(self.choices))}
        return {"average": self.scores.average()} | self.scores.shares() | counts


def _identity(image: Any) -> Any:
    """Equal for equal paths; anything else is itself alone."""
    return str(image) if isinstance(image, str) or hasattr(image, "__fspath__") else id(image)
