"""What a trainer knows of the model it made: facts and numbers for its card."""

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import has_length

from hf_clipplus.evaluation.results import Results, describe_hardware, is_hub_id

from .card import model_card, own_results, pipeline_tag, shorten_paths, variant_of

SPEEDS = ("_runtime", "_per_second")
RESULTS_FILE = "results.json"


def write_card(trainer: Trainer, name: str, dataset: str | None = None, **metadata: Any) -> None:
    """Write `README.md` and `results.json` into the trainer's `output_dir`.

    Args:
        trainer: after training; its arguments, its log and its data set are read.
        name: title, and what the code sample loads where the model has no Hub id.
        dataset: Hub id or another name of the training data; of a path only the last part is told.
        metadata: further fields of `ModelCardData` (`license`, `language`, `tags`, ...).
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    repo_id = trainer.hub_model_id or name
    if is_hub_id(dataset):
        metadata = {"datasets": [dataset], **metadata}
    elif dataset is not None:
        dataset = Path(dataset).name
    results = own_results(trainer_results(trainer, dataset or "training data"), repo_id, model)
    facts = {"Training": _training_facts(trainer, dataset)}
    card = model_card(model, repo_id, results=results, facts=facts, **metadata)
    folder = Path(trainer.args.output_dir)
    results.to_json(folder / RESULTS_FILE)
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def trainer_results(trainer: Trainer, dataset: str) -> Results:
    """The last value of every `eval_*` entry of the log, but for how fast it ran.

    Args:
        trainer: the name of each of its `evaluators`, where it has any, is the data of that one's metrics; its `task`,
            where it says one, is theirs.
        dataset: name of the data of the evaluation loss.
    """
    last = {}
    for record in trainer.state.log_history:
        last |= {name: value for name, value in record.items() if name.startswith("eval_")}
    model, results = trainer.accelerator.unwrap_model(trainer.model), Results()
    facts = {
        "split": "evaluation",
        "model": model.name_or_path or "this model",
        "protocol": f"at the end of training, step {trainer.state.global_step}",
        "seed": trainer.args.seed,
        "hardware": describe_hardware(),
    }
    # the longest names first: "retrieval" begins "retrieval_by_name" too
    evaluators = sorted(getattr(trainer, "evaluators", ()), key=lambda evaluator: -len(evaluator.name))
    for name, value in last.items():
        if name.endswith(SPEEDS):
            continue
        metric, task, data = name.removeprefix("eval_"), pipeline_tag(variant_of(model)), dataset
        for evaluator in evaluators:
            if metric.startswith(f"{evaluator.name}_"):
                metric, data = metric.removeprefix(f"{evaluator.name}_"), evaluator.name
                task = getattr(evaluator, "task", task)
                break
        results.add(metric, value, task=task, dataset=data, **facts)
    return results


def _training_facts(trainer: Trainer, dataset: str | None) -> dict[str, Any]:
    """Data, hyper-parameters and hardware."""
    args = trainer.args
    rows = f", {len(trainer.train_dataset):,} rows" if has_length(trainer.train_dataset) else ""
    names = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
    return {
        "data": shorten_paths(f"{dataset or 'not named'}{rows}"),
        "steps": trainer.state.global_step,
        "images in a step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "processes": args.world_size,
        "hardware": describe_hardware(),
        "precision": next((name for name in ("bf16", "fp16") if getattr(args, name)), "fp32"),
        "optim": args.optim.value,
        "lr_scheduler_type": args.lr_scheduler_type.value,
        **{name: getattr(args, name) for name in (*names, "warmup_steps", "num_train_epochs", "max_steps", "seed")},
    }
