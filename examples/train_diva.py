"""Train DIVA (2407.20171): a frozen diffusion model's noise prediction tunes CLIP's visual tower, from pictures alone.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it tunes the embedded encoder by the small
diffusion model that examples/train_tiny_diffusion.py makes. A run that was stopped goes on from its last complete
checkpoint when started again with the same output_dir.

    python examples/train_tiny_diffusion.py && python examples/train_diva.py
    accelerate launch examples/train_diva.py --config examples/configs/diva.yaml --preset openai-l14-224 \\
        --generator path/to/stable-diffusion-2-1-base --dataset 'cc3m/*.tar' --mmvp MMVP_VLM --output_dir outputs/diva

examples/configs/diva.yaml holds the published recipe (SGD), diva_two_stage.yaml the stronger one of the follow-ups.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from transformers import set_seed

from hf_clipplus.data.feedback import feedback_report
from hf_clipplus.training import ContrastiveTrainingArguments, parse_arguments
from hf_clipplus.training.diva_build import (
    DIVAArguments,
    PictureArguments,
    build_collator,
    build_generator,
    build_model,
    open_evaluators,
    open_training_rows,
    with_cached_latents,
)
from hf_clipplus.training.feedback_trainer import FeedbackTrainer, with_lora
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save


@dataclass
class TrainingArguments(ContrastiveTrainingArguments):
    """Defaults that suit the embedded drawings on a CPU; every one can be set."""

    output_dir: str | None = "outputs/diva"
    max_steps: int = 300
    per_device_train_batch_size: int = 32
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    eval_strategy: str = "no"
    save_strategy: str = "steps"
    save_steps: float = 100
    save_total_limit: int | None = 2
    logging_steps: float = 10
    dataloader_drop_last: bool = True


def main(argv: list[str] | None = None) -> dict[str, float]:
    diva_args, data_args, args = parse_arguments((DIVAArguments, PictureArguments, TrainingArguments), __doc__, argv)
    set_seed(args.seed)
    generator = build_generator(diva_args)
    model, processor = build_model(diva_args, generator)
    if args.gradient_checkpointing:
        generator.unet.enable_gradient_checkpointing()
    report = feedback_report()
    rows = open_training_rows(data_args, processor.generator_image_size, args.seed)
    if data_args.cache_latents:
        rows = with_cached_latents(rows, data_args, processor, generator, report)
    collator = build_collator(processor, data_args, args.seed, report)

    def trainer_of(model, args, evaluators=()) -> FeedbackTrainer:
        return FeedbackTrainer(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=collator,
            processing_class=processor,
            evaluators=evaluators,
            report=report,
        )

    if diva_args.projector_steps:
        train_projector(model, generator, diva_args, args, trainer_of)
    model.attach_generator(generator, projector=not diva_args.freeze_projector)
    trained = with_lora(model, train_projector=not diva_args.freeze_projector) if diva_args.lora else model
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    evaluators = open_evaluators(data_args, model.config.vision_config.image_size)
    before = {}
    for evaluator in evaluators:
        before |= {f"before_{evaluator.name}_{key}": value for key, value in evaluator(model, processor).items()}
    print("\n".join(f"{name:60} {value:.4f}" for name, value in before.items()))
    return before | train_and_save(trainer_of(trained, args, evaluators), resume, dataset=data_args.dataset)


def train_projector(model, generator, diva_args: DIVAArguments, args: TrainingArguments, trainer_of) -> None:
    """The first of two stages: the projector alone, the tower frozen; kept in `output_dir/projector`."""
    first = copy.copy(args)
    first.output_dir = str(Path(args.output_dir) / "projector")
    first.max_steps, first.learning_rate = diva_args.projector_steps, diva_args.projector_learning_rate
    first.eval_strategy, first.push_to_hub = "no", False
    done = Path(first.output_dir) / "model.safetensors"
    if not done.exists():
        model.attach_generator(generator, tower=False)
        trainer = trainer_of(model, first)
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(first.output_dir, args.resume_from_checkpoint))
        trainer.save_model()
    weights = {key: value for key, value in load_file(done).items() if key.startswith("visual_proj.")}
    model.load_state_dict(weights, strict=False)


if __name__ == "__main__":
    main()
