"""A tiny FFF training on pictures made here; the tests import it, or run it as a script (also under torchrun).

`python tiny_run.py settings.json` trains once for each entry of the list in the file, see `make_trainer` and `main`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTextConfig, CLIPVisionConfig, TrainerCallback

from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.sources import IndexedRows
from hf_clipplus.models.fff import FFFConfig, FFFModel, FFFProcessor
from hf_clipplus.models.finer_vision import fit_pictures
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments
from hf_clipplus.training.scratch import train_tokenizer

COLOURS = ("red", "green", "blue", "white", "black", "purple")
THINGS = ("cat", "boat", "tiger", "cup of tea")
CONTEXT, SIDE, WIDTH = 16, 16, 12


def make_rows(count: int) -> list[dict]:
    """Rows with every column; every third pair of neighbours shows the same picture under one image_id."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(count):
        colour, thing = COLOURS[i % len(COLOURS)], THINGS[i % len(THINGS)]
        pseudo = [f"one {colour} {thing}", f"the {thing} number {i}", f"{colour} things"][: 1 + i % 3]
        features = draw.normal(size=(2 + len(pseudo), WIDTH)).astype(np.float32)
        rows.append(
            {
                "image": Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)),
                "caption": f"a {colour} {thing}",
                "pseudo_captions": pseudo,
                "image_id": i // 6 * 6 if i % 6 < 2 else i,
                "mining_image_features": features[0],
                "mining_text_features": features[1:],
            }
        )
    return rows


def make_model(seed: int = 0, attention_dropout: float = 0.0, **config) -> tuple[FFFModel, FFFProcessor]:
    """Random weights from `seed`, and the processor."""
    tokenizer = train_tokenizer(
        [row["caption"] + " number one the things" for row in make_rows(24)] * 3, vocab_size=600, context=CONTEXT
    )
    tower = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_dropout": attention_dropout,
    }
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextConfig(**tower, **ids, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    vision = CLIPVisionConfig(**tower, image_size=SIDE, patch_size=8)
    torch.manual_seed(seed)
    config = {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": 12} | config
    size = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    model = FFFModel(FFFConfig(**config))
    processor = FFFProcessor(CLIPImageProcessorPil(size=size[0], crop_size=size[1]), tokenizer)
    fit_pictures(processor, model.config)
    return model, processor


def make_trainer(
    output: str | Path,
    *,
    config: dict | None = None,
    columns: list[str] | None = None,
    rows: int = 24,
    augment: bool = True,
    dropout: float = 0.0,
    trainer_class: type = ContrastiveTrainer,
    collator: dict | None = None,
    trainer: dict | None = None,
    **arguments,
) -> ContrastiveTrainer:
    """A trainer on `rows` rows; `columns` keeps only those, `arguments` are those of training."""
    model, processor = make_model(attention_dropout=dropout, **(config or {}))
    data = make_rows(rows)
    if columns is not None:
        data = [{key: row[key] for key in columns} for row in data]
    arguments = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_drop_last": True,
    } | arguments
    return trainer_class(
        model=model,
        args=ContrastiveTrainingArguments(output_dir=str(output), **arguments),
        train_dataset=IndexedRows(data),
        data_collator=ContrastiveCollator(
            processor, augment_image=image_augmentation("fff") if augment else None, seed=3, **(collator or {})
        ),
        **(trainer or {}),
    )


class _DieAfterStep(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _die_in_save(trainer: ContrastiveTrainer, last: int) -> None:
    """End the process after the weights of the `last` checkpoint are written, before its optimizer state."""
    save, calls = trainer._save_optimizer_and_scheduler, []

    def save_or_die(folder):
        calls.append(folder)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_optimizer_and_scheduler = save_or_die


def main() -> None:
    """Train; `die_after_step` and `die_in_save` (the n-th) end the process by SIGKILL; saves the weights otherwise."""
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        step, save = settings.pop("die_after_step", None), settings.pop("die_in_save", None)
        trainer = make_trainer(**settings)
        if step is not None:
            trainer.add_callback(_DieAfterStep(step))
        if save is not None:
            _die_in_save(trainer, save)
        trainer.train()
        result = {
            "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "mode": trainer.args.parallel_mode.value,
            "world": trainer.args.world_size,
        }
        torch.save(result, Path(settings["output"]) / f"result{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main()
