"""Train MA-CLIP (2308.01532): few-shot video recognition by adapters inside frozen CLIP, as a PEFT adapter.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it trains the embedded encoder on the
embedded clips, whose actions differ from those of validation and test. A run that was stopped goes on from its last
complete checkpoint when started again with the same output_dir. The adapter is saved in output_dir, its frozen base
in output_dir/base; `--push_to_hub` pushes both, the base as <hub_model_id>-base.

    python examples/train_ma_clip.py
    python examples/train_ma_clip.py --alignment trx --fitting lora
    accelerate launch examples/train_ma_clip.py --dataset path/to/ssv2 --preset ssv2_small \\
        --model_name_or_path openai/clip-vit-base-patch16 --temporal_heads 8 --temporal_ffn_dim 2048 \\
        --output_dir outputs/ma_clip --push_to_hub

MA-CLIP's training settings are not confirmed; a preset takes those that D2ST-Adapter, the same task with adapters on
the same tower, published.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed

from hf_clipplus.data.episodes import EpisodeCollator
from hf_clipplus.data.video_views import CROP_ONLY
from hf_clipplus.training import EpisodicTrainer, parse_arguments
from hf_clipplus.training.adapter_base import save_base
from hf_clipplus.training.few_shot_video_build import (
    ClipTrainingArguments,
    FewShotVideoArguments,
    final_evaluators,
    open_split,
    training_episodes,
    validation_evaluators,
)
from hf_clipplus.training.ma_clip_build import (
    DEVICES,
    ITERATIONS_PER_STEP,
    RECIPES,
    WEIGHT_DECAY,
    MACLIPModelArguments,
    build_ma_clip,
    describe_trainable,
    fit_of,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save
from hf_clipplus.training.schedules import EpisodeSteps


@dataclass
class TrainingArguments(ClipTrainingArguments):
    """Defaults of this model; the others are those of `ClipTrainingArguments`."""

    output_dir: str | None = "outputs/ma_clip"
    learning_rate: float = 1e-3
    weight_decay: float = WEIGHT_DECAY


def apply_preset(data: FewShotVideoArguments, args: TrainingArguments) -> EpisodeSteps | None:
    """The recipe of a data set put into the arguments; gives its schedule."""
    if data.preset is None:
        return None
    recipe = RECIPES[data.preset]
    per_step = ITERATIONS_PER_STEP * DEVICES // args.world_size
    args.gradient_accumulation_steps = max(1, per_step // args.per_device_train_batch_size)
    args.max_steps = recipe.episodes // ITERATIONS_PER_STEP
    args.eval_steps = args.save_steps = max(1, recipe.evaluate_every // ITERATIONS_PER_STEP)
    args.learning_rate, args.published_optimizer, data.queries = recipe.steps.base_lr, True, 1
    return recipe.steps


def main(argv: list[str] | None = None) -> dict[str, float]:
    model_args, data, args = parse_arguments(
        (MACLIPModelArguments, FewShotVideoArguments, TrainingArguments), __doc__, argv
    )
    steps = apply_preset(data, args)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # every trained parameter has a part in every step
    set_seed(args.seed)
    base, processor = build_ma_clip(model_args, data)
    if model_args.fitting in ("adapters", "lora"):
        save_base(base, processor, args.output_dir, args.hub_model_id or Path(args.output_dir).name)
    model = fit_of(base, model_args)
    print(describe_trainable(model))
    size = {"image_size": processor.image_processor.resize, "num_frames": model_args.num_frames}
    train, val, test = (open_split(data, split, **size) for split in ("train", "val", "test"))
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    shown = {"length": args.max_steps * per_step, "seed": args.seed, "query_view": CROP_ONLY}
    episodes, report = training_episodes(data, train, processor, **shown)
    trainer = EpisodicTrainer(
        model=model,
        args=args,
        train_dataset=episodes,
        data_collator=EpisodeCollator(processor, train.class_names),
        processing_class=processor,
        evaluators=validation_evaluators(data, val),
        steps=steps,
        report=report,
    )
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    return train_and_save(trainer, resume, tests=final_evaluators(data, test), dataset=data.dataset)


if __name__ == "__main__":
    main()
