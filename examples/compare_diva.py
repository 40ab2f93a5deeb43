"""Does diffusion feedback help the embedded encoder? DIVA, a control with other pictures' conditions, and what else.

    python examples/train_tiny_diffusion.py                 # once
    python examples/compare_diva.py                         # before, DIVA and the control, 3 seeds
    python examples/compare_diva.py --split validation --seeds 0 --arms recap_all recap_cls warm_up lr_high draws_4

Measured before and after, on drawings never trained on: look-alike pairs in the manner of MMVP-VLM, linear probes for
orientation, count and colour, and zero-shot classification. Choose settings on "validation". A run that is on disk
with the same settings is not trained again.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_clipplus.data.feedback import FeedbackCollator, feedback_report, square_crop
from hf_clipplus.evaluation.clipart import clipart_evaluators, clipart_pairs, clipart_probes
from hf_clipplus.training import parse_arguments
from hf_clipplus.training.diva_build import (
    DIVAArguments,
    PictureArguments,
    build_generator,
    build_model,
    open_training_rows,
    with_cached_latents,
)
from hf_clipplus.training.feedback_trainer import FeedbackTrainer
from hf_clipplus.training.run import arm_settings, run_arms

LEARNING_RATE, WARM_UP_STEPS = 1e-5, 150


@dataclass(frozen=True)
class Arm:
    """A label, and fields of `DIVAArguments` (or the learning rate) that differ; None: the encoder as it is."""

    label: str
    settings: dict[str, Any] | None


ARMS = {
    "before": Arm("before", None),
    "diva": Arm("DIVA", {}),
    "shuffled": Arm("control: conditions of other pictures", {}),
    "recap_all": Arm("DIVA, all patches", {"recap": "all"}),
    "recap_cls": Arm("DIVA, class token alone", {"recap": "cls"}),
    "recap_avgpool": Arm("DIVA, averages of 6 patches", {"recap": "avgpool"}),
    "replace": Arm("DIVA, no prompt", {"prompt_mode": "replace"}),
    "warm_up": Arm("DIVA, projector first", {"projector_steps": WARM_UP_STEPS}),
    "warm_up_cls": Arm(
        "two stages, class token, MLP",
        {"projector_steps": WARM_UP_STEPS, "recap": "cls", "projector": "mlp"},
    ),
    "lr_low": Arm("DIVA, a third of the rate", {"learning_rate": LEARNING_RATE / 3}),
    "lr_lowest": Arm("DIVA, a tenth of the rate", {"learning_rate": LEARNING_RATE / 10}),
    "lr_high": Arm("DIVA, ten times the rate", {"learning_rate": 10 * LEARNING_RATE}),
    "draws_4": Arm("DIVA, 4 draws", {"noise_draws": 4}),
}
METRICS = {
    "pairs": "clipart_pairs_average",
    **{f"pairs: {fact}": f"clipart_pairs_{fact}" for fact in ("orientation", "count", "colour", "position")},
    **{f"probe: {fact}": f"probe_{fact}_accuracy" for fact in ("orientation", "count", "colour")},
    "zero-shot": "clipart_zero_shot_top1",
}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(
        default_factory=lambda: ["before", "diva", "shuffled"],
        metadata={"help": "What to train.", "choices": list(ARMS)},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    steps: int = field(default=150, metadata={"help": "Steps of each arm."})
    batch_size: int = field(default=32, metadata={"help": "Pictures of a step."})
    pictures: int = field(default=2000, metadata={"help": "Training pictures, latents cached."})
    split: str = field(default="test", metadata={"help": "Held-out drawings; 'validation' to choose settings."})
    generator: str = field(default="outputs/tiny_diffusion", metadata={"help": "Folder of the diffusion model."})
    output_dir: str = field(default="outputs/compare_diva", metadata={"help": "Models, scores.json and table.md."})


class ShuffledCollator(FeedbackCollator):
    """The control: the tower sees the next picture of the batch, not the one that is denoised."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        return batch | {"pixel_values": batch["pixel_values"].roll(1, 0)}


def scores_of(model, processor, split: str) -> dict[str, float]:
    """All protocols, with the chance level of each metric."""
    side, found = model.config.vision_config.image_size, {}
    pairs = clipart_pairs(split, image_size=side)
    for evaluator in (pairs, *clipart_probes(split, image_size=side), clipart_evaluators(split, image_size=side)[0]):
        result = evaluator(model, processor)
        for key, value in result.items():
            name, metric = ("chance_", key[7:]) if key.startswith("chance_") else ("", key)
            found[f"{name}{evaluator.name}_{metric}"] = value
    return found | {f"chance_{name}": 0.25 for name in METRICS.values() if name.startswith("clipart_pairs_")}


def run_arm(args: CompareArguments, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Tune the encoder in one arm, save it in `folder`, and return its scores."""
    set_seed(seed)
    settings = {"learning_rate": LEARNING_RATE, "generator": args.generator} | (ARMS[name].settings or {})
    rate = settings.pop("learning_rate")
    diva_args = DIVAArguments(**settings)
    cache = Path(args.output_dir) / f"latents-{args.pictures}"
    data = PictureArguments(crop="center", pictures=args.pictures, cache_latents=str(cache))
    generator = build_generator(diva_args)
    model, processor = build_model(diva_args, generator)
    if ARMS[name].settings is None:
        return scores_of(model, processor, args.split) | {"minutes": 0.0, "steps": 0}
    report = feedback_report()
    rows = open_training_rows(data, processor.generator_image_size, seed=0)
    rows = with_cached_latents(rows, data, processor, generator, report)
    collator_class = ShuffledCollator if name == "shuffled" else FeedbackCollator
    crop = square_crop(data.crop, processor.generator_image_size)
    collator = collator_class(processor, crop, seed=seed, report=report)

    def trainer_of(steps: int, rate: float) -> FeedbackTrainer:
        options = {"learning_rate": rate, "lr_scheduler_type": "cosine", "warmup_steps": 0.05}
        options = arm_settings(args, folder, steps, seed, **options)
        return FeedbackTrainer(model, options, collator, rows, processing_class=processor, report=report)

    if diva_args.projector_steps:
        model.attach_generator(generator, tower=False)
        trainer_of(diva_args.projector_steps, 1e-3).train()
        model.attach_generator(generator)
    trainer, start = trainer_of(args.steps, rate), time.perf_counter()
    trainer.train()
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return scores_of(model, processor, args.split) | {"losses": losses, "minutes": minutes, "steps": args.steps}


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float]]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return run_arms(ARMS, args, partial(run_arm, args), METRICS, {"steps": "steps", "minutes": "minutes"})


if __name__ == "__main__":
    main()
