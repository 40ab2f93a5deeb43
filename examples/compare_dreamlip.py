"""Compare DreamLIP with CLIP on the embedded scenes: equal time or steps per arm, drawings never trained on.

    python examples/compare_dreamlip.py                                             # every arm, 3 seeds
    python examples/compare_dreamlip.py --arms raw sub_captions --seeds 0 --minutes 10

Every arm trains the same tiny towers from nothing on the same scenes. It is measured on new scenes, of the drawings
that were trained on and of unseen ones. Scenes are looked for by one sentence that lists what they show (by class, and
by the names of the drawings), and by the whole long caption; "pointing" is whether the patch that is most similar to
an object's class lies on it; segmentation labels every patch by its own similarity. A run that is on disk with the
same settings is not trained again.
"""

from collections.abc import Iterable
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
from hf_clipplus.data.sources import iterate
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.evaluation.heat_map import heat_map_overlay
from hf_clipplus.evaluation.patch_segmentation import PatchSegmentation
from hf_clipplus.evaluation.scenes import NEW_SCENES, by_classes, scene_evaluators
from hf_clipplus.evaluation.tables import under_name
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.long_caption_build import (
    ADDED,
    OTHER_IMAGES,
    SUB_CAPTION_LOSS,
    StartArguments,
    build_collator,
    kept_scenes,
    start_model,
)
from hf_clipplus.training.run import arm_settings, run_arms, train_arm

CAPTIONS, CONTEXT = 7, 77
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
    "summary -> image R@5": "scenes_by_summary_text_to_image_R@5",
    "image -> summary R@5": "scenes_by_summary_image_to_text_R@5",
    "long caption -> image R@5": "scenes_by_long_caption_text_to_image_R@5",
    "classes -> image R@5": "scenes_by_classes_text_to_image_R@5",
    "pointing": "scenes_pointing_pointing_accuracy",
    "mIoU": "segmentation_mIoU",
}
UNSEEN = {head: f"unseen_{metric}" for head, metric in METRICS.items()}
MEANS = {"ms per step": "step_ms", "steps": "steps", "minutes": "minutes"}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to train.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    start: str = field(default="", metadata={"help": "Checkpoint that every arm starts from; '' starts from nothing."})
    steps: int | None = field(default=1400, metadata={"help": "Steps of each arm; None: by the time."})
    minutes: float | None = field(default=None, metadata={"help": "Training time of each arm instead of steps."})
    training_scenes: int = field(default=9600, metadata={"help": "Scenes to train on, drawn once."})
    batch_size: int = field(default=64, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of every arm."})
    scenes: int = field(default=300, metadata={"help": "Held-out scenes."})
    split: str = field(default="test", metadata={"help": "Held-out drawings; 'validation' to choose settings."})
    output_dir: str = field(default="outputs/compare_dreamlip", metadata={"help": "Models, heat maps, table.md."})

    def __post_init__(self):
        if self.minutes is not None:
            self.steps = None


def run_arm(args: CompareArguments, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one arm, save it with heat maps in `folder`, and return its scores on held-out scenes."""
    set_seed(seed)
    arm, train_split = ARMS[name], "train" if args.split == "validation" else "train+validation"
    data = PairDataArguments(image_augmentation="none", train_split=train_split)
    losses = {"use_grouping_loss": arm.negatives is not None, "grouping_negatives": arm.negatives or "batch"}
    losses |= SUB_CAPTION_LOSS | {"max_grouping_negatives": OTHER_IMAGES}
    start = StartArguments(model_name_or_path=args.start or None)
    model, processor = start_model(
        DreamLIPModel, DreamLIPProcessor, start, data, added=ADDED, context=CONTEXT, **losses
    )
    side = model.config.vision_config.image_size
    rows = kept_scenes(train_split, image_size=side, length=args.training_scenes, seed=seed)

    def trainer_of(model: DreamLIPModel, steps: int) -> ContrastiveTrainer:
        report = contrastive_report()
        options = {"weight_decay": 0.2, "adam_beta2": 0.98, "lr_schedule": "open_clip"}
        settings = arm_settings(args, folder, steps, seed, **options)
        collator = build_collator(processor, data, arm.choose, seed=seed, report=report)
        return ContrastiveTrainer(model, settings, collator, rows, processing_class=processor, report=report)

    _, times = train_arm(args, model, trainer_of)
    unseen = scores_of(model, processor, args.split, args.scenes, seed=0)
    found = scores_of(model, processor, train_split, args.scenes, seed=NEW_SCENES) | under_name("unseen", unseen)
    pictures = SceneWorld(args.split, image_size=side, length=8, train=False)
    draw(model, processor, iterate(pictures), folder)
    return found | times


def scores_of(
    model: DreamLIPModel, processor: DreamLIPProcessor, split: str, length: int, seed: int
) -> dict[str, float]:
    """What every evaluator says of scenes, under its name."""
    side, found = model.config.vision_config.image_size, {}
    options = {"image_size": side, "length": length, "seed": seed}

    def miou(threshold: float) -> float:
        return segmentation(threshold, side, split="validation", length=40)(model, processor)["mIoU"]

    threshold = max(THRESHOLDS, key=miou)
    evaluators = [*scene_evaluators(split, **options), by_classes(split, **options)]
    for evaluator in [*evaluators, segmentation(threshold, side, split=split, length=length, seed=seed)]:
        found |= under_name(evaluator.name, evaluator(model, processor))
    return found | {"threshold": threshold}


def segmentation(threshold: float, side: int, **scenes: Any) -> PatchSegmentation:
    """Segmentation of scenes; a patch is background below the threshold."""
    world = SceneWorld(image_size=side, train=False, **scenes)
    return PatchSegmentation(world, CLASS_NAMES, background=threshold, short_side=side, name="segmentation")


@torch.no_grad()
def draw(model: DreamLIPModel, processor: DreamLIPProcessor, rows: Iterable[dict[str, Any]], folder: Path) -> None:
    """Save scenes with the heat map of each class that they show."""
    for number, row in enumerate(rows):
        batch = processor(images=row["image"], text=row["class_names"], return_tensors="pt")
        for name, heat in zip(row["class_names"], model.patch_similarity(**batch)[0], strict=True):
            heat_map_overlay(row["image"].resize((288, 288)), heat).save(folder / f"scene{number}-{name}.png")


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return run_arms(ARMS, args, partial(run_arm, args), METRICS, MEANS, more={"unseen_drawings": UNSEEN})


if __name__ == "__main__":
    main()
