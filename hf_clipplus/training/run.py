"""What scripts around a training share: where it goes on from, what it leaves behind, how long its steps take."""

import copy
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from hf_clipplus.evaluation.tables import runs_table

from .arguments import ContrastiveTrainingArguments
from .callbacks import StepClock
from .checkpoints import last_complete_checkpoint
from .evaluating_trainer import EvaluatingTrainer

TRIAL_STEPS = 30  # of the run that says how long a step takes

logger = logging.get_logger(__name__)


def checkpoint_to_resume(output_dir: str, wish: str | None) -> str | None:
    """`--resume_from_checkpoint`: unset or "auto" takes the last complete one there is, "no" none, else that path."""
    if wish not in (None, "auto", "true", "True"):
        return None if wish in ("no", "none", "false", "False") else wish
    found = last_complete_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found:
        logger.warning(f"Resuming from {found}; --resume_from_checkpoint no starts anew.")
    return found


def train_and_save(
    trainer: EvaluatingTrainer, resume: str | None, *, tests: Sequence[Callable] | None = None, **card_facts
) -> dict[str, float]:
    """Train, save, evaluate, write `metrics.json`, print what was measured, and push where the arguments say so.

    Args:
        trainer: ready to train.
        resume: the checkpoint it goes on from.
        tests: evaluators of the end; None takes those of the training.
        card_facts: for the model card (`Trainer.push_to_hub`).

    Returns:
        The metrics of the last evaluation.
    """
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if tests is not None:
        trainer.evaluators = list(tests)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        for name, value in metrics.items():
            print(f"{name:60} {value:.4f}" if isinstance(value, float) else f"{name:60} {value}")
        print(f"saved in {folder}")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card_facts)
    return metrics


def run_once(record: Path, settings: Mapping[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run` returns, read from `record` if a run with equal settings left it there, so that a comparison goes on.

    Args:
        record: JSON file; written when `run` has ended.
        settings: everything that the result depends on, values that JSON keeps.
        run: trains and evaluates; its result must be JSON too.
    """
    settings = json.loads(json.dumps(settings))
    if record.exists() and (found := json.loads(record.read_text(encoding="utf-8")))["settings"] == settings:
        return found["scores"]
    scores = run()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"settings": settings, "scores": scores}, indent=1), encoding="utf-8")
    return scores


def run_arms(
    arms: Mapping[str, Any],
    args: Any,
    run: Callable[[str, int, Path], dict[str, float]],
    percents: Mapping[str, str],
    means: Mapping[str, str],
    more: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[dict[str, float]]]:
    """Run every arm and seed that is not on disk with the same settings; print the table, and write it as `table.md`.

    Args:
        arms: by name, each with a `label` for the table.
        args: the arguments of a comparison, with `arms` and `seeds` to run and an `output_dir`; what else they have
            is the settings of a run.
        run: (name of the arm, seed, its folder in `output_dir`) -> scores, which are kept there in `scores.json`.
        percents, means: columns of the table, see `runs_table`.
        more: further tables by the name of their file, their columns like `percents`.

    Returns:
        The scores of each seed by the arm's name.
    """
    settings = {key: value for key, value in vars(args).items() if key not in ("arms", "seeds", "output_dir")}
    output, scores = Path(args.output_dir), {name: [] for name in args.arms}
    for seed, name in itertools.product(args.seeds, args.arms):
        print(f"== {arms[name].label}, seed {seed}", flush=True)
        folder = output / f"{name}-{seed}"
        scores[name].append(run_once(folder / "scores.json", settings, partial(run, name, seed, folder)))
    labelled = {arms[name].label: runs for name, runs in scores.items()}
    tables = {"table": (percents, means)} | {name: (columns, {}) for name, columns in (more or {}).items()}
    for name, columns in tables.items():
        table = runs_table(labelled, *columns)
        (output / f"{name}.md").write_text(table + "\n", encoding="utf-8")
        print(f"\n{name}\n\n{table}")
    return scores


def arm_settings(args: Any, folder: Path, steps: int, seed: int, **options: Any) -> ContrastiveTrainingArguments:
    """Training arguments of one run of a comparison: few logs, no checkpoints, whole batches, a short warm-up.

    Args:
        args: the arguments of a comparison; its `batch_size` and `learning_rate` are taken.
        folder: of the run.
        steps, seed: of the run.
        options: further fields of `ContrastiveTrainingArguments`, or other values.
    """
    usual = {"warmup_steps": 0.1, "logging_steps": max(1, steps // 10), "per_device_train_batch_size": args.batch_size}
    usual |= {"save_strategy": "no", "dataloader_drop_last": True}
    if "learning_rate" not in options:
        usual["learning_rate"] = args.learning_rate
    return ContrastiveTrainingArguments(output_dir=str(folder), max_steps=steps, seed=seed, **(usual | options))


def train_arm(
    args: Any, model: PreTrainedModel, trainer_of: Callable[[PreTrainedModel, int], Trainer]
) -> tuple[Trainer, dict[str, float]]:
    """Train `model` for `args.steps`, or for as many steps as `args.minutes` hold, and save it.

    Args:
        args: the arguments of a comparison.
        model: what is trained; a copy of it for a few steps first where a time is given.
        trainer_of: (model, steps) -> its trainer.

    Returns:
        The trainer, and `steps`, `minutes` and `step_ms` that it took.
    """
    steps = args.steps or int(60 * args.minutes / step_seconds(trainer_of(copy.deepcopy(model), TRIAL_STEPS)))
    trainer, start = trainer_of(model, steps), time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    return trainer, {"steps": steps, "minutes": seconds / 60, "step_ms": 1000 * seconds / steps}


def step_seconds(trial: Trainer) -> float:
    """Time of a training step, from a short run (on a copy of the model) whose first steps do not count.

    Nothing is evaluated in it.
    """
    trial.args.eval_strategy = IntervalStrategy.NO
    clock = StepClock()
    trial.add_callback(clock)
    trial.train()
    return clock.seconds()
