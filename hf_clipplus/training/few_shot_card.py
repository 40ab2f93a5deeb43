"""Saves a few-shot head with its processor and a card that says what it is, how it was chosen and what it scored."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, HfApi, ModelCardData
from peft import PeftModel

from hf_clipplus.models.ape import APEForImageClassification

from .card import is_hub_id
from .few_shot_compare import TITLES, HeadResult


def save_few_shot(
    model: Any,
    base: APEForImageClassification,
    processor: Any,
    folder: Path,
    result: HeadResult,
    *,
    dataset: str,
    template: str,
) -> None:
    """Write model (an adapter and its base for APE-T), processor and `README.md`.

    Args:
        model: of `compare_heads`.
        base: the zero-shot model; saved in `folder/base` for an adapter.
        processor: saved beside the model.
        folder: is made.
        result: the row of the table.
        dataset: name for the card.
        template: text of the card with fields in braces, see `model_cards/ape.md`.
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
    report = (model.peft_config["default"] if adapter else config).fit_report or {}
    facts = _card_facts(folder.name, result, dataset, list(config.id2label.values()), report, how, adapter, base)
    (folder / "README.md").write_text(template.format(**facts), encoding="utf-8")


def push_few_shot(folder: str | Path, hub_model_id: str, *, private: bool | None = None) -> None:
    """Upload what `save_few_shot` wrote, one commit per repository.

    The base of an APE-T adapter goes to `<hub_model_id>-base`, which the adapter then names as its base.
    """
    folder, base_id = Path(folder), f"{hub_model_id}-base"
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "model"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("base"))
        if (folder / "base").is_dir():
            _upload(folder / "base", base_id, private)
            file = copy / "adapter_config.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**config, "base_model_name_or_path": base_id}, indent=2), encoding="utf-8")
        card = copy / "README.md"
        text = card.read_text(encoding="utf-8").replace(f'"{folder.name}/base"', f'"{base_id}"')
        card.write_text(text.replace(f'"{folder.name}"', f'"{hub_model_id}"'), encoding="utf-8")
        _upload(copy, hub_model_id, private)


def _upload(folder: Path, repo_id: str, private: bool | None) -> None:
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a few-shot classifier")


def _card_facts(
    name: str,
    result: HeadResult,
    dataset: str,
    names: list[str],
    report: dict[str, Any],
    how: str,
    adapter: bool,
    base: APEForImageClassification,
) -> dict[str, Any]:
    """The fields of the card's template."""
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
    return {
        "metadata": metadata.to_yaml(),
        "name": name,
        "title": TITLES[result.head],
        "classes": len(names),
        "shots": "-".join(map(str, sorted(set(report["shots"])))) if "shots" in report else "few",
        "how": how,
        "accuracy": result.accuracy,
        "protocol": result.protocol,
        "validation": "not chosen" if result.validation_accuracy is None else f"{result.validation_accuracy:.4f}",
        "alpha": result.alpha,
        "beta": result.beta,
        "trained": result.trained,
        "stored": result.stored,
        "prompts": report.get("prompts_sha256", "not made here"),
        "warnings": warnings,
        "names": ", ".join(names),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
