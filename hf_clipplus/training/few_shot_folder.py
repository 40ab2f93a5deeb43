"""One few-shot head from a folder of labelled images: drawn, fitted, tested on what is left, saved with its card."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize

from hf_clipplus.data.few_shot_sources import open_images
from hf_clipplus.models.ape import APEForImageClassification, APEProcessor
from hf_clipplus.models.ape.processing_ape import DEFAULT_TEMPLATES

from .few_shot import CacheAugmentation, draw_episode, encode_with_cache
from .few_shot_card import save_few_shot
from .few_shot_compare import ALL_HEADS, TITLES, FewShotData, compare_heads


def fit_folder(
    images: str,
    output: str | Path,
    model: str,
    *,
    head: str = "ape",
    shots: int = 16,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    views: int = 10,
) -> str:
    """Fit a head on images of the train split, choose its settings on others, test it, save it.

    Args:
        images: see `open_images`; without a test split, the images that are not drawn are tested on.
        output: folder for model, processor, card and numbers.
        model: folder or Hub id of a CLIP-like model.
        head: one of `few_shot_compare.ALL_HEADS`.
        shots: images per class; fewer where a class has fewer.
        templates: prompts with `{}`.
        seed: of the draw and of the augmented views.
        views: augmented views of each image.

    Returns:
        A sentence with what was made and how well it does.

    Raises:
        ValueError: an unknown head, or no image is left to test on.
    """
    if head not in ALL_HEADS:
        raise ValueError(f"head {head!r} is unknown: choose one of {', '.join(ALL_HEADS)}.")
    base = APEForImageClassification.from_clip(model, dtype=torch.float32)
    processor = APEProcessor.from_pretrained(model)
    found = open_images(images, image_size=base.config.backbone_config.vision_config.image_size)
    base.set_classes(found.class_names, processor, templates=templates or DEFAULT_TEMPLATES)
    pool, labels = list(found.images["train"]), list(found.labels["train"])
    start = len(pool)
    pool, labels = pool + list(found.images.get("test", [])), labels + list(found.labels.get("test", []))
    test = list(range(start, len(pool))) or None
    episode = draw_episode(labels, shots, seed=seed, test=test, allow_fewer=True)
    if not episode.test:
        raise ValueError(f"{images}: {shots} shots leave no image to test on; take fewer, or add a folder `test`.")

    def features(rows: Sequence[int], **options) -> torch.Tensor:
        return encode_with_cache(base, processor, [pool[row] for row in rows], **options)

    classes = torch.tensor(labels)
    data = FewShotData(
        features(episode.support, views=views, augment=CacheAugmentation(seed + 1)),
        classes[episode.support],
        (normalize(features(episode.validation)[0], dim=-1), classes[episode.validation]),
        (normalize(features(episode.test)[0], dim=-1), classes[episode.test]),
    )
    (row,), models = compare_heads(base, data, heads=(head,))
    output = Path(output)
    save_few_shot(models[head], base, processor, output, row, dataset=Path(images).name, seed=seed)
    return (
        f"{TITLES[head]} of {len(found.class_names)} classes in {output}: {row.accuracy:.1%} of "
        f"{len(episode.test)} test images are right."
    )
