"""Makes variations of images with a diffusers pipeline, image to image or by inpainting: resumable, reproducible."""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from .images import UnreadableImageError, load_image
from .report import DataReport
from .seeding import item_generator
from .shards import write_shards

REPORT_KINDS = ("unreadable image", "image withheld by the safety checker")
MODES = ("image_to_image", "inpainting")
CAPTION = "{caption}"  # in a prompt


class Varier:
    """A diffusers pipeline that makes variations of images.

    Args:
        pipeline_id: pipeline on the Hub or in a folder.
        mode: "image_to_image" (the whole image is changed) or "inpainting" (a box at a random place is).
        strength: share of the way to noise that the image goes before it comes back, in (0, 1].
        prompt: what the pipeline is told; "{caption}" in it stands for the image's caption.
        variations: of each image.
        image_size: longer side of the variations in pixels; both sides are rounded to multiples of 8.
        mask_area: share of the image that is painted anew, in (0, 1]; inpainting only.
        steps, guidance_scale: of the pipeline; None takes its own.
        seed: what is drawn depends on it, the row and the variation alone.
        revision: of a pipeline on the Hub.
        device: where it runs.

    Raises:
        ValueError: an unknown mode, or a number that is out of its range.
    """

    def __init__(
        self,
        pipeline_id: str,
        *,
        mode: str = "image_to_image",
        strength: float = 0.5,
        prompt: str = CAPTION,
        variations: int = 1,
        image_size: int = 512,
        mask_area: float = 0.25,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ):
        if mode not in MODES:
            raise ValueError(f"Unknown mode {mode!r}; choose one of {MODES}.")
        for name, value in (("strength", strength), ("mask_area", mask_area)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}.")
        for name, value, least in (("variations", variations, 1), ("image_size", image_size, 8), ("steps", steps, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if steps is not None and int(steps * strength) < 1:
            raise ValueError(f"{steps} steps at a strength of {strength} are none at all: use more of either.")
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline

        folder = pipeline_id
        if not Path(pipeline_id).is_dir():
            folder = DiffusionPipeline.download(pipeline_id, revision=revision)
        auto = {"image_to_image": AutoPipelineForImage2Image, "inpainting": AutoPipelineForInpainting}[mode]
        self.pipeline = auto.from_pretrained(folder).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline_id = pipeline_id
        # the cache of the Hub keeps each commit in a folder of its name
        self.revision = Path(folder).name if Path(folder).parent.name == "snapshots" else None
        self.mode, self.strength, self.prompt, self.variations = mode, strength, prompt, variations
        self.image_size, self.mask_area, self.seed = image_size, mask_area, seed
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "strength": strength}
        self.options = {name: value for name, value in options.items() if value is not None}

    def seed_of(self, row: int, variation: int) -> int:
        """The seed of one variation, 63 bits."""
        return int(item_generator(self.seed, 0, row, variation).integers(2**63))

    def prompt_of(self, row: dict[str, Any]) -> str:
        """What the pipeline is told about a row: its caption, or its first pseudo-caption, in the prompt."""
        captions = [row.get("caption"), *(row.get("pseudo_captions") or [])]
        return self.prompt.replace(CAPTION, next((text for text in captions if text), "")).strip()

    def fit(self, image: Image.Image) -> Image.Image:
        """The image at the size of its variations, aspect kept up to rounding."""
        scale = self.image_size / max(image.size)
        return image.resize(
            tuple(max(8, round(side * scale / 8) * 8) for side in image.size), Image.Resampling.BICUBIC
        )

    def mask(self, size: tuple[int, int], seed: int) -> Image.Image:
        """A white box at a place that depends on the seed, on black."""
        draw = item_generator(seed, 0, 0)
        width, height = (max(1, round(side * self.mask_area**0.5)) for side in size)
        left, top = (int(draw.integers(side - part + 1)) for side, part in zip(size, (width, height), strict=True))
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).rectangle((left, top, left + width - 1, top + height - 1), fill=255)
        return mask

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """A variation of each image, all of one size; None where the safety checker withheld it."""
        inputs: dict[str, Any] = {"prompt": list(prompts), "image": list(images)}
        if self.mode == "inpainting":
            width, height = images[0].size
            inputs["mask_image"] = [self.mask(images[0].size, seed) for seed in seeds]
            inputs |= {"width": width, "height": height}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.pipeline(**inputs, **self.options, generator=generators)
        withheld = getattr(found, "nsfw_content_detected", None) or [False] * len(images)
        return [None if flag else image for image, flag in zip(found.images, withheld, strict=True)]


def write_variations(
    dataset: Any,
    varier: Varier,
    output_dir: str | Path,
    *,
    report: DataReport,
    batch_size: int = 4,
    keep_original: bool = False,
    **work: Any,
) -> tuple[int, int]:
    """Writes `variations-<first row>-<end row>.parquet` shards that `load_pairs` reads back.

    Each row is a variation with the captions of its image and where it comes from: `source_id` (path of the image, or
    its row), `source_row`, `prompt`, `seed`, `strength`, `pipeline` and `revision` (the commit on the Hub; null for a
    folder). An id of the picture or features of the original are left out: they are not the variation's.

    Args:
        dataset: from `load_pairs`, map-style or streaming.
        varier: makes the variations.
        output_dir: folder of the shards.
        report: counts of `REPORT_KINDS`; what is counted has no row.
        batch_size: images per call of the pipeline, all of one size.
        keep_original: also write each image as it is, resized, with a strength of 0 and without a prompt.
        work: `shard_size`, `share`, `max_shards` of `write_shards`.

    Returns:
        How many shards were written, and how many were there already.
    """
    import datasets

    string, number = datasets.Value("string"), datasets.Value("int64")
    texts = {name: dataset.features[name] for name in ("caption", "pseudo_captions") if name in dataset.features}
    origin = {"source_id": string, "source_row": number, "prompt": string, "seed": number}
    origin |= {"strength": datasets.Value("float32"), "pipeline": string, "revision": string}

    def vary(rows: list[dict[str, Any]], start: int) -> list[dict[str, Any]]:
        made = _vary_rows(rows, start, varier, batch_size, keep_original, report)
        return [{name: row.get(name) for name in ("image", *texts, *origin)} for row in made]

    features = datasets.Features({"image": datasets.Image(), **texts, **origin})
    return write_shards(dataset, vary, output_dir, features=features, prefix="variations", **work)


def _vary_rows(
    rows: list[dict[str, Any]], start: int, varier: Varier, batch_size: int, keep_original: bool, report: DataReport
) -> list[dict[str, Any]]:
    """The rows of a shard, in the order of their images, an image's variations in theirs."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    waiting = defaultdict(list)  # by size: what the pipeline can take in one call
    for number, row in enumerate(rows, start):
        name = (row["image"] or {}).get("path") or f"row {number}"
        try:
            image = varier.fit(load_image(row["image"], name=name))
        except UnreadableImageError:
            report.add("unreadable image", name)
            continue
        origin = {**row, "source_id": name, "source_row": number}
        if keep_original:
            found[number, -1] = origin | {"image": _encoded(image), "strength": 0.0}
        for variation in range(varier.variations):
            seed, prompt = varier.seed_of(number, variation), varier.prompt_of(row)
            origin = origin | {"seed": seed, "prompt": prompt, "strength": varier.strength}
            origin |= {"pipeline": varier.pipeline_id, "revision": varier.revision}
            waiting[image.size].append(((number, variation), image, origin))
    for group in waiting.values():
        for first in range(0, len(group), batch_size):
            keys, images, origins = zip(*group[first : first + batch_size], strict=True)
            made = varier(images, [o["prompt"] for o in origins], [o["seed"] for o in origins])
            for key, image, origin in zip(keys, made, origins, strict=True):
                if image is None:
                    report.add("image withheld by the safety checker", origin["source_id"])
                else:
                    found[key] = origin | {"image": _encoded(image)}
    return [found[key] for key in sorted(found)]


def _encoded(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
