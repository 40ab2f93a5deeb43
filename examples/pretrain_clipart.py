"""Pretrain the embedded encoder: a small CLIP on the embedded worlds, with FFF's trainer.

    python examples/pretrain_clipart.py                       # about half an hour on 2 cores
    python examples/pretrain_clipart.py --export examples/checkpoints/clipart-clip

Most rows are single drawings (captions), cropped and flipped. The others are scenes with sentences about them, half of
one drawing, half of two to four. They are left as they are; a scene of one drawing is also told by its place alone:
what learns from drawings that fill the picture cannot tell where in a picture they are. The drawings of the test split
are in none. The export is half precision, with a card that is written from the run.
"""

import json
import platform
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import AutoModel, AutoProcessor, set_seed

import hf_clipplus  # noqa: F401  registers the zoo's models with AutoModel
from hf_clipplus.data.clipart import CaptionWorld
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.seeding import item_generator
from hf_clipplus.data.sources import IndexedRows, iterate
from hf_clipplus.evaluation.clipart import clipart_evaluators, clipart_scores
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments, parse_arguments, set_auto_bias
from hf_clipplus.training.build import captions_of
from hf_clipplus.training.run import checkpoint_to_resume
from hf_clipplus.training.scratch import SIZES, build_fff, start_vision, train_tokenizer

ONE, SEVERAL = (1, 1), (2, 4)  # objects of a scene
CARD = Path(__file__).parents[1] / "model_cards" / "clipart-clip.md"


@dataclass
class PretrainArguments:
    """The worlds, the model and where it goes."""

    model_size: str = field(default="small", metadata={"help": f"One of {', '.join(SIZES)}."})
    scene_share: float = field(default=0.4, metadata={"help": "Share of scenes among the rows."})
    captions_per_image: int = field(default=3, metadata={"help": "Pseudo-captions of an image in a batch, at most."})
    train_split: str = field(default="train+validation", metadata={"help": "Drawings to train on."})
    export: str | None = field(default=None, metadata={"help": "Folder for the half-precision model and its card."})


@dataclass
class TrainingArguments(ContrastiveTrainingArguments):
    """Defaults of the committed checkpoint."""

    output_dir: str | None = "outputs/pretrain_clipart"
    max_steps: int = 5000
    per_device_train_batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.5
    adam_beta2: float = 0.95
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    save_strategy: str = "steps"
    save_steps: float = 1000
    save_total_limit: int | None = 2
    eval_strategy: str = "steps"
    eval_steps: float | None = 1000
    logging_steps: float = 50
    dataloader_drop_last: bool = True
    dataloader_num_workers: int = 1
    dataloader_persistent_workers: bool = True


class MixedWorld(Dataset):
    """Augmented single drawings, and a share of scenes in between; a row depends on (seed, epoch, row)."""

    def __init__(self, drawings: CaptionWorld, scenes: SceneWorld, placed: SceneWorld, share: float, seed: int):
        self.drawings, self.scenes, self.placed, self.share, self.seed = drawings, scenes, placed, share, seed
        self.augment = image_augmentation("fff")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)
        for world in (self.drawings, self.scenes, self.placed):
            world.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> dict:
        generator = item_generator(self.seed, int(self._epoch), index, 2)
        kind = int(np.searchsorted((self.share / 2, self.share), generator.random(), side="right"))
        row = (self.scenes, self.placed, self.drawings)[kind][index]
        if kind == 2:
            row["image"] = self.augment(row["image"], generator)
        elif kind == 1:
            place = row["objects"][0]["place"]
            row["pseudo_captions"] = [*row["sentences"][1:3], f"There is something {place}."]
        row = {key: row[key] for key in ("image", "caption", "pseudo_captions", "image_id")}
        return row | {"image_id": row["image_id"] + (2 - kind) * 2**40}  # the worlds number their pictures apart


def export(folder: Path, trainer: ContrastiveTrainer, metrics: dict[str, float], facts: dict) -> None:
    """Write the half-precision model, its processor and its card; read it back and score what was written."""
    trainer.model.to(torch.float16).save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    pairs = [(key, value) for key, value in metrics.items() if f"chance_{key}" in metrics]
    rows = "\n".join(f"| {key} | {100 * value:.1f} | {100 * metrics[f'chance_{key}']:.1f} |" for key, value in pairs)
    (folder / "README.md").write_text(CARD.read_text(encoding="utf-8").format(rows=rows, **facts), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, args = parse_arguments((PretrainArguments, TrainingArguments), __doc__, argv)
    set_seed(args.seed)
    side = SIZES[options.model_size]["image"]
    drawings = CaptionWorld(options.train_split, image_size=side, captions=options.captions_per_image, seed=args.seed)
    scenes, placed = (
        SceneWorld(drawings.drawings, image_size=side, length=len(drawings), objects=objects, seed=args.seed)
        for objects in (SEVERAL, ONE)
    )
    rows = IndexedRows(MixedWorld(drawings, scenes, placed, options.scene_share, args.seed))
    fixed = CaptionWorld(drawings.drawings, image_size=16, train=False)
    first_scenes = (scenes[index] for index in range(500))
    texts = [*captions_of(iterate(fixed)), *captions_of(first_scenes), *captions_of(rows[i] for i in range(500))]
    tokenizer = train_tokenizer(texts, vocab_size=4000, context=SIZES[options.model_size]["context"])
    model, processor = build_fff(
        options.model_size,
        tokenizer,
        captions_per_image=options.captions_per_image,
        logit_scale_init_value=float(np.log(30)),
        mining_features=None,
    )
    start_vision(model, processor, (row["image"] for row in rows))
    collator = ContrastiveCollator(
        processor,
        captions_per_image=options.captions_per_image,
        equal_texts_are_positive=True,
        seed=args.seed,
    )
    first = (collator([rows[i] for i in range(at, at + 64)]) for at in range(0, 256, 64))
    set_auto_bias(model, first, device=torch.device("cpu"))
    evaluation_split = "validation" if options.train_split == "train" else "test"
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        evaluators=clipart_evaluators(evaluation_split, image_size=side),
        report=collator.report,
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint))
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    if options.export:
        folder = Path(options.export)
        facts = {
            "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
            "side": side,
            "patch": model.config.vision_config.patch_size,
            "command": shlex.join(["python", "examples/pretrain_clipart.py", *(argv or sys.argv[1:])]),
            "steps": trainer.state.global_step,
            "batch_size": args.per_device_train_batch_size,
            "share": options.scene_share,
            "captions": 1 + options.captions_per_image,
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
            "seed": args.seed,
            "minutes": minutes,
            "hardware": f"{torch.get_num_threads()} CPU threads ({platform.machine()}), torch {torch.__version__}, "
            f"transformers {transformers.__version__}",
        }
        export(folder, trainer, {}, facts)
        saved, saved_processor = (
            AutoModel.from_pretrained(folder, dtype=torch.float32),
            AutoProcessor.from_pretrained(folder),
        )
        export(folder, trainer, clipart_scores(saved.eval(), saved_processor), facts)
    return trainer.evaluate()


if __name__ == "__main__":
    main()
