"""What the examples of DreamLIP and Long-CLIP share: rows, collator, evaluators and the starting model."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer

from hf_clipplus.data.captions import RandomWordDeletion
from hf_clipplus.data.clipart import EMBEDDED
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import CaptionChoice, ContrastiveCollator
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.long_caption_files import image_table, long_caption_report, read_long_captions
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.sources import IndexedRows, IndexedStream, iterate, kept_rows
from hf_clipplus.data.sub_captions import LENGTHS, SOURCES, SubCaptions
from hf_clipplus.evaluation.scenes import PREAMBLE
from hf_clipplus.models.configuration_finer_vision import FinerVision, picture_side
from hf_clipplus.models.dual_encoder import DualEncoderModel
from hf_clipplus.models.finer_vision import fit_pictures
from hf_clipplus.models.processing_dual_encoder import DualEncoderProcessor
from hf_clipplus.ops.position import rows_to_keep

from .arguments import FINER_VISION_HELP, PairDataArguments
from .build import TOKENIZER_SAMPLE, captions_of, hard_negatives_of, open_pairs, open_retrieval, plain_rows
from .scratch import SIZES, build_from_nothing, start_vision, train_tokenizer
from .start import load_to_train

TOKENIZER_SCENES, VISION_SAMPLE = 1000, 400
ADDED = ("patch_projection.weight", "logit_scale_local")  # by DreamLIP to a plain CLIP
OTHER_IMAGES = 15  # that a caption is held against in the grouping loss, where only patches differ
SUB_CAPTION_LOSS = {"contrastive_loss": "slot_softmax", "mining_features": None}  # DreamLIP's own


@dataclass
class StartArguments:
    """Where a model starts from, and what it reads."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Start from this checkpoint (folder or Hub id); None starts from nothing."}
    )
    model_size: str = field(
        default="scene", metadata={"help": f"Size of a model that starts from nothing: {', '.join(SIZES)}."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a model that starts from nothing; None trains one on the captions."},
    )
    vocab_size: int = field(default=1500, metadata={"help": "Entries of a tokenizer trained on the captions."})
    scenes: int = field(default=4000, metadata={"help": "Embedded scenes of an epoch; other ones each epoch."})
    caption_files: list[str] = field(
        default_factory=list,
        metadata={"help": "DreamLIP's published caption files (CSV), read instead of --dataset; needs --images."},
    )
    images: str | None = field(
        default=None,
        metadata={"help": "Pictures of --caption_files: a folder, or a table (CSV, parquet) with `url` and `path`."},
    )
    finer_vision: str | None = field(default=None, metadata=FINER_VISION_HELP)


@dataclass
class SubCaptionArguments:
    """The captions of an image, see `SubCaptions`."""

    captions_per_image: int = field(default=7, metadata={"help": "K, the raw caption included."})
    sampler: str = field(
        default="default",
        metadata={"help": "'default' (raw caption first), 'paper', or 'released' with its defects."},
    )
    merged_sentences: int = field(default=1, metadata={"help": "Sentences in a row that make one caption."})
    sources: list[str] = field(default_factory=lambda: list(SOURCES), metadata={"help": "Captioners: IB, SV, LLA."})
    lengths: list[str] = field(default_factory=lambda: list(LENGTHS), metadata={"help": "Their 'short', 'long' ones."})
    min_chars: int = field(default=0, metadata={"help": "Shorter sentences are dropped."})
    keep_decimals: bool = field(default=False, metadata={"help": "Do not cut numbers like 1.5 at their point."})

    def sampler_of_rows(self) -> SubCaptions:
        """The sampler that the arguments describe."""
        return SubCaptions(**vars(self))


def start_model(
    model_class: type[DualEncoderModel],
    processor_class: type[DualEncoderProcessor],
    args: StartArguments,
    data: PairDataArguments,
    added: tuple[str, ...] = (),
    context: int | None = None,
    **config,
) -> tuple[DualEncoderModel, DualEncoderProcessor]:
    """The model that training starts from, and its processor.

    Args:
        model_class, processor_class: of a variant with CLIP towers.
        args, data: see their fields.
        added: weights that a plain CLIP checkpoint need not have; the projection of patches starts as the visual one.
        context: to how many the text positions of a checkpoint are stretched; None: they stay as they are.
        config: fields of the variant's configuration.

    Raises:
        OSError: `model_name_or_path` is neither a folder nor a Hub id (never random weights).
        ValueError: the checkpoint lacks other weights.
    """
    name = args.model_name_or_path
    if args.finer_vision is not None:
        config["finer_vision"] = FinerVision.read(args.finer_vision).to_dict()
    if name is not None:
        model, missing = load_to_train(model_class, name, added=added, **config)
        if "patch_projection.weight" in missing:  # patches start where the class token is
            model.patch_projection.weight.data.copy_(model.visual_projection.weight)
        stock = AutoProcessor.from_pretrained(name)
        rows = model.config.text_config.max_position_embeddings
        if context not in (None, rows):
            stock.tokenizer.model_max_length = model.extend_context(kept=rows_to_keep(rows, context))
        fit_pictures(stock, model.config)
        return model, processor_class(stock.image_processor, stock.tokenizer)
    if args.tokenizer_name is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
    else:
        context = SIZES.get(args.model_size, SIZES["scene"])["context"]
        texts = itertools.islice(_texts(args, data), TOKENIZER_SAMPLE)
        tokenizer = train_tokenizer(texts, vocab_size=args.vocab_size, context=context)
    model, processor = build_from_nothing(model_class, processor_class, args.model_size, tokenizer, **config)
    if data.dataset == EMBEDDED and not args.caption_files:
        sample = SceneWorld(data.train_split, image_size=picture_side(model.config), length=VISION_SAMPLE)
        start_vision(model, processor, (row["image"] for row in iterate(sample)))
    return model, processor


def kept_scenes(split: str, *, image_size: int, length: int, seed: int) -> IndexedRows:
    """Scenes that are drawn once and kept: the same in every epoch, and most of a short step's time saved."""
    return kept_rows(SceneWorld(split, image_size=image_size, length=length, seed=seed, train=False))


def open_rows(
    args: StartArguments, data: PairDataArguments, image_size: int, seed: int
) -> IndexedRows | IndexedStream:
    """The rows to train on, numbered for seeding; the embedded ones are scenes."""
    if args.caption_files:
        return IndexedRows(_caption_rows(args))
    if data.dataset == EMBEDDED:
        return IndexedRows(SceneWorld(data.train_split, image_size=image_size, length=args.scenes, seed=seed))
    return open_pairs(data)


def build_collator(
    processor: DualEncoderProcessor,
    data: PairDataArguments,
    choose: CaptionChoice,
    *,
    start: StartArguments | None = None,
    seed: int,
    report: DataReport,
    **kwargs,
) -> ContrastiveCollator:
    """The collator that the arguments describe; `start` says where captions come from, if not from `data`."""
    side = dict(processor.image_processor.crop_size)["height"]
    texts = partial(_texts, start or StartArguments(), data)
    augment = None if data.image_augmentation == "none" else image_augmentation(data.image_augmentation, size=side)
    return ContrastiveCollator(
        processor,
        choose=choose,
        augment_image=augment,
        augment_text=RandomWordDeletion(data.word_deletion) if data.word_deletion else None,
        equal_texts_are_positive=data.equal_texts_are_positive,
        seed=seed,
        on_bad_row=data.on_bad_row,
        report=report,
        hard_negatives=hard_negatives_of(data, texts),
        **kwargs,
    )


def open_evaluators(
    args: StartArguments, data: PairDataArguments, of_scenes: Callable, image_size: int, batch_size: int
) -> list:
    """What is run at each evaluation; `of_scenes` makes the evaluators of the embedded scenes."""
    if data.dataset == EMBEDDED and data.eval_dataset is None and not args.caption_files:
        return list(of_scenes(data.eval_split or "validation", image_size=image_size, batch_size=batch_size))
    return open_retrieval(data, batch_size)


def scene_texts(split: str) -> Iterator[str]:
    """Titles and sentences of some scenes, and the sentences that are true of all: texts for a tokenizer."""
    for row in iterate(SceneWorld(split, image_size=48, length=TOKENIZER_SCENES)):
        yield from (row["caption"], *row["sentences"])
    yield from PREAMBLE


def _caption_rows(args: StartArguments):
    if args.images is None:
        raise ValueError("--caption_files hold no pictures: give --images, a folder or a table with `url` and `path`.")
    images = args.images if Path(args.images).is_dir() else image_table(args.images)
    report = long_caption_report()
    rows = read_long_captions(args.caption_files, images, report=report)
    print(f"{len(rows):,} rows with a picture and a caption. {report.summary()}")
    return rows


def _texts(args: StartArguments, data: PairDataArguments) -> Iterator[str]:
    if args.caption_files:
        rows = _caption_rows(args).remove_columns("image")
    elif data.dataset == EMBEDDED:
        return scene_texts(data.train_split)
    else:
        return captions_of(plain_rows(data))
    return (text for row in rows for text in _strings(row))


def _strings(row: dict[str, Any]) -> Iterator[str]:
    for value in row.values():
        yield from filter(None, [value] if isinstance(value, str) else value or ())
