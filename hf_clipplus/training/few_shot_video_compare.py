"""What comparisons of few-shot video models share: train an arm for a time or for steps, test it, go on later."""

import copy
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_clipplus.data.episodes import EpisodeCollator, EpisodeSampler, FeatureEpisodes, feature_episode_batch
from hf_clipplus.evaluation.few_shot_video import encode_class_names, encode_split, encode_videos
from hf_clipplus.evaluation.tables import runs_table

from .episodic import EpisodicTrainer, EpisodicTrainingArguments
from .few_shot_video_build import (
    FewShotVideoArguments,
    final_evaluators,
    open_split,
    training_episodes,
    validation_evaluators,
)
from .run import run_once, step_seconds

TRIAL_STEPS = 15
QUERIES = 3  # of a class in a training episode; CLIP-FSAR published 5
METRICS = {
    "1-shot": "test_1_shot_accuracy",
    "5-shot": "test_5_shot_accuracy",
    "order-only, 1-shot": "test_1_shot_order_only_accuracy",
    "order-only, 5-shot": "test_5_shot_order_only_accuracy",
}


@dataclass(frozen=True)
class Arm:
    """One way to compare videos, and whether the model is trained for it.

    Args:
        label: in the table.
        model: fields of the variant's model arguments.
        trained: False scores the model as it is built.
    """

    label: str
    model: dict
    trained: bool = True


@dataclass
class ComparisonArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(default_factory=list, metadata={"help": "Names of arms; all when left alone."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    minutes: float = field(default=2.0, metadata={"help": "Training time of each trained arm and seed."})
    steps: int | None = field(default=None, metadata={"help": "Steps of each trained arm instead of a time."})
    episodes_per_step: int = field(default=4, metadata={"help": "Training episodes of a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    clips_per_class: int = field(default=40, metadata={"help": "Clips of each action."})
    episodes: int = field(default=10_000, metadata={"help": "Episodes of a test."})
    output_dir: str = field(default="outputs/compare", metadata={"help": "Records, and table.md."})


def compare(
    args: ComparisonArguments,
    arms: Mapping[str, Arm],
    build: Callable[[Arm, FewShotVideoArguments], tuple[Any, Any]],
    facts: Mapping[str, str],
) -> dict[str, list[dict]]:
    """Run every arm and seed that is not on disk, print the table after each, and write it.

    Args:
        args: see `ComparisonArguments`.
        arms: by name.
        build: the model and the processor of an arm; a model whose parameters are trained where they want a gradient.
        facts: further columns of the table, heading -> what `run_arm` calls it.

    Returns:
        Scores of the runs by label.
    """
    if unknown := set(args.arms) - set(arms):
        raise SystemExit(f"unknown arms {sorted(unknown)}: choose among {', '.join(arms)}")
    output = Path(args.output_dir)
    shared = {name: value for name, value in asdict(args).items() if name not in ("arms", "seeds", "output_dir")}
    runs: dict[str, list[dict]] = {}
    for seed, name in itertools.product(args.seeds, args.arms or list(arms)):
        arm = arms[name]
        print(f"== {arm.label}, seed {seed}", flush=True)
        settings = shared | {"arm": asdict(arm), "seed": seed}
        record = output / "runs" / f"{name}-{seed}.json"
        scores = run_once(record, settings, lambda arm=arm, seed=seed: run_arm(arm, seed, args, build))
        runs.setdefault(arm.label, []).append(scores)
        print(runs_table(runs, METRICS, dict(facts)), flush=True)
    (output / "table.md").write_text(runs_table(runs, METRICS, dict(facts)) + "\n", encoding="utf-8")
    return runs


def run_arm(arm: Arm, seed: int, args: ComparisonArguments, build: Callable) -> dict[str, float]:
    """Train one arm and score it on the test actions; a tower of which nothing is trained encodes each video once."""
    set_seed(seed)
    data = FewShotVideoArguments(queries=QUERIES, clips_per_class=args.clips_per_class, eval_episodes=args.episodes)
    model, processor = build(arm, data)
    frames = processor.image_processor
    size = {"image_size": frames.resize, "num_frames": frames.num_frames}
    train, val, test = (open_split(data, split, **size) for split in ("train", "val", "test"))
    start, steps = time.perf_counter(), 0
    if arm.trained:
        frozen = not any(each.requires_grad for each in model.vision_model.parameters())
        if frozen:
            texts = encode_class_names(model, processor, train.class_names)
            encoded = encode_videos(model, processor, train)[0], texts

        def trainer_of(model, steps: int, evaluators=()) -> EpisodicTrainer:
            options = EpisodicTrainingArguments(
                output_dir=str(Path(args.output_dir) / "checkpoints" / f"{arm.label}-{seed}"),
                max_steps=steps,
                per_device_train_batch_size=args.episodes_per_step,
                learning_rate=args.learning_rate,
                weight_decay=1e-3,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                eval_strategy="steps" if evaluators else "no",
                eval_steps=max(1, steps // 4),
                save_strategy="no",
                logging_steps=max(1, steps // 20),
                report_to=[],
                seed=seed,
            )
            length = steps * args.episodes_per_step
            if frozen:
                sampler = EpisodeSampler(train.labels, way=data.way, shots=data.shots, queries=data.queries, seed=seed)
                episodes, collator = FeatureEpisodes(*encoded, sampler, length=length), feature_episode_batch
            else:
                episodes, _ = training_episodes(data, train, processor, length=length, seed=seed)
                collator = EpisodeCollator(processor, train.class_names)
            return EpisodicTrainer(
                model, options, collator, episodes, processing_class=processor, evaluators=evaluators
            )

        steps = args.steps or int(60 * args.minutes / step_seconds(trainer_of(copy.deepcopy(model), TRIAL_STEPS)))
        start = time.perf_counter()
        trainer_of(model, steps, validation_evaluators(data, val)).train()
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad) if arm.trained else 0
    found = {"steps": steps, "minutes": (time.perf_counter() - start) / 60, "trained_parameters": trained}
    encoded = encode_split(model, processor, test)
    for evaluator in final_evaluators(data, test):
        scores = evaluator.score(model, *encoded)
        found |= {f"{evaluator.name}_{name}": value for name, value in scores.items() if name != "chance_accuracy"}
        found[f"chance_{evaluator.name}_accuracy"] = scores["chance_accuracy"]
    return found
