"""Saves a few-shot head with its processor and a card that says what it is, how it was chosen and what it scored."""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData
from peft import PeftModel

from hf_clipplus.models.ape import APEForImageClassification

from .card import is_hub_id
from .few_shot_compare import TITLES, HeadResult

TEMPLATE = """---
{metadata}
---

# {name}

{title} on frozen CLIP features: {classes} classes, {shots} images per class. Written by the library hf_clipplus from
what it saw; nobody has checked it.

```python
import hf_clipplus  # makes the model known to the Auto classes
from transformers import pipeline

classify = pipeline("image-classification", model={how})
classify("picture.jpg")
```

| fact | value |
| --- | --- |
| test accuracy | {accuracy:.4f} |
| protocol | {protocol} |
| validation accuracy | {validation} |
| alpha, beta | {alpha}, {beta} |
| trained values | {trained:,} |
| values stored beside the text classifier | {stored:,} |
| class texts (sha256) | {prompts} |
{warnings}
The protocol "honest" chooses hyper-parameters on at most four labelled images per class that are neither in the cache
nor in the test set; "paper" chooses on the whole validation split, as the published code does.

Classes: {names}

Versions: {versions}
"""


def save_few_shot(
    model: Any, base: APEForImageClassification, processor: Any, folder: Path, result: HeadResult, dataset: str
) -> None:
    """Write model (an adapter and its base for APE-T), processor and `README.md`.

    Args:
        model: of `compare_heads`.
        base: the zero-shot model; saved in `folder/base` for an adapter.
        processor: saved beside the model.
        folder: is made.
        result: the row of the table.
        dataset: name for the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter = isinstance(model, PeftModel)
    how = f'"{folder.name}"'
    if adapter:
        base.save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
        model.peft_config["default"].base_model_name_or_path = str(folder / "base")
        how = f'AutoModelForImageClassification.from_pretrained("{folder.name}"), image_processor="{folder.name}/base"'
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = base.config if adapter else model.config
    report = config.fit_report or {}
    text = _card(folder.name, result, dataset, list(config.id2label.values()), report, how, adapter, base)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _card(
    name: str,
    result: HeadResult,
    dataset: str,
    names: list[str],
    report: dict[str, Any],
    how: str,
    adapter: bool,
    base: APEForImageClassification,
) -> str:
    source = base.backbone.config.name_or_path
    more = {"base_model": source, "base_model_relation": "adapter"} if is_hub_id(source) else {}
    metadata = ModelCardData(
        library_name="hf_clipplus",
        pipeline_tag="image-classification",
        tags=["transformers", "clipplus_ape", "few-shot", *(["peft"] if adapter else [])],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="_".join(dataset.split()),
                dataset_name=dataset,
                metric_type="accuracy",
                metric_name=f"accuracy ({result.protocol} protocol)",
                metric_value=result.accuracy,
            )
        ],
        **more,
    )
    versions = {each.__name__: each.__version__ for each in (sys.modules["hf_clipplus"], transformers, torch)}
    warnings = "".join(f"| warning | {each} |\n" for each in report.get("warnings", []))
    return TEMPLATE.format(
        metadata=metadata.to_yaml(),
        name=name,
        title=TITLES[result.head],
        classes=len(names),
        shots="-".join(map(str, sorted(set(report["shots"])))) if "shots" in report else "few",
        how=how,
        accuracy=result.accuracy,
        protocol=result.protocol,
        validation="not chosen" if result.validation_accuracy is None else f"{result.validation_accuracy:.4f}",
        alpha=result.alpha,
        beta=result.beta,
        trained=result.trained,
        stored=result.stored,
        prompts=report.get("prompts_sha256", "not made here"),
        warnings=warnings,
        names=", ".join(names),
        versions=", ".join(f"{key} {value}" for key, value in versions.items()),
    )
