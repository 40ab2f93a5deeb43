"""Compare DreamLIP with CLIP on the embedded scenes: equal time or steps per arm, drawings never trained on.

    python examples/compare_dreamlip.py                                             # every arm, 3 seeds
    python examples/compare_dreamlip.py --arms raw sub_captions --seeds 0 --steps 500

Every arm trains the same tiny towers from nothing on the same scenes. Held-out scenes are looked for by one sentence
that lists what they show (by class, and by the names of the drawings), and by the whole long caption; "pointing" is
whether the patch that is most similar to an object's class lies on it; segmentation labels every patch by its own
similarity. A run that is on disk with the same settings is not trained again.
"""

import copy
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_clipplus.data.captions import CaptionSelection
from hf_clipplus.data.clipart import CLASS_NAMES
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import CaptionChoice, contrastive_report
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.evaluation.heat_map import heat_map_overlay
from hf_clipplus.evaluation.patch_segmentation import PatchSegmentation
from hf_clipplus.evaluation.scenes import by_classes, scene_evaluators
from hf_clipplus.evaluation.tables import under_name
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.long_caption_build import StartArguments, build_collator, kept_scenes, start_model
from hf_clipplus.training.run import run_arms, step_seconds

CAPTIONS, CONTEXT, OTHER_IMAGES = 7, 77, 15
ADDED = ("patch_projection.weight", "logit_scale_local")
PLAIN = {"contrastive_loss": "slot_softmax", "mining_features": None}
TRIAL_STEPS = 30
THRESHOLDS = (0.03, 0.1, 0.2, 0.35, 0.5, 0.7)  # of the background in segmentation; one is chosen on validation scenes


def whole_caption(row: dict[str, Any], generator) -> CaptionSelection:
    """The long caption as it is."""
    return CaptionSelection([row["long_caption"]], 0, 0)


@dataclass(frozen=True)
class Arm:
    """A label, the captions of an image, and the negatives of the grouping loss (None: without it)."""

    label: str
    choose: CaptionChoice
    negatives: str | None = None


SUB_CAPTIONS = SubCaptions(captions_per_image=CAPTIONS)
ARMS = {
    "raw": Arm("CLIP, raw title", SubCaptions(captions_per_image=1)),
    "sampled": Arm("CLIP, title or one sentence", SubCaptions(captions_per_image=1, sampler="paper")),
    "whole": Arm("CLIP, whole long caption", whole_caption),
    "sub_captions": Arm(f"DreamLIP, {CAPTIONS} captions, no grouping", SUB_CAPTIONS),
    "batch": Arm("DreamLIP, grouping, negatives of the batch", SUB_CAPTIONS, "batch"),
    "within_image": Arm("DreamLIP, grouping, negatives within the image", SUB_CAPTIONS, "within_image"),
    "cross_image": Arm("DreamLIP, grouping, other images as negatives", SUB_CAPTIONS, "cross_image"),
}
METRICS = {
    "classes -> image R@5": "scenes_by_classes_text_to_image_R@5",
    "summary -> image R@5": "scenes_by_summary_text_to_image_R@5",
    "image -> summary R@5": "scenes_by_summary_image_to_text_R@5",
    "long caption -> image R@5": "scenes_by_long_caption_text_to_image_R@5",
    "pointing": "pointing_accuracy",
    "mIoU": "mIoU",
}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to train.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    start: str = field(default="", metadata={"help": "Checkpoint that every arm starts from; '' starts from nothing."})
    minutes: float = field(default=10.0, metadata={"help": "Training time of each arm and seed."})
    steps: int | None = field(default=None, metadata={"help": "Steps of each arm instead of a time."})
    training_scenes: int = field(default=9600, metadata={"help": "Scenes to train on, drawn once."})
    batch_size: int = field(default=64, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of every arm."})
    scenes: int = field(default=300, metadata={"help": "Held-out scenes."})
    split: str = field(default="test", metadata={"help": "Held-out drawings; 'validation' to choose settings."})
    output_dir: str = field(default="outputs/compare_dreamlip", metadata={"help": "Models, heat maps, table.md."})


def train_arm(args: CompareArguments, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one arm, save it with heat maps in `folder`, and return its scores on held-out scenes."""
    set_seed(seed)
    arm, train_split = ARMS[name], "train" if args.split == "validation" else "train+validation"
    data = PairDataArguments(image_augmentation="none", train_split=train_split)
    losses = {"use_grouping_loss": arm.negatives is not None, "grouping_negatives": arm.negatives or "batch"}
    losses["max_grouping_negatives"] = OTHER_IMAGES
    start = StartArguments(model_name_or_path=args.start or None, context=CONTEXT)
    model, processor = start_model(DreamLIPModel, DreamLIPProcessor, start, data, added=ADDED, **PLAIN, **losses)
    side = model.config.vision_config.image_size
    rows = kept_scenes(train_split, image_size=side, length=args.training_scenes, seed=seed)

    def trainer_of(model: DreamLIPModel, steps: int) -> ContrastiveTrainer:
        report = contrastive_report()
        settings = ContrastiveTrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            weight_decay=0.2,
            adam_beta2=0.98,
            lr_schedule="open_clip",
            warmup_steps=0.1,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            dataloader_drop_last=True,
            report_to=[],
            seed=seed,
        )
        collator = build_collator(processor, data, arm.choose, seed=seed, report=report)
        return ContrastiveTrainer(model, settings, collator, rows, processing_class=processor, report=report)

    steps = args.steps or int(60 * args.minutes / step_seconds(trainer_of(copy.deepcopy(model), TRIAL_STEPS)))
    trainer = trainer_of(model, steps)
    start = time.perf_counter()
    trainer.train()
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    return scores_of(model, processor, args, folder) | {"steps": steps, "minutes": minutes}


def scores_of(
    model: DreamLIPModel, processor: DreamLIPProcessor, args: CompareArguments, folder: Path
) -> dict[str, float]:
    """What every evaluator says, the retrievals under their names."""
    side, found = model.config.vision_config.image_size, {}
    by_summary, by_long_caption, pointing = scene_evaluators(args.split, image_size=side, length=args.scenes)
    classes = by_classes(args.split, image_size=side, length=args.scenes)
    for evaluator in (classes, by_summary, by_long_caption):
        found |= under_name(evaluator.name, evaluator(model, processor))
    found |= pointing(model, processor)

    def segmentation(split: str, threshold: float, length: int) -> dict[str, float]:
        scenes = SceneWorld(split, image_size=side, length=length, train=False)
        return PatchSegmentation(scenes, CLASS_NAMES, background=threshold, short_side=side)(model, processor)

    threshold = max(THRESHOLDS, key=lambda value: segmentation("validation", value, 40)["mIoU"])
    draw(model, processor, pointing.rows[:8], folder)
    return found | segmentation(args.split, threshold, args.scenes) | {"threshold": threshold}


@torch.no_grad()
def draw(model: DreamLIPModel, processor: DreamLIPProcessor, rows: list[dict[str, Any]], folder: Path) -> None:
    """Save scenes with the heat map of each class that they show."""
    for number, row in enumerate(rows):
        batch = processor(images=row["image"], text=row["class_names"], return_tensors="pt")
        for name, heat in zip(row["class_names"], model.patch_similarity(**batch)[0], strict=True):
            heat_map_overlay(row["image"].resize((288, 288)), heat).save(folder / f"scene{number}-{name}.png")


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return run_arms(ARMS, args, partial(train_arm, args), METRICS, {"steps": "steps", "minutes": "minutes"})


if __name__ == "__main__":
    main()
