"""Compare ways to take texts longer than CLIP's 77 tokens, on the embedded scenes, with drawings never trained on.

    python examples/compare_dreamlip.py --arms sub_captions       # trains the CLIP that all ways start from
    python examples/compare_longclip.py                           # 3 seeds

"Late facts" are long texts that begin with sentences true of every scene, so that all that tells scenes apart stands
behind the 77th token. They are cut there, or encoded in segments, or by a stretched table of positions, before and
after training on long captions (with some of those sentences in front). Trained ways have the same steps. All are
measured on new scenes, of the drawings that were trained on and of unseen ones. A run that is on disk with the same
settings is not trained again.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, set_seed

from hf_clipplus.data.captions import CaptionSelection
from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.evaluation.scenes import NEW_SCENES, PREAMBLE, long_text_evaluators
from hf_clipplus.evaluation.tables import under_name
from hf_clipplus.models.longclip import LongCLIPModel, LongCLIPProcessor
from hf_clipplus.ops.position import KEPT, RATIO
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.long_caption_build import build_collator, kept_scenes
from hf_clipplus.training.run import arm_settings, run_arms


@dataclass(frozen=True)
class Arm:
    """A label, whether positions are stretched, how texts are taken, and which captions are trained on, if any."""

    label: str
    stretched: bool = False
    text_mode: str = "extended"
    captions: tuple[str, ...] = ()
    frozen: int = 0


ARMS = {
    "cut": Arm("CLIP, cut at 77 tokens"),
    "cut_trained": Arm("CLIP, trained on long captions, cut", captions=("long",)),
    "segmented": Arm("CLIP, in segments, not trained", text_mode="segmented"),
    "stretched": Arm("stretched to 248, not trained", stretched=True),
    "direct": Arm("stretched, trained on long captions", stretched=True, captions=("long",)),
    "longclip": Arm("Long-CLIP", stretched=True, captions=("long", "short"), frozen=KEPT),
}
METRICS = {
    f"{text}, text -> image R@{k}": f"scenes_by_{column}_text_to_image_R@{k}"
    for text, column in (("late facts", "late_facts"), ("long caption", "long_caption"), ("summary", "summary"))
    for k in (1, 5)
}
UNSEEN = {head: f"unseen_{metric}" for head, metric in METRICS.items()}


@dataclass
class CompareArguments:
    """What is compared."""

    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": "What to measure.", "choices": list(ARMS)}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    start_dir: str = field(
        default="outputs/compare_dreamlip", metadata={"help": "Where compare_dreamlip.py left sub_captions-<seed>."}
    )
    training_scenes: int = field(default=6400, metadata={"help": "Scenes to train on, drawn once."})
    steps: int = field(default=500, metadata={"help": "Steps of the arms that are trained."})
    batch_size: int = field(default=64, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    scenes: int = field(default=300, metadata={"help": "Held-out scenes."})
    split: str = field(default="test", metadata={"help": "Held-out drawings; 'validation' to choose settings."})
    output_dir: str = field(default="outputs/compare_longclip", metadata={"help": "Models, scores, table.md."})


@dataclass(frozen=True)
class LongAndShort:
    """A long text (some of the sentences true of every scene, then the scene's own) and the scene's first sentence."""

    kinds: tuple[str, ...]

    def __call__(self, row: dict[str, Any], generator) -> CaptionSelection:
        chosen = [sentence for sentence in PREAMBLE if generator.random() < 0.5]
        texts = {"long": " ".join([*chosen, row["long_caption"]]), "short": row["sentences"][0]}
        return CaptionSelection([texts[kind] for kind in self.kinds], 0, 0)


def measure_arm(args: CompareArguments, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one arm, if it is one that is trained, and measure it on held-out scenes."""
    set_seed(seed)
    train_split = "train" if args.split == "validation" else "train+validation"
    model, processor = start(ARMS[name], Path(args.start_dir) / f"sub_captions-{seed}")
    before = time.perf_counter()
    if ARMS[name].captions:
        train(model, processor, train_split, ARMS[name], seed, args, folder)
    minutes = (time.perf_counter() - before) / 60
    unseen = scores_of(model, processor, args.split, args.scenes, seed=0)
    found = scores_of(model, processor, train_split, args.scenes, seed=NEW_SCENES) | under_name("unseen", unseen)
    return found | {"minutes": minutes}


def scores_of(
    model: LongCLIPModel, processor: LongCLIPProcessor, split: str, length: int, seed: int
) -> dict[str, float]:
    """Retrieval by every kind of text, under its name."""
    side, found = model.config.vision_config.image_size, {}
    for evaluator in long_text_evaluators(split, image_size=side, length=length, seed=seed):
        found |= under_name(evaluator.name, evaluator(model, processor))
    return found


def start(arm: Arm, folder: Path) -> tuple[LongCLIPModel, LongCLIPProcessor]:
    """The trained CLIP of a folder, its positions stretched where the arm wants it."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: run `python examples/compare_dreamlip.py --arms sub_captions` first")
    stock = AutoProcessor.from_pretrained(folder)
    processor = LongCLIPProcessor(stock.image_processor, stock.tokenizer, default_text_mode=arm.text_mode)
    model = LongCLIPModel.from_pretrained(folder, frozen_positions=arm.frozen)
    if arm.stretched:
        processor.tokenizer.model_max_length = model.extend_context(kept=KEPT, ratio=RATIO)
    return model, processor


def train(
    model: LongCLIPModel,
    processor: LongCLIPProcessor,
    train_split: str,
    arm: Arm,
    seed: int,
    args: CompareArguments,
    folder: Path,
) -> None:
    """Train on long captions of scenes and save the model."""
    report, side = contrastive_report(), model.config.vision_config.image_size
    rows = kept_scenes(train_split, image_size=side, length=args.training_scenes, seed=100 + seed)
    data = PairDataArguments(image_augmentation="none", train_split=train_split)
    settings = arm_settings(args, folder, args.steps, seed, weight_decay=0.01, lr_scheduler_type="cosine")
    collator = build_collator(processor, data, LongAndShort(arm.captions), seed=seed, report=report)
    trainer = ContrastiveTrainer(model, settings, collator, rows, processing_class=processor, report=report)
    trainer.train()
    trainer.save_model()


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return run_arms(
        ARMS, args, partial(measure_arm, args), METRICS, {"minutes": "minutes"}, {"unseen_drawings": UNSEEN}
    )


if __name__ == "__main__":
    main()
