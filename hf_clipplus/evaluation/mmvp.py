"""MMVP-VLM: can a model tell apart images that CLIP takes for one another? Any dual encoder, one rule for all.

Example::

    evaluator = PairEvaluator(read_mmvp("MMVP_VLM"))
    evaluator(model, processor)           # {"average": 0.193, "Orientation and Direction": 0.133, ...}
    comparison_table(score_models(evaluator, {"CLIP": (clip, processor), "DIVA": (tuned, processor)}))
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hf_clipplus.data.images import load_image
from hf_clipplus.data.mmvp_source import ImagePair
from hf_clipplus.models.diva.modeling_diva import DIVAModel
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.ops.diffusion_feedback import draw_patches

from .encode import encode_images, encode_texts
from .mmvp_scores import CHANCE, PairScores, logits_of_pairs, score_pairs

PUBLISHED_PREFIX = "a photo of "


class PairEvaluator:
    """Evaluator: share of pairs whose two texts both choose their image.

    Args:
        pairs: from `read_mmvp`, or of your own.
        prefix: put before every text (published: "a photo of ").
        name: prefix for the results.
        seed: of the patches that a `DIVAModel` with `embedding="official"` draws; image i gets the same ones in every
            evaluation, whatever the batch size.
        batch_size: images and texts of a forward pass.

    Attributes:
        scores: the `PairScores` of the last evaluation.

    Raises:
        ValueError: there are no pairs.
    """

    def __init__(
        self,
        pairs: Sequence[ImagePair],
        *,
        prefix: str = PUBLISHED_PREFIX,
        name: str = "mmvp",
        seed: int = 0,
        batch_size: int = 64,
    ):
        if not pairs:
            raise ValueError("there are no pairs to evaluate on.")
        self.pairs, self.prefix, self.name, self.seed, self.batch_size = list(pairs), prefix, name, seed, batch_size
        self.scores: PairScores | None = None

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is.

        Returns:
            `average` and each pattern's share in [0, 1]; `chance_average`; `pairs` and `pairs_right`.
        """
        self.scores = score_pairs(
            self.similarities(model, processor),
            torch.tensor([pair.first_is_true for pair in self.pairs]),
            [pair.pattern for pair in self.pairs],
        )
        counts = {"pairs": float(len(self.pairs)), "pairs_right": float(self.scores.correct.sum())}
        return {"average": self.scores.average()} | self.scores.shares() | {"chance_average": CHANCE} | counts

    def similarities(self, model: nn.Module, processor: Any) -> Tensor:
        """`[P, 2, 2]`, pair, text, image: cosines, but for a published rule that leaves the images' length alone."""
        texts = [self.prefix + text for pair in self.pairs for text in pair.texts]
        images = list(chain.from_iterable(pair.images for pair in self.pairs))
        if isinstance(model, DIVAModel) and model.config.embedding == "official":
            image_embeds = self._official_embeds(model, processor, images)
        else:
            image_embeds = encode_images(model, processor, images, batch_size=self.batch_size)
        return logits_of_pairs(encode_texts(model, processor, texts, batch_size=self.batch_size), image_embeds)

    def _official_embeds(self, model: DIVAModel, processor: Any, images: list) -> Tensor:
        """Image embeddings `[2 P, D]` of a published rule, patches drawn image by image from the seed."""
        config, drawn = model.config, torch.Generator().manual_seed(self.seed)
        parts = []
        with evaluation_mode(model):
            for start in range(0, len(images), self.batch_size):
                batch = [load_image(image) for image in images[start : start + self.batch_size]]
                pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
                indices = draw_patches(len(batch), config.random_patches, config.patches, drawn)
                found = model.get_image_features(pixels, patch_indices=indices).pooler_output.float().cpu()
                parts.append(nn.functional.normalize(found, dim=-1) if model.normalizes_images else found)
        return torch.cat(parts)


def score_models(evaluator: Any, models: Mapping[str, tuple[nn.Module, Any]]) -> dict[str, Any]:
    """The `scores` of several models under one evaluator, for a table of models.

    Args:
        evaluator: one with `scores`, `PairEvaluator` or those of `fine_grained`; its pairs hold for all.
        models: name -> (model, processor).

    Raises:
        ValueError: `DIVAModel`s with different image embeddings: a difference would not be that of the weights.
    """
    rules = {
        name: model.config.embedding if isinstance(model, DIVAModel) else "cls" for name, (model, _) in models.items()
    }
    if len(set(rules.values())) > 1:
        raise ValueError(f"the models have different image embeddings, {rules}: compare them under one.")
    scores = {}
    for name, (model, processor) in models.items():
        evaluator(model, processor)
        scores[name] = evaluator.scores
    return scores
