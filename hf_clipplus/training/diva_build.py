"""What the DIVA example shares with its comparison: starting model, diffusion model, rows, collator, evaluators."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor

from hf_clipplus.data.clipart import EMBEDDED, CaptionWorld
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.feedback import CachedLatents, FeedbackCollator, LatentCache, square_crop
from hf_clipplus.data.mmvp_source import read_mmvp
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.sources import IndexedRows, IndexedStream, load_pairs
from hf_clipplus.evaluation.clipart import clipart_evaluators, clipart_pairs, clipart_probes
from hf_clipplus.evaluation.mmvp import PairEvaluator
from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback
from hf_clipplus.models.diva.generator_diva import DiffusionGenerator
from hf_clipplus.models.diva.presets_diva import PRESETS, preset
from hf_clipplus.models.diva.processing_diva import DIVAProcessor

from .card import is_hub_id
from .start import ENCODER, load_to_train

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SCENE_SHARE = 0.5  # of the embedded pictures; the others show one drawing


@dataclass
class DIVAArguments:
    """The backbone, the diffusion model, and how the one is trained by the other."""

    preset: str = field(
        default="embedded", metadata={"help": "Published settings of a backbone.", "choices": list(PRESETS)}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "CLIP, SigLIP or model of the zoo to start from; None: the preset's."}
    )
    generator: str = field(
        default="outputs/tiny_diffusion",
        metadata={"help": "Folder or Hub id of a diffusers model; the default is what train_tiny_diffusion.py makes."},
    )
    generator_dtype: str = field(
        default="float32", metadata={"help": "Of the frozen weights.", "choices": list(DTYPES)}
    )
    generator_image_size: int | None = field(
        default=None, metadata={"help": "Side of its pictures in pixels; None: what its UNet was made for."}
    )
    recap: str | None = field(default=None, metadata={"help": "Instead of the preset's: random_k, random_ratio, ..."})
    recap_k: int | None = field(default=None, metadata={"help": "Patches of random_k."})
    recap_ratio: float | None = field(default=None, metadata={"help": "Share of the patches of random_ratio."})
    recap_window: int | None = field(default=None, metadata={"help": "Window of avgpool, in patches."})
    prompt_mode: str | None = field(default=None, metadata={"help": "token_add, mean_add or replace."})
    projector: str | None = field(default=None, metadata={"help": "linear or mlp."})
    noise_draws: int | None = field(default=None, metadata={"help": "Draws of time and noise per image and step."})
    loss_type: str | None = field(default=None, metadata={"help": "mse or l1."})
    legacy_grad_weighting: bool | None = field(
        default=None, metadata={"help": "The published mix of the draws' gradients."}
    )
    legacy_pixels: bool = field(
        default=False, metadata={"help": "The published pixels: wrong statistics for the VAE, no antialiasing."}
    )
    projector_steps: int = field(
        default=0, metadata={"help": "First train the projector alone for so many steps (two stages)."}
    )
    projector_learning_rate: float = field(default=1e-4, metadata={"help": "Of that first stage, with AdamW."})
    freeze_projector: bool = field(default=False, metadata={"help": "Leave the projector alone in the second stage."})
    lora: bool = field(default=False, metadata={"help": "Low-rank updates of the tower, merged at the end."})

    def config(self) -> dict[str, Any]:
        """Fields of `DIVAConfig`: the preset's, and what was asked for instead."""
        names = ("recap", "recap_k", "recap_ratio", "recap_window", "prompt_mode", "projector", "noise_draws")
        names += ("loss_type", "legacy_grad_weighting")
        asked = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        name = self.generator if is_hub_id(self.generator) else Path(self.generator).name  # no path of this machine
        return preset(self.preset).config | asked | {"generator_name": name}


@dataclass
class PictureArguments:
    """Where pictures come from, and what is measured as it goes; captions are not used."""

    dataset: str = field(
        default=EMBEDDED,
        metadata={"help": "Hub data set id, folder, parquet file or glob, webdataset shards, or 'openclipart'."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the image; None finds it by name."})
    streaming: bool = field(default=False, metadata={"help": "Read while training, without a local copy."})
    crop: str = field(
        default="random", metadata={"help": "random (published) or center.", "choices": ["random", "center"]}
    )
    cache_latents: str | None = field(
        default=None, metadata={"help": "Folder of a latent cache; made and filled where it is not (crop center)."}
    )
    pictures: int = field(default=2000, metadata={"help": "Embedded pictures of an epoch."})
    on_bad_row: str = field(default="skip", metadata={"help": "'skip' counts unreadable images; 'raise' stops."})
    mmvp: str | None = field(default=None, metadata={"help": "Folder of MMVP-VLM to evaluate on as it goes."})
    eval_split: str = field(
        default="validation", metadata={"help": "Embedded drawings to evaluate on before and after, or 'none'."}
    )
    eval_pictures: int = field(
        default=600, metadata={"help": "Embedded pictures of each linear probe; a tenth as many pairs of each fact."}
    )


def build_generator(args: DIVAArguments) -> DiffusionGenerator:
    """The frozen diffusion model.

    Raises:
        FileNotFoundError: the default folder is not there; says what makes it.
    """
    if args.generator == DIVAArguments.generator and not Path(args.generator).is_dir():
        raise FileNotFoundError(f"{args.generator} is not there: run `python examples/train_tiny_diffusion.py` first.")
    return DiffusionGenerator.from_pretrained(args.generator, dtype=DTYPES[args.generator_dtype])


def build_model(args: DIVAArguments, generator: DiffusionGenerator) -> tuple[DIVAForDiffusionFeedback, DIVAProcessor]:
    """The backbone with its projector, the diffusion model attached, and the processor.

    Raises:
        OSError: the backbone is neither a folder nor a Hub id (never random weights).
        ValueError: the checkpoint lacks weights, or tower and diffusion model do not fit.
    """
    name = args.model_name_or_path or preset(args.preset).model or str(ENCODER)
    config = args.config() | {"condition_dim": generator.condition_dim}
    model, _ = load_to_train(DIVAForDiffusionFeedback, name, added=("visual_proj.", "logit_bias"), **config)
    model.attach_generator(generator)
    stock = AutoProcessor.from_pretrained(name)
    size = args.generator_image_size or generator.unet.config.sample_size * generator.vae_factor
    generator.check_image_size(size)
    processor = DIVAProcessor(
        stock.image_processor,
        stock.tokenizer,
        generator_image_size=size,
        legacy_vae_renorm=args.legacy_pixels,
        legacy_tower_pixels=args.legacy_pixels,
        pad_texts="siglip" in AutoConfig.from_pretrained(name).model_type,
    )
    return model, processor


def open_training_rows(data: PictureArguments, image_size: int, seed: int) -> IndexedRows | IndexedStream:
    """The pictures to train on, numbered for seeding; the embedded ones are scenes and single drawings.

    Raises:
        ValueError: a cache of latents and a stream.
    """
    if data.dataset == EMBEDDED:
        scenes = SceneWorld(
            data.train_split, image_size=image_size, length=int(SCENE_SHARE * data.pictures), train=False, seed=seed
        )
        drawings = CaptionWorld(data.train_split, image_size=image_size, train=True, seed=seed)
        return IndexedRows(_Mixed(scenes, drawings, data.pictures))
    if data.streaming and data.cache_latents:
        raise ValueError("cache_latents needs rows that have numbers: leave streaming out.")
    rows = load_pairs(
        data.dataset,
        split=data.train_split,
        image_column=data.image_column,
        streaming=data.streaming,
        require_text=False,
    )
    return IndexedStream(rows) if data.streaming else IndexedRows(rows)


def with_cached_latents(
    rows: IndexedRows,
    data: PictureArguments,
    processor: DIVAProcessor,
    generator: DiffusionGenerator,
    report: DataReport,
) -> IndexedRows:
    """Rows that bring their latents; what the cache lacks is encoded now, and the VAE let go."""
    cache = LatentCache(data.cache_latents, rows.dataset, processor, generator)
    cache.fill(report=report, progress=True)
    generator.vae = None
    return IndexedRows(CachedLatents(rows.dataset, data.cache_latents))


def build_collator(
    processor: DIVAProcessor, data: PictureArguments, seed: int, report: DataReport
) -> FeedbackCollator:
    """The collator that the arguments describe."""
    crop = square_crop(data.crop, processor.generator_image_size)
    return FeedbackCollator(processor, crop, seed=seed, on_bad_row=data.on_bad_row, report=report)


def open_evaluators(data: PictureArguments, image_size: int) -> list:
    """What is run at each evaluation: MMVP-VLM where it is given; with the embedded drawings their own protocols."""
    found = [PairEvaluator(read_mmvp(data.mmvp))] if data.mmvp else []
    if data.dataset == EMBEDDED and data.eval_split != "none":
        pairs = data.eval_pictures // 10
        found.append(clipart_pairs(data.eval_split, image_size=image_size, pairs_per_fact=pairs))
        found += clipart_probes(data.eval_split, image_size=image_size, rows=data.eval_pictures)
        found.append(clipart_evaluators(data.eval_split, image_size=image_size)[0])
    return found


class _Mixed(torch.utils.data.Dataset):
    """Scenes first, then single drawings again and again, up to `length` rows; the same pictures in every epoch."""

    def __init__(self, scenes: SceneWorld, drawings: CaptionWorld, length: int):
        self.scenes, self.drawings, self.length = scenes, drawings, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.scenes):
            return {"image": self.scenes[index]["image"]}
        return {"image": self.drawings[(index - len(self.scenes)) % len(self.drawings)]["image"]}
