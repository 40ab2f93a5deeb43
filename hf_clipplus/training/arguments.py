"""Arguments of contrastive training, and how a script reads them: a YAML file, the command line, or both."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments

from hf_clipplus.data.hard_negatives import KINDS

from .enhancements import EnhancementArguments

LR_SCHEDULES = ("groupvit", "open_clip")


@dataclass
class ContrastiveTrainingArguments(TrainingArguments, EnhancementArguments):
    """`TrainingArguments` with the settings of `ContrastiveTrainer`."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: the collator needs the raw columns of the data set."}
    )
    gradient_cache_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Encode this many images, and captions, at a time and still get the gradients of the whole batch "
            "(one more forward pass). None: encode the batch at once."
        },
    )
    max_logit_scale: float = field(
        default=100.0, metadata={"help": "Upper limit of the inverse temperature exp(logit_scale); the lower is 1."}
    )
    decay_scales: bool = field(
        default=False,
        metadata={"help": "Weight decay on 0-D parameters (the log scales) too, as in GroupViT's published recipe."},
    )
    lr_schedule: str | None = field(
        default=None,
        metadata={
            "help": "'groupvit': the published one, a cosine over all steps whose first warmup_steps are replaced by "
            "a linear warm-up, ending at 1/40 of learning_rate. 'open_clip': linear warm-up, then half a cosine to 0. "
            "None: lr_scheduler_type."
        },
    )
    bias_init: str = field(
        default="auto",
        metadata={
            "help": "Where the bias of the sigmoid loss starts: 'config' takes the model's (-10), 'auto' measures the "
            "mean cosine and the share of positives on a few batches and makes the mean pair as likely as that share."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        EnhancementArguments.__post_init__(self)
        if self.lr_schedule not in (None, *LR_SCHEDULES):
            raise ValueError(f"lr_schedule={self.lr_schedule!r} is unknown: choose one of {LR_SCHEDULES} or none.")


@dataclass
class EpochTrainingArguments(ContrastiveTrainingArguments):
    """What the examples of contrastive training share: evaluation and a checkpoint after each epoch."""

    per_device_train_batch_size: int = 64
    warmup_steps: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    logging_steps: float = 10
    dataloader_drop_last: bool = True


def parse_arguments(dataclasses: Sequence[type], description: str, argv: Sequence[str] | None = None) -> tuple:
    """Read dataclasses from `--config file.yaml` and the command line; what stands on the command line wins.

    Args:
        dataclasses: types whose fields have `metadata={"help": ...}`.
        description: first lines of `--help`.
        argv: arguments without the program's name; `sys.argv[1:]` when None.

    Returns:
        One instance per dataclass.

    Raises:
        SystemExit: unknown or malformed arguments, with the usage on stderr.
    """
    # no abbreviations: one of --config would pass unread, and a typo should not count as one
    parser = HfArgumentParser(dataclasses, description=description, allow_abbrev=False)
    parser.add_argument("--config", help="YAML file with any of these arguments (name: value).")
    finder = ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    given, argv = finder.parse_known_args(sys.argv[1:] if argv is None else argv)
    if given.config is not None:
        argv = _read_config(given.config, parser) + argv
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments {' '.join(unknown)}; --help lists those that exist.")
    return tuple(parsed[: len(dataclasses)])


def _read_config(path: str, parser: HfArgumentParser) -> list[str]:
    """The arguments of a YAML file as they would stand on the command line."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path}: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {path}: expected lines `name: value`, got a {type(values).__name__}.")
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        parser.error(f"{path}: unknown arguments {', '.join(unknown)}; --help lists those that exist.")
    argv = []
    for key, value in values.items():
        if value is None and known[key].default is not None:
            parser.error(f"{path}: {key} has no value; leave it out to get {known[key].default!r}.")
        if isinstance(value, list):
            argv += [f"--{key}", *map(str, value)]
        elif value is not None:
            argv.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return argv


FINER_VISION_HELP = {
    "help": "JSON of the scales and crops at which the model looks at pictures, such as '{\"scales\": [1, 2]}', see "
    "models.configuration_finer_vision.FinerVision; the checkpoint's when left out."
}


@dataclass
class PairDataArguments:
    """Where images and captions come from."""

    dataset: str = field(
        default="openclipart",
        metadata={
            "help": "Hub data set id, folder of images with metadata.jsonl/csv, parquet file or glob, webdataset "
            "shards ('shards/*.tar'), or 'openclipart' (the embedded drawings)."
        },
    )
    train_split: str = field(
        default="train", metadata={"help": "Split to train on; the embedded drawings also know 'train+validation'."}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Data set for retrieval as it goes; None takes `eval_split` of `dataset`."}
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; None evaluates the embedded drawings' validation only."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the image; None finds it by name."})
    caption_column: str | None = field(default=None, metadata={"help": "Column of the raw caption; None finds it."})
    pseudo_captions_column: str | None = field(
        default=None, metadata={"help": "Column of the list of pseudo-captions; None finds it."}
    )
    image_id_column: str | None = field(default=None, metadata={"help": "Column of ids: equal id, same picture."})
    caption_id_column: str | None = field(default=None, metadata={"help": "Column of ids: equal id, same text."})
    mining_image_feature_column: str | None = field(
        default=None, metadata={"help": "Column of precomputed image features that positives are mined from."}
    )
    mining_text_feature_column: str | None = field(
        default=None, metadata={"help": "Column of precomputed features of the captions, raw one first."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data set while training, without a local copy."}
    )
    caption_mode: str = field(
        default="all",
        metadata={
            "help": "Captions of an image in a batch: 'all' (raw and pseudo), 'sample_one' of them, or 'raw' only."
        },
    )
    equal_texts_are_positive: bool = field(
        default=False, metadata={"help": "A caption that stands under two images of a batch is positive for both."}
    )
    image_augmentation: str = field(
        default="none",
        metadata={
            "help": "'none', 'fff' (crop and flip), 'strong' (also colour, blur, rotation), 'groupvit' or 'dreamlip'."
        },
    )
    word_deletion: float = field(
        default=0.0, metadata={"help": "Share of words that are left out of each caption at random."}
    )
    hard_negatives: int = field(
        default=0, metadata={"help": "False captions of each image, made of its captions, that are negatives for all."}
    )
    hard_negative_kinds: list[str] = field(
        default_factory=lambda: list(KINDS),
        metadata={"help": f"What may be changed in them: {', '.join(KINDS)}."},
    )
    hard_negative_objects: list[str] = field(
        default_factory=list,
        metadata={"help": "Nouns that exclude each other, for the kind 'object'; embedded scenes bring their own."},
    )
    on_bad_row: str = field(
        default="skip", metadata={"help": "'skip' counts unreadable images and rows without captions; 'raise' stops."}
    )

    def columns(self) -> dict[str, str | None]:
        """Names of columns as `load_pairs` takes them."""
        return {name: value for name, value in vars(self).items() if name.endswith("_column")}
