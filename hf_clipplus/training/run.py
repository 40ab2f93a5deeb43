"""How a training script begins and ends: the checkpoint it goes on from, and what it leaves behind."""

import json
from pathlib import Path

from transformers.utils import logging

from .checkpoints import last_complete_checkpoint
from .trainer import ContrastiveTrainer

logger = logging.get_logger(__name__)


def checkpoint_to_resume(output_dir: str, wish: str | None) -> str | None:
    """`--resume_from_checkpoint`: unset or "auto" takes the last complete one there is, "no" none, else that path."""
    if wish not in (None, "auto", "true", "True"):
        return None if wish in ("no", "none", "false", "False") else wish
    found = last_complete_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found:
        logger.warning(f"Resuming from {found}; --resume_from_checkpoint no starts anew.")
    return found


def train_and_save(trainer: ContrastiveTrainer, resume: str | None, **card_facts) -> dict[str, float]:
    """Train, save, evaluate, write `metrics.json`, print what was measured, and push where the arguments say so.

    Args:
        trainer: ready to train.
        resume: the checkpoint it goes on from.
        card_facts: for the model card (`Trainer.push_to_hub`).

    Returns:
        The metrics of the last evaluation.
    """
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
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
