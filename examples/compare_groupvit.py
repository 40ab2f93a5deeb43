"""Compare GroupViT with a plain ViT on the embedded scenes: same loss, same minutes, drawings never trained on.

    python examples/compare_groupvit.py                              # every arm, 3 seeds, 15 minutes each
    python examples/compare_groupvit.py --arms hard vit --minutes 3

The plain ViT has the same blocks without grouping, and labels every patch by its own similarity to the class names.
Classes are found by name alone ("a photo of a cat."), and so is the background, by its colours ("a photo of a white
background."); masks are never trained on. New scenes of the training drawings are segmented too: where a model does
well on them alone, it lacks names for what it sees and not segments. A run that is on disk with the same settings is
not trained again.
"""

import copy
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed

from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.evaluation.overlay import segmentation_overlay
from hf_clipplus.evaluation.segmentation import ZeroShotSegmentation, scene_segmentation
from hf_clipplus.evaluation.tables import runs_table
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.groupvit_build import (
    GroupViTModelArguments,
    build_collator,
    build_model,
    open_training_rows,
)
from hf_clipplus.training.run import run_once, step_seconds

TRIAL_STEPS = 20
EXTRA = {"steps": "steps", "minutes": "minutes"}
METRICS = {"mIoU": "mIoU", "pixel accuracy": "pixel_accuracy", "mIoU, training drawings": "seen_mIoU"}
ARMS = {
    "hard": ("GroupViT, hard assignment", {"model_size": "tiny"}),
    "soft": ("GroupViT, soft assignment", {"model_size": "tiny", "hard_assignment": False}),
    "two_stages": ("GroupViT, 2 stages", {"model_size": "tiny-2-stage"}),
    "hard_no_prompts": ("GroupViT without prompts", {"model_size": "tiny", "prompts_per_image": 0}),
    "vit": ("plain ViT", {"model_size": "tiny-vit"}),
}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to train.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    minutes: float = field(default=15.0, metadata={"help": "Training time of each arm and seed."})
    steps: int | None = field(default=None, metadata={"help": "Steps of each arm instead of a time."})
    batch_size: int = field(default=32, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of every arm."})
    evaluations: int = field(default=5, metadata={"help": "Points of the curve on validation scenes."})
    scenes: int = field(default=200, metadata={"help": "Test scenes."})
    output_dir: str = field(default="outputs/compare_groupvit", metadata={"help": "Models, pictures, table.md."})


def run_arm(name: str, seed: int, args: CompareArguments) -> dict[str, float]:
    """The scores of one arm on test scenes, read from `output_dir/<arm>-<seed>` if they are there."""
    settings = {key: value for key, value in vars(args).items() if key not in ("arms", "seeds", "output_dir")}
    record = Path(args.output_dir) / f"{name}-{seed}" / "scores.json"
    return run_once(record, settings, lambda: train_arm(name, seed, args))


def train_arm(name: str, seed: int, args: CompareArguments) -> dict[str, float]:
    """Train one arm, save it under `output_dir/<arm>-<seed>` with pictures, and return its scores on test scenes."""
    set_seed(seed)
    data = PairDataArguments(train_split="train")
    settings = GroupViTModelArguments(**ARMS[name][1], scenes=100 * args.batch_size)
    model, processor = build_model(settings, data)
    side = model.config.vision_config.image_size
    rows = open_training_rows(settings, data, side, seed)
    collator = build_collator(processor, settings, data, seed=seed, report=contrastive_report())
    folder = Path(args.output_dir) / f"{name}-{seed}"
    validation = scene_segmentation("validation", image_size=side, length=100)

    def trainer_of(model, steps: int, evaluators=()) -> ContrastiveTrainer:
        every = max(1, steps // args.evaluations)
        options = ContrastiveTrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            weight_decay=0.05,
            max_grad_norm=5.0,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=every,
            eval_strategy="steps" if evaluators else "no",
            eval_steps=every,
            save_strategy="no",
            dataloader_drop_last=True,
            report_to=[],
            seed=seed,
        )
        return ContrastiveTrainer(model, options, collator, rows, processing_class=processor, evaluators=evaluators)

    steps = args.steps or int(60 * args.minutes / step_seconds(trainer_of(copy.deepcopy(model), TRIAL_STEPS)))
    trainer = trainer_of(model, steps, [validation])
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    test = scene_segmentation("test", image_size=side, length=args.scenes)
    found = with_chance(test, test(model, processor))
    seen = scene_segmentation("train", image_size=side, length=args.scenes, seed=10_000 + seed)
    again = with_chance(seen, seen(model, processor))
    found |= {"seen_mIoU": again["mIoU"], "chance_seen_mIoU": again["chance_mIoU"]}
    draw(model, processor, test, folder)
    curve = [(r["step"], r["eval_scenes_mIoU"]) for r in trainer.state.log_history if "eval_scenes_mIoU" in r]
    return found | {"steps": steps, "minutes": seconds / 60, "curve": curve, "logs": logs(trainer)}


def logs(trainer: ContrastiveTrainer) -> list[dict[str, float]]:
    """Losses, scales and use of the groups along the run."""
    return [record for record in trainer.state.log_history if "loss" in record]


def draw(model, processor, test: ZeroShotSegmentation, folder: Path, pictures: int = 10) -> None:
    """Save test scenes beside their segmentation and the true masks."""
    names = [*test.background_names, *test.class_names]
    classes = model.class_embeddings(**processor.class_inputs(names, test.templates))
    rows = [test.rows[index] for index in range(min(pictures, len(test.rows)))]
    inputs = processor.segmentation_inputs([row["image"] for row in rows], **test.size)
    for number, (row, result) in enumerate(zip(rows, model.segment(**inputs, class_embeds=classes), strict=True)):
        for name, labels in (("found", test.merge_background(result.labels).numpy()), ("true", row["mask"])):
            picture = row["image"].resize((448, 448))
            labels = labels.repeat(448 // len(labels), 0).repeat(448 // len(labels), 1)
            segmentation_overlay(picture, labels, test.labels).save(folder / f"scene{number}-{name}.png")


def with_chance(evaluator: ZeroShotSegmentation, found: dict[str, float]) -> dict[str, float]:
    """The scores, with those of a map that is background everywhere as chance levels: random maps have less."""
    background = (evaluator.matrix.counts[0].sum() / evaluator.matrix.counts.sum()).item()
    return found | {"chance_mIoU": background / int(found["classes"]), "chance_pixel_accuracy": background}


def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    scores: dict[str, list[dict]] = {name: [] for name in args.arms}
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for seed, name in itertools.product(args.seeds, args.arms):
        print(f"== {ARMS[name][0]}, seed {seed}", flush=True)
        scores[name].append(run_arm(name, seed, args))
        (output / "scores.json").write_text(json.dumps(scores, indent=1))
        table = runs_table({ARMS[key][0]: runs for key, runs in scores.items() if runs}, METRICS, EXTRA)
        (output / "table.md").write_text(table + "\n")
        print(table, flush=True)
    return scores


if __name__ == "__main__":
    main()
