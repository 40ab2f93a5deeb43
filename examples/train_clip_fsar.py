"""Train CLIP-FSAR (2303.02982): few-shot video recognition with CLIP, prototypes modulated by class texts.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it trains the embedded encoder on the
embedded clips, whose actions differ from those of validation and test. A run that was stopped goes on from its last
complete checkpoint when started again with the same output_dir.

    python examples/train_clip_fsar.py
    accelerate launch examples/train_clip_fsar.py --dataset path/to/hmdb51 --preset hmdb51 \\
        --model_name_or_path openai/clip-vit-base-patch16 --output_dir outputs/clip_fsar --push_to_hub

A preset sets steps, schedule, optimizer, episodes of a step, frame sampling and the loss's weight as published (for
RN50: nothing is published for ViT).
"""

from dataclasses import dataclass

from transformers import set_seed

from hf_clipplus.data.episodes import EpisodeCollator
from hf_clipplus.training import EpisodicTrainer, parse_arguments
from hf_clipplus.training.few_shot_video_build import (
    PUBLISHED_EPISODES_PER_STEP,
    PUBLISHED_WEIGHT_DECAY,
    RECIPES,
    CLIPFSARModelArguments,
    ClipTrainingArguments,
    FewShotVideoArguments,
    build_clip_fsar,
    final_evaluators,
    open_split,
    training_episodes,
    validation_evaluators,
    with_lora,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save
from hf_clipplus.training.schedules import EpisodeSteps


@dataclass
class TrainingArguments(ClipTrainingArguments):
    """Defaults of this model; the others are those of `ClipTrainingArguments`."""

    output_dir: str | None = "outputs/clip_fsar"
    learning_rate: float = 2e-4
    weight_decay: float = 1e-3


def apply_preset(data: FewShotVideoArguments, args: TrainingArguments) -> EpisodeSteps | None:
    """The published recipe of a data set put into the arguments; gives its schedule."""
    if data.preset is None:
        return None
    recipe = RECIPES[data.preset]
    per_step = PUBLISHED_EPISODES_PER_STEP // args.world_size
    args.gradient_accumulation_steps = max(1, per_step // args.per_device_train_batch_size)
    args.max_steps = recipe.episodes // recipe.steps.iterations_per_step
    args.eval_steps = args.save_steps = recipe.evaluate_every // recipe.steps.iterations_per_step
    args.learning_rate, args.weight_decay = recipe.steps.base_lr, PUBLISHED_WEIGHT_DECAY
    args.published_optimizer, args.seed = True, recipe.seed
    return recipe.steps


def main(argv: list[str] | None = None) -> dict[str, float]:
    model_args, data, args = parse_arguments(
        (CLIPFSARModelArguments, FewShotVideoArguments, TrainingArguments), __doc__, argv
    )
    steps = apply_preset(data, args)
    set_seed(args.seed)
    model, processor = build_clip_fsar(model_args, data)
    size = {"image_size": processor.image_processor.resize, "num_frames": model_args.num_frames}
    train, val, test = (open_split(data, split, **size) for split in ("train", "val", "test"))
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    episodes, report = training_episodes(data, train, processor, length=args.max_steps * per_step, seed=args.seed)
    adapted = model
    if model_args.adaptation == "lora":
        adapted = with_lora(model, model_args.lora_rank, ["temporal_transformer"])
    trainer = EpisodicTrainer(
        model=adapted,
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
