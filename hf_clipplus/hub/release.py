"""What upload_scripts/ share: write the repository of a model, check that it is what was meant, push it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_clipplus.evaluation.results import Results
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.training.card import variant_of
from hf_clipplus.training.publish import check_publishable, files_of

from . import handler
from .loading import load_from_zoo
from .repository import Push, push, write_repository

TEXTS = ["a photo of a cat", "two boats on the water"]
TOLERANCE = 1e-4


@dataclass
class ReleaseArguments:
    """What goes where."""

    source: str = field(metadata={"help": "Trained folder or Hub id, or a published checkpoint to convert."})
    repo_id: str = field(metadata={"help": "Where to: owner/name."})
    license: str = field(metadata={"help": "Licence of the weights, as the Hub writes it, e.g. cc-by-4.0 or other."})
    results: str | None = field(default=None, metadata={"help": "Results file of examples/evaluate.py."})
    processor: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of image processor and tokenizer, where the source has none."},
    )
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch; made if it is not there."})
    bundle: bool = field(default=True, metadata={"help": "Add the code, for machines without hf_clipplus."})
    handler: bool = field(default=True, metadata={"help": "Add handler.py for an Inference Endpoint (needs bundle)."})
    dry_run: bool = field(default=False, metadata={"help": "Convert and check, but push nothing."})


def release_source(args: ReleaseArguments, convert: Callable[[str], tuple], processor_class: type) -> Push:
    """Push what `args.source` is: a published file, which is converted, or a trained folder (or a Hub id of one).

    Args:
        args: see `ReleaseArguments`.
        convert: path -> model and report.
        processor_class: of the variant; reads `args.processor` for a file.

    Raises:
        ValueError: a file without `args.processor`, or see `release`.
    """
    if not Path(args.source).is_file():
        return release(*load_from_zoo(args.source), args)
    if args.processor is None:
        raise ValueError(f"the file {Path(args.source).name} has no processor: say --processor.")
    model, report = convert(args.source)
    print(report)
    return release(model.eval(), processor_class.from_pretrained(args.processor), args)


def release(
    model: PreTrainedModel,
    processor: Any,
    args: ReleaseArguments,
    reference: nn.Module | None = None,
) -> Push:
    """Check a model and push it.

    Args:
        model, processor: of the zoo.
        args: see `ReleaseArguments`.
        reference: another implementation of the same model, whose features must be the same.

    Raises:
        ValueError: a check failed; nothing was pushed.
    """
    options = {
        "results": None if args.results is None else Results.from_json(args.results),
        "bundle": args.bundle,
        "handler_task": _served_task(model) if args.handler and args.bundle else None,
        "license": args.license,
    }
    if reference is not None:
        check_features(model, reference, processor)
    with TemporaryDirectory() as folder:
        write_repository(model, processor, folder, args.repo_id, **options)
        check_repository(Path(folder), model, processor)
    where = {"private": args.private or None, "revision": args.revision, "dry_run": args.dry_run}
    return push(model, processor, args.repo_id, **where, **options)


def check_repository(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    """Load a written repository as a stranger would, and compare it with what was to be written.

    Raises:
        ValueError: a weight, an output or a prepared input differs, the card has no valid head, or a file does not
            belong there.
    """
    check_publishable(files_of(folder))
    found, found_processor = load_from_zoo(str(folder))
    expected, got = model.state_dict(), found.state_dict()
    wrong = [name for name in expected if name not in got or not torch.equal(expected[name], got[name])]
    if wrong or expected.keys() != got.keys():
        raise ValueError(f"weights are not what was saved: {wrong or sorted(got.keys() - expected.keys())}.")
    for name, (one, other) in _paired(_outputs(model, processor), _outputs(found, found_processor)).items():
        if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE):
            raise ValueError(f"{name} differs by {(one - other).abs().max():g} after loading.")
    card = ModelCard.load(folder / "README.md")
    missing = [name for name in ("license", "pipeline_tag", "library_name") if getattr(card.data, name) is None]
    if missing:
        raise ValueError(f"the card does not say {', '.join(missing)}.")


def check_features(model: PreTrainedModel, reference: nn.Module, processor: Any) -> None:
    """Compare the embeddings of a picture and of texts with another implementation's.

    Raises:
        ValueError: they differ by more than 1e-4.
    """
    inputs = processor(images=[_picture()], text=TEXTS, return_tensors="pt")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with evaluation_mode(model), evaluation_mode(reference):
        for name, features in (
            ("image", lambda each: each.get_image_features(inputs["pixel_values"])),
            ("text", lambda each: each.get_text_features(**text)),
        ):
            one, other = (_unit(features(each).pooler_output) for each in (model, reference))
            if not torch.allclose(one, other, atol=TOLERANCE):
                raise ValueError(f"{name} features differ from the reference by {(one - other).abs().max():g}.")


def _served_task(model: PreTrainedModel) -> str | None:
    """The variant's first task that `handler.py` knows."""
    return next((task for task in variant_of(model).tasks if task in handler.PARAMETERS), None)


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)


def _outputs(model: PreTrainedModel, processor: Any) -> dict[str, Tensor]:
    """Prepared inputs and outputs of a fixed sample, by name."""
    if getattr(model, "support", model) is None:
        return _episode_outputs(model, processor)
    sample = {
        "image": {"images": [_picture()]},
        "text": {"text": TEXTS},
        "video": {"videos": [np.stack([_picture()] * 8)]},
    }
    given = {name: value for kind in model.input_modalities for name, value in sample[kind].items()}
    inputs = processor(**given, return_tensors="pt")
    with evaluation_mode(model):
        outputs = model(**inputs)
    found = {**inputs, **outputs}
    return {name: value.float() for name, value in found.items() if isinstance(value, Tensor)}


def _episode_outputs(model: PreTrainedModel, processor: Any) -> dict[str, Tensor]:
    """The same of a few-shot video model without a support set: one video is support, and asked for."""
    inputs = processor(videos=[np.stack([_picture()] * 8)], text=processor.class_texts(TEXTS[:1]), return_tensors="pt")
    pixels, label = inputs["pixel_values"], torch.zeros(1, dtype=torch.int64)
    episode = {"support_pixel_values": pixels, "query_pixel_values": pixels, "support_labels": label}
    episode |= {"support_class_ids": label, "class_input_ids": inputs["input_ids"]}
    with evaluation_mode(model):
        outputs = model(**episode, class_attention_mask=inputs["attention_mask"])
    return {name: value.float() for name, value in {**inputs, **outputs}.items() if isinstance(value, Tensor)}


def _paired(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    if one.keys() != other.keys():
        raise ValueError(f"outputs {sorted(one.keys() ^ other.keys())} are only on one side after loading.")
    return {name: (one[name], other[name]) for name in one}


def _picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8))
