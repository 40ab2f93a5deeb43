"""Zero-shot retrieval, text -> image and image -> text, with any number of captions per image (Flickr30k, COCO).

Example::

    evaluator = RetrievalEvaluator(rows, caption_columns="captions")
    evaluator(model, processor)  # {"text_to_image_R@1": ..., "image_to_text_R@1": ..., "chance_...": ..., ...}
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.metrics import RetrievalRecall, chance_at_k, ranks_from_embeddings
from hf_clipplus.evaluation.rows import Column


class RetrievalEvaluator:
    """Evaluator: recall at K both ways. A caption must find its image; an image is right if any own caption is found.

    Args:
        rows: sequence of dicts (or a `datasets.Dataset`) with an image and its captions; each row is one image.
        caption_columns: one or several columns, each a string or a list of strings.
        name: prefix for the results, e.g. in a Trainer's log.
        image_column: what `load_image` reads.
        ks: the K.
        batch_size: images per forward pass and process.
        autocast_dtype: see `encode_images`.
        progress: show progress bars.

    Attributes:
        captions: the texts of all rows, in order, without blank ones.
        owner: [captions] row of each.

    Raises:
        ValueError: there are no rows, or some have no caption (their indices are named).
    """

    task = "image-text-retrieval"

    def __init__(
        self,
        rows: Sequence,
        caption_columns: str | Sequence[str] = "captions",
        *,
        name: str = "retrieval",
        image_column: str = "image",
        ks: Sequence[int] = (1, 5, 10),
        batch_size: int = 64,
        autocast_dtype: torch.dtype | None = None,
        progress: bool = False,
    ):
        if not len(rows):
            raise ValueError("there are no rows to retrieve from")
        columns = [caption_columns] if isinstance(caption_columns, str) else list(caption_columns)
        captions, self.blank_captions = _read_captions(rows, columns)
        without = [index for index, own in enumerate(captions) if not own]
        if without:
            some = ", ".join(map(str, without[:10])) + (", ..." if len(without) > 10 else "")
            raise ValueError(f"{len(without)} of {len(rows)} rows have no caption in {columns}: rows {some}")
        self.images = Column(rows, image_column)
        self.captions = [caption for own in captions for caption in own]
        self.owner = torch.repeat_interleave(torch.tensor([len(own) for own in captions]))
        self.name = name
        self.ks = tuple(ks)
        self.options = {"batch_size": batch_size, "autocast_dtype": autocast_dtype, "progress": progress}

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is; under `torch.distributed` every rank must call and gets the same result.

        Returns:
            `text_to_image_R@K`, `image_to_text_R@K`, the same of a random ranking as `chance_...`, all in [0, 1], and
            the counts `images`, `captions` and `blank_captions` (these were left out).
        """
        images = encode_images(model, processor, self.images, **self.options)
        texts = encode_texts(model, processor, self.captions, **self.options)
        return {**retrieval_recall(images, texts, self.owner, self.ks), "blank_captions": float(self.blank_captions)}


def retrieval_recall(
    images: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10), *, tile: int = 1024
) -> dict[str, float]:
    """Recall at K both ways from embeddings, and what chance would reach.

    Args:
        images: [N, D] L2-normalised.
        texts: [C, D] L2-normalised.
        owner: [C] index of each text's image; every image owns at least one.
        ks: the K.
        tile: see `ranks_from_embeddings`.

    Returns:
        `text_to_image_R@K`, `image_to_text_R@K`, `chance_text_to_image_R@K`, `chance_image_to_text_R@K`, `images`,
        `captions`.
    """
    index = torch.arange(len(images), device=owner.device)
    per_image = torch.bincount(owner, minlength=len(images))
    directions = {
        "text_to_image": (ranks_from_embeddings(texts, images, owner, index, tile=tile), torch.ones_like(owner)),
        "image_to_text": (ranks_from_embeddings(images, texts, index, owner, tile=tile), per_image),
    }
    results = {}
    for direction, (ranks, own_counts) in directions.items():
        recall = RetrievalRecall(ks)
        recall.update(ranks)
        candidates = len(images) if direction == "text_to_image" else len(texts)
        results |= {f"{direction}_{key}": value for key, value in recall.compute().items()}
        results |= {f"chance_{direction}_R@{k}": chance_at_k(own_counts, candidates, k) for k in ks}
    return {**results, "images": float(len(images)), "captions": float(len(texts))}


def _read_captions(rows: Sequence, columns: list[str]) -> tuple[list[list[str]], int]:
    """The captions of every row over all columns, without blank ones, and how many of those there were."""
    captions, blank = [[] for _ in range(len(rows))], 0
    for name in columns:
        for own, value in zip(captions, Column(rows, name), strict=True):
            texts = value if isinstance(value, list | tuple) else [value]
            kept = [text for text in texts if text is not None and text.strip()]
            blank += len(texts) - len(kept)
            own += kept
    return captions, blank
