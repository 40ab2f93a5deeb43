"""Evaluates any CLIP-like model on what the arguments name: zero-shot classification and retrieval, as results."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch

from hf_clipplus.data.sources import load_pairs

from .attacked import PixelAttack
from .clipart import clipart_evaluators
from .loading import load_dual_encoder
from .results import Results, describe_hardware
from .retrieval import RetrievalEvaluator
from .zero_shot import CLASS_NAMES_FILE, DEFAULT_TEMPLATES, ZeroShotClassification, read_class_texts

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class EvaluationArguments:
    """What is evaluated on what."""

    model: str = field(metadata={"help": "Folder written by save_pretrained, or Hub id."})
    classification: str = field(
        default="clipart",
        metadata={"help": "Folder of class folders, parquet file or Hub id with a label column; 'clipart'; 'none'."},
    )
    retrieval: str = field(
        default="clipart",
        metadata={"help": "Folder, parquet file or Hub id with captions; 'clipart' (the embedded drawings); 'none'."},
    )
    split: str = field(default="test", metadata={"help": "Split of the data sets."})
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes: ClassLabel or names."})
    caption_column: str | None = field(
        default=None, metadata={"help": "Column of one caption per image; None takes all text columns that are found."}
    )
    captions_column: str | None = field(
        default=None, metadata={"help": "Column of a list of captions per image; None: see caption_column."}
    )
    image_size: int = field(default=64, metadata={"help": "Side in pixels at which embedded drawings are made."})
    batch_size: int = field(default=64, metadata={"help": "Images and texts per forward pass."})
    attack_radius: float | None = field(
        default=None,
        metadata={"help": "Classification also of images attacked within so many grey levels of 255; None: not."},
    )
    autocast: str = field(default="float32", metadata={"help": f"Precision of the forward pass: {', '.join(DTYPES)}."})
    finer_vision: str | None = field(
        default=None,
        metadata={
            "help": "JSON of the scales and crops at which pictures are looked at, such as '{\"scales\": [1, 2]}', "
            "with the weights as they are, see models.configuration_finer_vision.FinerVision. Embedded drawings are "
            "made at --image_size: choose it large enough."
        },
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps; None takes the GPU if there is one."})
    output: str = field(
        default="results.json", metadata={"help": "Results file; new results are added to an existing one."}
    )


def open_labelled(args: EvaluationArguments) -> datasets.Dataset:
    """The rows of a classification data set, images not decoded."""
    source = Path(args.classification)
    if source.suffix == ".parquet":
        rows = datasets.load_dataset("parquet", data_files={args.split: str(source)}, split=args.split)
    elif source.is_dir():
        rows = datasets.load_dataset("imagefolder", data_dir=str(source), split=args.split)
    else:
        rows = datasets.load_dataset(args.classification, split=args.split)
    return rows.cast_column(args.image_column, datasets.Image(decode=False))


def build_evaluators(args: EvaluationArguments) -> list[tuple[str, str, object]]:
    """(data set, protocol, evaluator) of everything that was asked for."""
    options = {"batch_size": args.batch_size, "autocast_dtype": DTYPES[args.autocast], "progress": True}
    embedded = "clipart" in (args.classification, args.retrieval)
    attack = None if args.attack_radius is None else PixelAttack(args.attack_radius)
    clipart = (None, None)
    if embedded:
        clipart = clipart_evaluators(args.split, image_size=args.image_size, attack=attack, **options)
    classification, retrieval = clipart[:2]

    names, templates = None, DEFAULT_TEMPLATES
    if args.classification not in ("clipart", "none"):
        if (Path(args.classification) / CLASS_NAMES_FILE).is_file():
            names, templates = read_class_texts(args.classification)
        columns = {"image_column": args.image_column, "label_column": args.label_column}
        classification = ZeroShotClassification(
            open_labelled(args), names, templates, attack=attack, **columns, **options
        )
    if args.retrieval not in ("clipart", "none"):
        named = {"caption": args.caption_column, "pseudo_captions": args.captions_column}
        columns = {"caption_column": named["caption"], "pseudo_captions_column": named["pseudo_captions"]}
        rows = load_pairs(args.retrieval, split=args.split, image_column=args.image_column, **columns)
        texts = [key for key in named if named[key]] or [key for key in named if key in rows.column_names]
        retrieval = RetrievalEvaluator(rows, texts, **options)

    size = f"{args.image_size} px"
    wanted = []
    if args.classification != "none":
        protocol = f"{len(classification.templates)} templates"
        protocol += f", {size}" if args.classification == "clipart" else ""
        wanted.append((args.classification, protocol, classification))
    if args.retrieval != "none":
        protocol = f"{len(retrieval.images)} images, {len(retrieval.captions)} captions"
        protocol += f", {size}" if args.retrieval == "clipart" else ""
        wanted.append((args.retrieval, protocol, retrieval))
    return wanted


def evaluate(args: EvaluationArguments, command: str) -> Results:
    """Run everything that was asked for, and add the numbers to `args.output`.

    Args:
        args: what is evaluated on what.
        command: what reproduces it; is kept with every number.

    Raises:
        ValueError: an unknown precision, or see `load_dual_encoder`.
    """
    if args.autocast not in DTYPES:
        raise ValueError(f"autocast {args.autocast!r} is unknown: choose one of {', '.join(DTYPES)}")
    output = Path(args.output)
    results = Results.from_json(output) if output.exists() else Results()
    model, processor = load_dual_encoder(args.model, device=args.device, finer_vision=args.finer_vision)
    looks = "" if args.finer_vision is None else f", finer vision {args.finer_vision}"
    facts = {"model": args.model, "split": args.split, "command": command, "hardware": describe_hardware()}
    for dataset, protocol, evaluator in build_evaluators(args):
        for metric, value in evaluator(model, processor).items():
            results.add(metric, value, task=evaluator.task, dataset=dataset, protocol=protocol + looks, **facts)
    results.to_json(output)
    return results
