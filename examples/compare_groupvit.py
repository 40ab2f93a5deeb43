"""Compare GroupViT with a plain ViT on the embedded scenes: same loss, same minutes, drawings never trained on.

    python examples/compare_groupvit.py                              # every arm, 3 seeds, 15 minutes each
    python examples/compare_groupvit.py --arms hard vit --minutes 3

The plain ViT has the same blocks without grouping, and labels every patch by its own similarity to the class names.
Classes are found by name alone ("a photo of a cat."), and so is the background, by its colours ("a photo of a white
background."); masks are never trained on. New scenes of the training drawings are segmented too: where a model does
well on them alone, it lacks names for what it sees and not segments. A run that is on disk with the same settings is
not trained again.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.data.scene_pairs import ScenePairs
from hf_clipplus.data.sources import kept_rows
from hf_clipplus.evaluation.overlay import segmentation_overlay
from hf_clipplus.evaluation.segmentation import ZeroShotSegmentation, scene_segmentation
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.groupvit_build import (
    TRAINING_OBJECTS,
    GroupViTModelArguments,
    build_collator,
    build_model,
)
from hf_clipplus.training.run import arm_settings, run_arms, train_arm

EXTRA = {"steps": "steps", "minutes": "minutes"}
METRICS = {"mIoU": "mIoU", "pixel accuracy": "pixel_accuracy", "mIoU, training drawings": "seen_mIoU"}


@dataclass(frozen=True)
class Arm:
    """A label, and fields of `GroupViTModelArguments`."""

    label: str
    settings: dict[str, Any]


ARMS = {
    "hard": Arm("GroupViT, hard assignment", {"model_size": "tiny"}),
    "soft": Arm("GroupViT, soft assignment", {"model_size": "tiny", "hard_assignment": False}),
    "two_stages": Arm("GroupViT, 2 stages", {"model_size": "tiny-2-stage"}),
    "hard_no_prompts": Arm("GroupViT without prompts", {"model_size": "tiny", "prompts_per_image": 0}),
    "vit": Arm("plain ViT", {"model_size": "tiny-vit"}),
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
    training_scenes: int = field(default=9600, metadata={"help": "Scenes to train on, drawn once."})
    batch_size: int = field(default=32, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of every arm."})
    evaluations: int = field(default=5, metadata={"help": "Points of the curve on validation scenes."})
    scenes: int = field(default=200, metadata={"help": "Test scenes."})
    output_dir: str = field(default="outputs/compare_groupvit", metadata={"help": "Models, pictures, table.md."})


def run_arm(args: CompareArguments, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one arm, save it with pictures in `folder`, and return its scores on test scenes."""
    set_seed(seed)
    data, settings = PairDataArguments(train_split="train"), GroupViTModelArguments(**ARMS[name].settings)
    model, processor = build_model(settings, data)
    side = model.config.vision_config.image_size
    facts = {"image_size": side, "length": args.training_scenes, "objects": TRAINING_OBJECTS, "seed": seed}
    rows = kept_rows(ScenePairs(SceneWorld("train", **facts, train=False)))
    collator = build_collator(processor, settings, data, seed=seed, report=contrastive_report())
    validation = scene_segmentation("validation", image_size=side, length=100)

    def trainer_of(model, steps: int) -> ContrastiveTrainer:
        every = max(1, steps // args.evaluations)
        options = {"weight_decay": 0.05, "max_grad_norm": 5.0, "lr_scheduler_type": "cosine"}
        options |= {"eval_strategy": "steps", "eval_steps": every, "logging_steps": every}
        options = arm_settings(args, folder, steps, seed, **options)
        return ContrastiveTrainer(model, options, collator, rows, processing_class=processor, evaluators=[validation])

    trainer, times = train_arm(args, model, trainer_of)
    test = scene_segmentation("test", image_size=side, length=args.scenes)
    found = with_chance(test, test(model, processor))
    seen = scene_segmentation("train", image_size=side, length=args.scenes, seed=10_000 + seed)
    again = with_chance(seen, seen(model, processor))
    found |= {"seen_mIoU": again["mIoU"], "chance_seen_mIoU": again["chance_mIoU"]}
    draw(model, processor, test, folder)
    curve = [(r["step"], r["eval_scenes_mIoU"]) for r in trainer.state.log_history if "eval_scenes_mIoU" in r]
    return found | times | {"curve": curve, "logs": logs(trainer)}


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
    return run_arms(ARMS, args, partial(run_arm, args), METRICS, EXTRA)


if __name__ == "__main__":
    main()
