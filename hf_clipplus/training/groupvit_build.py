"""What the GroupViT example shares with its comparison: sizes, rows, collator, evaluators and the starting model."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from hf_clipplus.data.clipart import CLASS_NAMES as CLIPART_CLASSES
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.nouns import (
    TEMPLATES,
    NounPromptCollator,
    find_tagger,
    nltk_tagger,
    refuse_hard_negatives,
    spacy_tagger,
)
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.scene_pairs import ScenePairs
from hf_clipplus.data.segmentation_sources import read_coco_object, read_context, read_voc
from hf_clipplus.data.sources import IndexedRows, IndexedStream, iterate, load_pairs
from hf_clipplus.evaluation.segmentation import ZeroShotSegmentation, scene_segmentation
from hf_clipplus.models.groupvit.configuration_groupvit import GroupViTPlusConfig
from hf_clipplus.models.groupvit.convert_groupvit import groupvit_from_transformers
from hf_clipplus.models.groupvit.modeling_groupvit import GroupViTPlusModel
from hf_clipplus.models.groupvit.presets_groupvit import CLASS_NAMES, class_prompts
from hf_clipplus.models.groupvit.processing_groupvit import GroupViTPlusProcessor

from .arguments import PairDataArguments
from .build import EMBEDDED, TOKENIZER_SAMPLE, captions_of, open_pairs
from .scratch import train_tokenizer, whiten_patches
from .start import load_to_train

# Fields of the two configurations, and the context; "tiny-vit" has the blocks of "tiny", not grouped. The published
# standard deviation of 0.02 is for a width of 384; at 128 it leaves the assignment undecided all through a short run.
_TINY_TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
_TINY = {"hidden_size": 128, "num_attention_heads": 4, "image_size": 64, "patch_size": 8, "drop_path_rate": 0.0}
_TINY |= {"initializer_range": 0.08}
_TINY_JOINT = {"projection_dim": 128, "projection_intermediate_dim": 512}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision": _TINY | {"depths": (1, 1), "num_group_tokens": (8, 0), "num_output_groups": (8,)},
        "text": _TINY_TEXT,
        "joint": _TINY_JOINT,
        "context": 32,
    },
    "tiny-2-stage": {
        "vision": _TINY | {"depths": (1, 1, 1), "num_group_tokens": (16, 8, 0), "num_output_groups": (16, 8)},
        "text": _TINY_TEXT,
        "joint": _TINY_JOINT,
        "context": 32,
    },
    "tiny-vit": {
        "vision": _TINY | {"depths": (2,), "num_group_tokens": (0,), "num_output_groups": ()},
        "text": _TINY_TEXT,
        "joint": _TINY_JOINT,
        "context": 32,
    },
    "released": {"vision": {}, "text": {}, "joint": {}, "context": 77},
}
TRAINING_OBJECTS = (1, 3)  # of an embedded scene; the tests have 2 to 5
FITTED_SCENES = 400  # from which the first layer starts
SEGMENTATION_READERS = {"voc": read_voc, "context": read_context, "coco": read_coco_object}
TAGGERS = {"auto": find_tagger, "nltk": nltk_tagger, "spacy": spacy_tagger}


@dataclass
class GroupViTModelArguments:
    """Where the model starts from, and the settings of GroupViT."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Start from this GroupViT-plus or transformers groupvit checkpoint; None starts from nothing."
        },
    )
    model_size: str = field(
        default="tiny", metadata={"help": f"Size of a model that starts from nothing: {', '.join(SIZES)}."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of a model that starts from nothing; None trains one on the captions."},
    )
    vocab_size: int = field(default=1500, metadata={"help": "Entries of a tokenizer trained on the captions."})
    prompts_per_image: int = field(default=3, metadata={"help": "Noun prompts of an image; 0: captions alone."})
    word_kind: str = field(
        default="published",
        metadata={"help": "Words of prompts: 'published' (nouns, verbs), 'nouns' (the paper) or 'noun_phrases'."},
    )
    tagger: str = field(
        default="auto",
        metadata={
            "help": "What finds the words, where rows have no column `nouns` or `tags`: 'nltk', 'spacy', or 'auto'."
        },
    )
    hard_assignment: bool = field(default=True, metadata={"help": "One group per token; False: soft, without noise."})
    share_temperature: bool = field(default=False, metadata={"help": "One scale for both losses (the paper)."})
    multi_label_form: str = field(default="mean_of_logs", metadata={"help": "Or 'log_of_sum' (the paper)."})
    scenes: int = field(default=4000, metadata={"help": "Embedded scenes of an epoch; other ones each epoch."})
    eval_segmentation: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets to segment at each evaluation, kind=folder with kind voc, context or coco."},
    )

    def config(self) -> dict[str, Any]:
        """Fields of `GroupViTPlusConfig`."""
        names = ("prompts_per_image", "share_temperature", "multi_label_form")
        return {name: getattr(self, name) for name in names}

    def vision(self) -> dict[str, Any]:
        """Fields of `GroupViTPlusVisionConfig`."""
        return {} if self.hard_assignment else {"hard_assignment": False, "assign_gumbel": False}


def build_groupvit(
    size: str, tokenizer, *, vision: dict | None = None, **config
) -> tuple[GroupViTPlusModel, GroupViTPlusProcessor]:
    """A randomly initialised model of a named size and its processor.

    Args:
        size: a key of `SIZES`.
        tokenizer: its ids, end token and context length go into the configuration.
        vision, config: further fields of the vision and the whole configuration.

    Raises:
        ValueError: unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown: choose one of {', '.join(SIZES)}.")
    facts = SIZES[size]
    base = GroupViTPlusConfig().text_config.to_dict()
    text = base | facts["text"] | {"vocab_size": len(tokenizer), "max_position_embeddings": facts["context"]}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    found = GroupViTPlusConfig(
        text_config=text, vision_config=facts["vision"] | (vision or {}), **facts["joint"] | config
    )
    model = GroupViTPlusModel(found)
    return model, GroupViTPlusProcessor.from_tokenizer(tokenizer, image_size=found.vision_config.image_size)


def build_model(
    args: GroupViTModelArguments, data: PairDataArguments
) -> tuple[GroupViTPlusModel, GroupViTPlusProcessor]:
    """The starting model and its processor.

    Raises:
        OSError: `model_name_or_path` is neither a folder nor a Hub id (never random weights).
        ValueError: the checkpoint lacks weights, or is of another kind.
    """
    name = args.model_name_or_path
    if name is None:
        if args.tokenizer_name is not None:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
        else:
            context = SIZES.get(args.model_size, SIZES["tiny"])["context"]
            tokenizer = train_tokenizer(_texts(data), vocab_size=args.vocab_size, context=context)
        model, processor = build_groupvit(args.model_size, tokenizer, vision=args.vision(), **args.config())
        if data.dataset == EMBEDDED:
            side = model.config.vision_config.image_size
            sample = SceneWorld(data.train_split, image_size=side, length=FITTED_SCENES, objects=TRAINING_OBJECTS)
            whiten_patches(model, processor, (row["image"] for row in iterate(sample)))
        return model, processor
    if AutoConfig.from_pretrained(name).model_type == "groupvit":
        model = groupvit_from_transformers(name, **args.config())[0].float()
    else:
        model, _ = load_to_train(GroupViTPlusModel, name, added=("multi_label_logit_scale",), **args.config())
    stock, side = AutoProcessor.from_pretrained(name), model.config.vision_config.image_size
    return model, GroupViTPlusProcessor.from_tokenizer(stock.tokenizer, image_size=side)


def open_training_rows(
    args: GroupViTModelArguments, data: PairDataArguments, image_size: int, seed: int
) -> IndexedRows | IndexedStream:
    """The rows to train on, numbered for seeding; the embedded ones are scenes."""
    if data.dataset == EMBEDDED:
        world = SceneWorld(
            data.train_split, image_size=image_size, length=args.scenes, objects=TRAINING_OBJECTS, seed=seed
        )
        return IndexedRows(ScenePairs(world))
    return open_pairs(data)


def build_collator(
    processor: GroupViTPlusProcessor,
    args: GroupViTModelArguments,
    data: PairDataArguments,
    *,
    seed: int,
    report: DataReport,
) -> NounPromptCollator:
    """The collator that the arguments describe; it looks for a tagger only where rows bring no nouns."""
    if args.tagger not in TAGGERS:
        raise ValueError(f"tagger {args.tagger!r} is unknown: choose one of {', '.join(TAGGERS)}.")
    refuse_hard_negatives(data.hard_negatives)
    needs_tagger = args.prompts_per_image and data.dataset != EMBEDDED
    side = dict(processor.image_processor.crop_size)["height"]
    augment = None if data.image_augmentation == "none" else image_augmentation(data.image_augmentation, size=side)
    return NounPromptCollator(
        processor,
        prompts=args.prompts_per_image,
        tagger=TAGGERS[args.tagger]() if needs_tagger else None,
        word_kind=args.word_kind,
        mode="raw" if data.caption_mode == "all" else data.caption_mode,
        augment_image=augment,
        seed=seed,
        on_bad_row=data.on_bad_row,
        report=report,
    )


def open_evaluators(
    args: GroupViTModelArguments, data: PairDataArguments, image_size: int
) -> list[ZeroShotSegmentation]:
    """What is segmented at each evaluation.

    Raises:
        ValueError: an entry of `eval_segmentation` is not kind=folder.
    """
    found = []
    for entry in args.eval_segmentation:
        kind, _, folder = entry.partition("=")
        if kind not in SEGMENTATION_READERS or not Path(folder).is_dir():
            raise ValueError(
                f"eval_segmentation {entry!r}: expected kind=folder, with kind one of {sorted(SEGMENTATION_READERS)}."
            )
        rows = SEGMENTATION_READERS[kind](folder)
        found.append(ZeroShotSegmentation(rows, CLASS_NAMES[kind], background=kind, name=kind))
    if data.dataset == EMBEDDED:
        found.append(scene_segmentation(data.eval_split or "validation", image_size=image_size))
    return found


def _texts(data: PairDataArguments):
    """Texts for a tokenizer: captions, and prompts of the embedded classes."""
    if data.dataset != EMBEDDED:
        rows = load_pairs(data.dataset, split=data.train_split, streaming=data.streaming, **data.columns())
        return itertools.islice(captions_of(rows.select_columns(["caption"])), TOKENIZER_SAMPLE)
    world = SceneWorld(data.train_split, image_size=48, length=500)
    captions = (row["caption"] for row in iterate(ScenePairs(world)))
    prompts = itertools.chain.from_iterable(class_prompts(CLIPART_CLASSES, TEMPLATES))
    return itertools.chain(captions, prompts)
