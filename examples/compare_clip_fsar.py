"""Compare CLIP-FSAR with frozen features on the embedded clips: actions and drawings that were never trained on.

    python examples/compare_clip_fsar.py                      # every arm, 3 seeds
    python examples/compare_clip_fsar.py --arms frozen_mean frozen_otam --seeds 0

Each arm is tested 1-shot and 5-shot (5-way), and on order-only episodes: all classes show the same frames in different
orders, so that nothing but a metric that knows order can tell them apart. The tower stays frozen, but for one arm. A
run that is on disk with the same settings is not repeated, so that an interrupted comparison goes on, and two commands
with different --seeds and one --output_dir share the work.
"""

import copy
import itertools
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import set_seed

from hf_clipplus.data.episodes import EpisodeCollator, EpisodeSampler, FeatureEpisodes, feature_episode_batch
from hf_clipplus.evaluation.few_shot_video import encode_class_names, encode_videos
from hf_clipplus.evaluation.tables import runs_table
from hf_clipplus.training import EpisodicTrainer, EpisodicTrainingArguments, parse_arguments
from hf_clipplus.training.few_shot_video_build import (
    CLIPFSARModelArguments,
    FewShotVideoArguments,
    build_clip_fsar,
    final_evaluators,
    open_split,
    training_episodes,
    validation_evaluators,
)
from hf_clipplus.training.run import run_once, step_seconds

TRIAL_STEPS = 15
EPISODES_PER_STEP = 4
QUERIES = 3  # of a class in a training episode; published 5
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
        model: fields of `CLIPFSARModelArguments`.
        trained: False scores the frozen tower's own features, without the temporal transformer.
    """

    label: str
    model: dict
    trained: bool = True


ARMS = {
    "frozen_mean": Arm("frozen tower, mean pooling", {"alignment": "mean", "modulate": False}, trained=False),
    "frozen_otam": Arm("frozen tower, OTAM", {"alignment": "otam", "modulate": False}, trained=False),
    "mean": Arm("trained, mean pooling", {"alignment": "mean"}),
    "bimhm": Arm("trained, Bi-MHM", {"alignment": "bimhm"}),
    "otam": Arm("CLIP-FSAR (OTAM)", {}),
    "otam_no_text": Arm("CLIP-FSAR without text modulation", {"modulate": False}),
    "otam_no_video_text": Arm("CLIP-FSAR without the video-text loss", {"video_text_weight": 0.0}),
    "otam_full": Arm("CLIP-FSAR, tower trained too", {"adaptation": "full"}),
}


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Any of: {', '.join(ARMS)}."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each arm."})
    minutes: float = field(default=2.0, metadata={"help": "Training time of each trained arm and seed."})
    steps: int | None = field(default=None, metadata={"help": "Steps of each trained arm instead of a time."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    clips_per_class: int = field(default=40, metadata={"help": "Clips of each action."})
    episodes: int = field(default=10_000, metadata={"help": "Episodes of a test."})
    output_dir: str = field(default="outputs/compare_clip_fsar", metadata={"help": "Records, and table.md."})


def run_arm(arm: Arm, seed: int, args: CompareArguments) -> dict[str, float]:
    """Train one arm and score it on the test actions."""
    set_seed(seed)
    data = FewShotVideoArguments(queries=QUERIES, clips_per_class=args.clips_per_class, eval_episodes=args.episodes)
    settings = CLIPFSARModelArguments(**{"adaptation": "frozen"} | arm.model)
    model, processor = build_clip_fsar(settings, data)
    size = {"image_size": processor.image_processor.resize, "num_frames": settings.num_frames}
    train, val, test = (open_split(data, split, **size) for split in ("train", "val", "test"))
    start, steps = time.perf_counter(), 0
    if arm.trained:
        encoded = encode_videos(model, processor, train)[0], encode_class_names(model, processor, train.class_names)

        def trainer_of(model, steps: int, evaluators=()) -> EpisodicTrainer:
            options = EpisodicTrainingArguments(
                output_dir=str(Path(args.output_dir) / "checkpoints" / f"{arm.label}-{seed}"),
                max_steps=steps,
                per_device_train_batch_size=EPISODES_PER_STEP,
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
            length = steps * EPISODES_PER_STEP
            if settings.adaptation == "frozen":
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
    else:
        model.temporal_transformer.layers = torch.nn.ModuleList()
    seconds = time.perf_counter() - start
    found = {"steps": steps, "minutes": seconds / 60}
    features = encode_videos(model, processor, test)
    texts = encode_class_names(model, processor, test.class_names)
    for evaluator in final_evaluators(data, test):
        scores = evaluator.score(model, features, texts)
        found |= {f"{evaluator.name}_{name}": value for name, value in scores.items() if name != "chance_accuracy"}
        found[f"chance_{evaluator.name}_accuracy"] = scores["chance_accuracy"]
    return found


def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    if unknown := set(args.arms) - set(ARMS):
        raise SystemExit(f"unknown arms {sorted(unknown)}: choose among {', '.join(ARMS)}")
    output = Path(args.output_dir)
    shared = {name: value for name, value in asdict(args).items() if name not in ("arms", "seeds", "output_dir")}
    runs: dict[str, list[dict]] = {}
    for seed, name in itertools.product(args.seeds, args.arms):
        print(f"== {ARMS[name].label}, seed {seed}", flush=True)
        settings = shared | {"arm": asdict(ARMS[name]), "seed": seed}
        record = output / "runs" / f"{name}-{seed}.json"
        scores = run_once(record, settings, lambda name=name, seed=seed: run_arm(ARMS[name], seed, args))
        runs.setdefault(ARMS[name].label, []).append(scores)
        print(runs_table(runs, METRICS, {"steps": "steps", "minutes": "minutes"}), flush=True)
    table = runs_table(runs, METRICS, {"steps": "steps", "minutes": "minutes"})
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()
