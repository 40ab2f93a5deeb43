"""Compare what can be added to CLIP's training on the embedded scenes: equal time or steps per arm, held-out drawings.

    python examples/compare_enhancements.py                                     # every arm, 3 seeds
    python examples/compare_enhancements.py --arms plain combination --seeds 0 --steps 500

Every arm goes on from the embedded encoder and sees the same pictures: scenes, and scenes of two drawings that also
tell which way up they are. "plain" is CLIP with several true sentences of each. It is measured on new scenes, of the
drawings that were trained on and of unseen ones: scenes are looked for by one sentence that lists what they show, and
pairs of scenes that differ in one thing are scored like Winoground (text, image, group). Single unseen drawings are
classified. A run that is on disk with the same settings is not trained again: an interrupted comparison goes on.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_clipplus.data.captions import select_captions
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import CaptionChoice, contrastive_report
from hf_clipplus.data.fine_grained_scenes import KINDS, fine_grained_pairs, scene_rows
from hf_clipplus.data.scene_facts import scene_tagger
from hf_clipplus.data.sources import IndexedRows, iterate
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.data.text_structure import StructureSpans, tagged_parser
from hf_clipplus.evaluation.clipart import clipart_evaluators
from hf_clipplus.evaluation.fine_grained_scores import CHANCES
from hf_clipplus.evaluation.scenes import NEW_SCENES, by_classes, fine_grained_scenes, scene_evaluators
from hf_clipplus.evaluation.tables import under_name
from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.models.dual_encoder import DualEncoderModel
from hf_clipplus.models.fff import FFFModel, FFFProcessor
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.build import choose_bias
from hf_clipplus.training.long_caption_build import (
    ADDED,
    SUB_CAPTION_LOSS,
    StartArguments,
    build_collator,
    start_model,
)
from hf_clipplus.training.run import arm_settings, run_arms, train_arm
from hf_clipplus.training.start import ENCODER

CAPTIONS, CONTEXT = 7, 77
TRAINING_SEED = 20_000  # of pairs
PROCESSORS = {DreamLIPModel: DreamLIPProcessor, FFFModel: FFFProcessor}
SUB_CAPTIONS = SubCaptions(captions_per_image=CAPTIONS)
ALL_CAPTIONS = partial(select_captions, mode="all", captions_per_image=CAPTIONS - 1)

# fields of configurations and of PairDataArguments; the scale and the thresholds are those of compare_fff.py
CLIP = SUB_CAPTION_LOSS | {"use_grouping_loss": False}
MINING = {"mining_features": "online", "p1": 0.8, "p1_gate": 0.4, "p2": 0.95, "p3": 0.98}
SIGMOID = {"contrastive_loss": "sigmoid", "logit_scale_init_value": 3.4, **MINING}
EQUAL_TEXTS = {"equal_texts_are_positive": True}
HARD = {"hard_negatives": 1}
SCALES = {"finer_vision": {"scales": [1, 2]}}
LABELS = {name: {"self_labels": [f"{name}=0.1"]} for name in ("colour", "texture", "clusters")}


@dataclass(frozen=True)
class Arm:
    """One way to train: a label, and where it differs from CLIP on several captions of an image.

    Args:
        config: fields of the model's configuration.
        choose: the captions of an image.
        data: fields of `PairDataArguments`.
        training: fields of `ContrastiveTrainingArguments`.
        views: texts are encoded as a whole and by their phrases.
    """

    label: str
    model: type[DualEncoderModel] = DreamLIPModel
    config: dict[str, Any] = field(default_factory=lambda: CLIP)
    choose: CaptionChoice = SUB_CAPTIONS
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    views: bool = False


COMBINATION = Arm("DreamLIP, FFF, hard negatives", DreamLIPModel, SIGMOID, SUB_CAPTIONS, EQUAL_TEXTS | HARD)
ARMS = {
    "plain": Arm("CLIP"),
    "fff": Arm("FFF", FFFModel, SIGMOID, ALL_CAPTIONS, EQUAL_TEXTS),
    "dreamlip": Arm("DreamLIP", config=SUB_CAPTION_LOSS),
    "hard_negatives": Arm("CLIP with hard negatives", data=HARD),
    "scales": Arm("CLIP, two scales", config=CLIP | SCALES),
    "crops": Arm("CLIP, and two salient regions again", config=CLIP | {"finer_vision": {"crops": 2}}),
    **{name: Arm(f"CLIP with the label {name}", training=training) for name, training in LABELS.items()},
    "views": Arm("CLIP, texts and their phrases", views=True),
    "adversarial": Arm("CLIP with adversarial pictures", training={"adversarial": "pixel"}),
    "combination": COMBINATION,
    "all": replace(
        COMBINATION,
        label="the same with two scales, three labels, adversarial pictures",
        config=SIGMOID | SCALES,
        training={"self_labels": [f"{name}=0.1" for name in LABELS], "adversarial": "pixel"},
    ),
}
METRICS = {
    "text->image R@1": "scenes_by_summary_text_to_image_R@1",
    "R@5": "scenes_by_summary_text_to_image_R@5",
    "image->text R@5": "scenes_by_summary_image_to_text_R@5",
    "by classes R@5": "scenes_by_classes_text_to_image_R@5",
    **{score: f"scenes_fine_grained_{score}" for score in ("text", "image", "group")},
}
UNSEEN = {head: f"unseen_{metric}" for head, metric in METRICS.items()}
UNSEEN["zero-shot top-1"] = "unseen_clipart_zero_shot_top1"
GROUP_BY_KIND = {f"group, {kind}": f"scenes_fine_grained_group_{kind}" for kind in KINDS}
BY_KIND_UNSEEN = {head: f"unseen_{metric}" for head, metric in GROUP_BY_KIND.items()}
MORE = {"unseen_drawings": UNSEEN, "group_by_kind": GROUP_BY_KIND, "group_by_kind_unseen": BY_KIND_UNSEEN}
MEANS = {"ms per step": "step_ms", "steps": "steps", "minutes": "minutes"}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to train.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    start: str = field(
        default=str(ENCODER), metadata={"help": "Checkpoint that every arm starts from; '' starts from nothing."}
    )
    minutes: float = field(default=10.0, metadata={"help": "Training time of each arm and seed."})
    steps: int | None = field(default=None, metadata={"help": "Steps of each arm instead of a time."})
    training_scenes: int = field(default=4800, metadata={"help": "Scenes to train on, drawn once."})
    training_pairs: int = field(default=400, metadata={"help": "And pairs of each of six kinds, two pictures each."})
    batch_size: int = field(default=64, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of every arm."})
    scenes: int = field(default=300, metadata={"help": "Held-out scenes to retrieve from."})
    pairs: int = field(default=120, metadata={"help": "Held-out pairs of each kind."})
    split: str = field(default="test", metadata={"help": "Held-out drawings; 'validation' to choose settings."})
    output_dir: str = field(default="outputs/compare_enhancements", metadata={"help": "Models, scores, tables."})


def run_arm(args: CompareArguments, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one arm, save it in `folder`, and return its scores on held-out drawings."""
    set_seed(seed)
    arm = ARMS[name]
    train_split = "train" if args.split == "validation" else "train+validation"
    data = PairDataArguments(image_augmentation="none", train_split=train_split, **arm.data)
    start = StartArguments(model_name_or_path=args.start or None)
    options = {"added": (*ADDED, "logit_bias"), "context": CONTEXT}
    model, processor = start_model(arm.model, PROCESSORS[arm.model], start, data, **options, **arm.config)
    side = picture_side(model.config)
    if arm.views:
        processor.default_text_mode = "segmented"
        processor.default_spans = StructureSpans(tagged_parser(scene_tagger))
    scenes = SceneWorld(train_split, image_size=side, length=args.training_scenes, seed=seed, train=False)
    options = {"pairs_per_kind": args.training_pairs, "seed": TRAINING_SEED + seed}
    pairs = fine_grained_pairs(train_split, image_size=side, **options)
    rows = IndexedRows([*iterate(scenes), *scene_rows(pairs)])
    report = contrastive_report()
    collator = build_collator(processor, data, arm.choose, seed=seed, report=report)
    if getattr(model.config, "contrastive_loss", None) == "sigmoid":
        choose_bias(model, rows, collator, args.batch_size)

    def trainer_of(model: DualEncoderModel, steps: int) -> ContrastiveTrainer:
        model.config.mining_warmup_steps = steps // 2
        options = {"weight_decay": 0.2, "adam_beta2": 0.98, "lr_schedule": "open_clip"} | arm.training
        settings = arm_settings(args, folder, steps, seed, **options)
        return ContrastiveTrainer(model, settings, collator, rows, processing_class=processor, report=report)

    _, times = train_arm(args, model, trainer_of)
    unseen = scores_of(model, processor, args, args.split, seed=0)
    zero_shot = clipart_evaluators(args.split, image_size=side)[0]
    unseen |= under_name(zero_shot.name, zero_shot(model, processor))
    found = scores_of(model, processor, args, train_split, seed=NEW_SCENES) | under_name("unseen", unseen)
    return found | times


def scores_of(
    model: DualEncoderModel, processor: Any, args: CompareArguments, split: str, seed: int
) -> dict[str, float]:
    """Retrieval of scenes and fine-grained pairs, under their names."""
    options, found = {"image_size": picture_side(model.config), "seed": seed}, {}
    for evaluator in (
        scene_evaluators(split, length=args.scenes, **options)[0],
        by_classes(split, length=args.scenes, **options),
        fine_grained_scenes(split, pairs_per_kind=args.pairs, **options),
    ):
        found |= under_name(evaluator.name, evaluator(model, processor))
    return found | {f"chance_{metric}": CHANCES["group"] for metric in GROUP_BY_KIND.values()}


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return run_arms(ARMS, args, partial(run_arm, args), METRICS, MEANS, more=MORE)


if __name__ == "__main__":
    main()
