"""Compare FFF with CLIP and SigLIP on the embedded drawings: equal time per arm, the same held-out drawings.

    python examples/compare_fff.py                                   # every arm, 5 seeds
    python examples/compare_fff.py --arms clip_raw fff --seeds 0     # what `make demo` trains

Every arm trains the same tiny towers from nothing for the same minutes; the number of steps follows from the time of a
step on this machine, or is given by --steps. Text queries are clean captions (folder, name, keywords) that no arm saw,
and the names alone. A run that is on disk with the same settings is not trained again, so that an interrupted
comparison goes on, and two commands with different --seeds and one --output_dir share the work.
"""

import copy
import itertools
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import set_seed

from hf_clipplus.data.captions import RandomWordDeletion
from hf_clipplus.data.clipart import CaptionWorld
from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.sources import IndexedRows, iterate
from hf_clipplus.evaluation.clipart import clipart_scores
from hf_clipplus.evaluation.tables import runs_table
from hf_clipplus.models.fff import FFFModel
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.build import captions_of, choose_bias
from hf_clipplus.training.run import arm_settings, run_once, step_seconds
from hf_clipplus.training.scratch import SIZES, build_fff, train_tokenizer, whiten_patches

PSEUDO_CAPTIONS = 3
TRIAL_STEPS = 60
WORD_DELETION = 0.3  # in every arm; held-out names are new words, so a caption must be read by its other words too
# strict on purpose: a tiny model's cosines drift while it trains, and looser thresholds mined a fifth of all pairs
MINING_THRESHOLDS = {"p1": 0.8, "p1_gate": 0.4, "p2": 0.95, "p3": 0.98}
METRICS = {
    "text->image R@1": "text_to_image_R@1",
    "R@5": "text_to_image_R@5",
    "R@10": "text_to_image_R@10",
    "R@10, names": "name_text_to_image_R@10",
    "image->text R@10": "image_to_text_R@10",
    "zero-shot top-1": "top1",
}


@dataclass(frozen=True)
class Arm:
    """One way to train: the loss, which captions a step sees, and whether positives are mined."""

    label: str
    loss: str
    captions: str
    mining: bool = False


ARMS = {
    "clip_raw": Arm("CLIP, raw alt text", "softmax", "raw"),
    "siglip_raw": Arm("SigLIP, raw alt text", "sigmoid", "raw"),
    "clip_sampled": Arm("CLIP, one caption sampled", "softmax", "sample_one"),
    "siglip_sampled": Arm("SigLIP, one caption sampled", "sigmoid", "sample_one"),
    "fff_no_mining": Arm("FFF without mining", "sigmoid", "all"),
    "fff": Arm("FFF", "sigmoid", "all", mining=True),
}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to train.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: list(range(5)), metadata={"help": "Seeds of each arm."})
    minutes: float = field(default=2.7, metadata={"help": "Training time of each arm and seed."})
    steps: list[int] | None = field(
        default=None, metadata={"help": "Steps instead of a time: one number, or one for each of --arms."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of every arm."})
    workers: int = field(
        default=1, metadata={"help": "Processes that compose batches; 0 does it in between the steps."}
    )
    split: str = field(default="test", metadata={"help": "Held-out drawings; 'validation' to choose settings."})
    output_dir: str = field(default="outputs/compare_fff", metadata={"help": "Models, scores.json and table.md."})


def run_arm(name: str, seed: int, args: CompareArguments) -> dict[str, float]:
    """The scores of one arm on the held-out drawings, read from `output_dir/<arm>-<seed>` if they are there."""
    record = Path(args.output_dir) / f"{name}-{seed}" / "scores.json"
    steps = None
    if args.steps is not None:
        steps = dict(zip(args.arms, args.steps * len(args.arms) if len(args.steps) == 1 else args.steps, strict=True))
        steps = steps[name]
    settings = {key: getattr(args, key) for key in ("minutes", "batch_size", "learning_rate", "split")}
    settings |= {"steps": steps} if steps else {}
    return run_once(record, settings, lambda: train_arm(name, seed, args, steps))


def train_arm(name: str, seed: int, args: CompareArguments, steps: int | None = None) -> dict[str, float]:
    """Train one arm, save it under `output_dir/<arm>-<seed>`, and return its scores on the held-out drawings."""
    arm = ARMS[name]
    set_seed(seed)
    torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) - args.workers)))
    side = SIZES["tiny"]["image"]
    world = CaptionWorld(
        "train" if args.split == "validation" else "train+validation", image_size=side, captions=PSEUDO_CAPTIONS
    )
    plain = list(iterate(CaptionWorld(world.drawings, image_size=side, train=False)))
    tokenizer = train_tokenizer(captions_of(plain), vocab_size=4000, context=SIZES["tiny"]["context"])
    model, processor = build_fff(
        "tiny", tokenizer, contrastive_loss=arm.loss, captions_per_image=PSEUDO_CAPTIONS, **_settings(arm)
    )
    whiten_patches(model, processor, (row["image"] for row in plain))
    rows = IndexedRows(world)
    collator = ContrastiveCollator(
        processor,
        mode=arm.captions,
        captions_per_image=PSEUDO_CAPTIONS,
        augment_image=image_augmentation("fff", size=side),
        augment_text=RandomWordDeletion(WORD_DELETION),
        equal_texts_are_positive=arm.mining,
        seed=seed,
    )
    if arm.loss == "sigmoid":
        choose_bias(model, rows, collator, args.batch_size)
    folder = Path(args.output_dir) / f"{name}-{seed}"

    def trainer_of(model: FFFModel, steps: int) -> ContrastiveTrainer:
        options = {"weight_decay": 0.5, "adam_beta2": 0.95, "lr_scheduler_type": "cosine"}
        options |= {"dataloader_num_workers": args.workers, "dataloader_persistent_workers": args.workers > 0}
        settings = arm_settings(args, folder, steps, seed, **options)
        return ContrastiveTrainer(model, settings, collator, rows, processing_class=processor, report=collator.report)

    if steps is None:
        list(iterate(rows))  # the first look at a drawing is slow, and a short trial sees few of them again
        steps = int(60 * args.minutes / step_seconds(trainer_of(copy.deepcopy(model), TRIAL_STEPS)))
    model.config.mining_warmup_steps = steps // 2
    trainer = trainer_of(model, steps)
    start = time.perf_counter()
    trainer.train()
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    return clipart_scores(model, processor, args.split) | {"steps": steps, "minutes": minutes}


def _settings(arm: Arm) -> dict:
    """Fields of the configuration. The sigmoid starts from a scale that few steps cannot reach from SigLIP's ln 10."""
    if arm.loss == "softmax":
        return {"logit_scale_init_value": 2.6592, "mining_features": None}
    mining = {"mining_features": "online", **MINING_THRESHOLDS} if arm.mining else {"mining_features": None}
    return {"logit_scale_init_value": 3.4, **mining}


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row per arm with mean and standard deviation in percent, and the chance level last."""
    return runs_table(
        {ARMS[name].label: runs for name, runs in scores.items()}, METRICS, {"steps": "steps", "minutes": "minutes"}
    )


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in args.arms}
    output = Path(args.output_dir)
    for seed, name in itertools.product(args.seeds, args.arms):
        print(f"== {ARMS[name].label}, seed {seed}", flush=True)
        scores[name].append(run_arm(name, seed, args))
        (output / "scores.json").write_text(json.dumps(scores, indent=1))
    (output / "table.md").write_text(table(scores) + "\n")
    print(table(scores))
    return scores


if __name__ == "__main__":
    main()
