"""The card of a trained model, written from what the trainer saw."""

import os
import re
import sys
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCardData
from transformers import Trainer
from transformers.trainer_utils import has_length

from hf_clipplus.catalogue import VARIANTS

TEMPLATE = """---
{metadata}
---

# {name}

A `{model}` with {parameters:,} parameters, trained with the library hf_clipplus.
This card was written by the trainer from what it saw; nobody has checked it.

## Use

```python
{use}
```

## Training

Data: {data}. Steps: {steps}.

{hyperparameters}

## Evaluation

{metrics}

## Versions

{versions}
"""
USES = {
    "zero-shot-image-classification": """import hf_clipplus  # makes the model known to the Auto classes
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained("{repo}")
processor = AutoProcessor.from_pretrained("{repo}")
classify = pipeline("zero-shot-image-classification", model="{repo}")""",
    "video-classification": """import hf_clipplus  # makes the model known to the Auto classes
from transformers import pipeline

classify = pipeline("clipplus-few-shot-video-classification", model="{repo}")
classify("new.mp4", support={{"pour": ["a.mp4", "b.mp4"], "fold": ["c.mp4"]}})
classify.model.save_pretrained("pour-or-fold")  # with its support set
classify.processor.save_pretrained("pour-or-fold")""",
}
SPEEDS = ("_runtime", "_per_second")


def write_card(trainer: Trainer, name: str, dataset: str | None = None, **metadata: Any) -> None:
    """Write `README.md` into the trainer's `output_dir`.

    Args:
        trainer: after training; its arguments, its log and its data set are read.
        name: title.
        dataset: Hub id or another name of the training data; of a path only the last part is told.
        metadata: further fields of `ModelCardData` (`license`, `language`, `tags`, ...).
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    data, base = dataset and os.path.basename(dataset.rstrip("/")), model.config.name_or_path
    if is_hub_id(dataset):
        metadata, data = {"datasets": [dataset], **metadata}, dataset
    if is_hub_id(base):
        metadata = {"base_model": base, **metadata}
    tags = metadata.pop("tags", None) or []
    tags = ["transformers", model.config.model_type, *(getattr(model, "model_tags", None) or []), *tags]
    task, repo = _hub_task(model.config.model_type), trainer.hub_model_id or name
    facts = ModelCardData(
        library_name="hf_clipplus",
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags)),
        **metadata,
    )
    rows = f", {len(trainer.train_dataset):,} rows" if has_length(trainer.train_dataset) else ""
    package = sys.modules["hf_clipplus"]  # a room does not import the package it is part of
    versions = {module.__name__: module.__version__ for module in (package, transformers, torch)}
    text = TEMPLATE.format(
        metadata=facts.to_yaml(),
        name=name,
        model=type(model).__name__,
        parameters=model.num_parameters(),
        use=USES[task].format(repo=repo),
        data=f"{data or 'not named'}{rows}",
        steps=trainer.state.global_step,
        hyperparameters=_bullets(_hyperparameters(trainer)),
        metrics=_table(last_metrics(trainer.state.log_history)),
        versions=_bullets(versions),
    )
    with open(os.path.join(trainer.args.output_dir, "README.md"), "w", encoding="utf-8") as file:
        file.write(text)


def last_metrics(log_history: list[dict[str, float]]) -> dict[str, float]:
    """The last value of each `eval_*` entry of the log and of `train_loss`; how fast it ran is left out."""
    found = {}
    for record in log_history:
        found |= {
            name: value
            for name, value in record.items()
            if name == "train_loss" or (name.startswith("eval_") and not name.endswith(SPEEDS))
        }
    return found


def is_hub_id(name: str | None) -> bool:
    """Whether a name is `owner/name` and no path of this machine."""
    return bool(name) and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not os.path.exists(name)


def _hub_task(model_type: str) -> str:
    """The task of a variant that the Hub knows."""
    tasks = {f"clipplus_{variant.id}": variant.tasks for variant in VARIANTS}.get(model_type, ())
    return next((task for task in tasks if task in USES), "zero-shot-image-classification")


def _hyperparameters(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    global_batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    precision = next((name for name in ("bf16", "fp16") if getattr(args, name)), "fp32")
    names = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
    values = {name: getattr(args, name) for name in (*names, "warmup_steps", "num_train_epochs", "max_steps", "seed")}
    schedule = {"optim": str(args.optim.value), "lr_scheduler_type": str(args.lr_scheduler_type.value)}
    return {"images in a step": global_batch, "processes": args.world_size, "precision": precision} | schedule | values


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _table(metrics: dict[str, float]) -> str:
    if not metrics:
        return "Not evaluated."
    lines = (f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return "\n".join(["| metric | value |", "|---|---|", *lines])
