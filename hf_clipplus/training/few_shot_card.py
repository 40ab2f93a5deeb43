"""Saves a few-shot head with its processor, its numbers and a card that says what it is and how it was chosen."""

from pathlib import Path
from typing import Any

from peft import PeftModel

from hf_clipplus.evaluation.results import Results, describe_hardware
from hf_clipplus.models.ape import APEForImageClassification

from .adapter_base import FOLDER, base_id, publish_adapter, save_base
from .card import model_card
from .few_shot_compare import TITLES, HeadResult
from .publish import files_of, publish
from .trainer_card import RESULTS_FILE


def save_few_shot(
    model: Any,
    base: APEForImageClassification,
    processor: Any,
    folder: Path,
    result: HeadResult,
    *,
    dataset: str,
    seed: int,
    repo_id: str | None = None,
) -> None:
    """Write model (an adapter and its base for APE-T), processor, `results.json` and `README.md`.

    Args:
        model: of `compare_heads`.
        base: the zero-shot model; saved in `folder/base` for an adapter.
        processor: saved beside the model.
        folder: is made.
        result: the row of the table.
        dataset: name for the card.
        seed: of the episode.
        repo_id: name under which the card loads the model; the folder's when None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    repo_id = repo_id or folder.name
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = save_base(base, processor, folder, repo_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = _facts(result, model)
    results = Results()
    results.add(
        "accuracy",
        result.accuracy,
        task="image-classification",
        dataset=dataset,
        split="test",
        model=repo_id,
        protocol=f"{result.protocol} protocol, {facts['images per class']} images per class",
        seed=seed,
        hardware=describe_hardware(),
    )
    results.to_json(folder / RESULTS_FILE)
    if isinstance(model, PeftModel):  # the Hub does not know a folder of this machine
        model.peft_config["default"].base_model_name_or_path = base_id(repo_id)
    card = model_card(model, repo_id, results=results, facts={"This classifier": facts})
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def push_few_shot(folder: str | Path, hub_model_id: str, *, private: bool | None = None) -> None:
    """Upload what `save_few_shot` wrote, one commit per repository.

    The base of an APE-T adapter goes to `<hub_model_id>-base`, which the adapter then names as its base.
    """
    folder, options = Path(folder), {"message": "Upload a few-shot classifier", "private": private}
    files = {path: file for path, file in files_of(folder).items() if not path.startswith(f"{FOLDER}/")}
    if (folder / FOLDER).is_dir():
        publish_adapter(hub_model_id, files, folder / FOLDER, **options)
    else:
        publish(hub_model_id, files, **options)


def _facts(result: HeadResult, model: Any) -> dict[str, Any]:
    """What the card says of the head."""
    config = model.peft_config["default"] if isinstance(model, PeftModel) else model.config
    report = config.fit_report or {}
    names = config.class_names if isinstance(model, PeftModel) else list(config.id2label.values())
    facts = {
        "head": TITLES[result.head],
        "classes": len(names),
        "images per class": "-".join(map(str, sorted(set(report["shots"])))) if "shots" in report else "few",
        "protocol": result.protocol,
        "alpha": result.alpha,
        "beta": result.beta,
        "trained values": f"{result.trained:,}",
        "values stored beside the text classifier": f"{result.stored:,}",
        "class texts (sha256)": result.prompts_sha256,
        "class names": ", ".join(names),
    }
    facts |= {f"warning {number}": warning for number, warning in enumerate(result.warnings, 1)}
    return {fact: value for fact, value in facts.items() if value is not None}
