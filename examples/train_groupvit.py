"""Train GroupViT (2202.11094): an image encoder that groups patches into segments, learned from captions alone.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it trains a tiny model on the embedded
scenes (several drawings in a picture; their masks are only evaluated on). A run that was stopped goes on from its last
complete checkpoint when started again with the same output_dir.

    python examples/train_groupvit.py
    accelerate launch examples/train_groupvit.py --config examples/configs/groupvit.yaml --dataset my/pairs \\
        --eval_segmentation voc=VOCdevkit/VOC2012 --output_dir outputs/groupvit --push_to_hub

examples/configs/groupvit.yaml holds the published recipe for data of the size of CC12M + YFCC.
"""

from dataclasses import dataclass

from transformers import set_seed

from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import EpochTrainingArguments, PairDataArguments
from hf_clipplus.training.groupvit_build import (
    GroupViTModelArguments,
    build_collator,
    build_model,
    open_evaluators,
    open_training_rows,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save


@dataclass
class TrainingArguments(EpochTrainingArguments):
    """Defaults that suit the embedded scenes on a CPU; every one can be set."""

    output_dir: str | None = "outputs/groupvit"
    num_train_epochs: float = 10
    per_device_train_batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    max_grad_norm: float = 5.0
    lr_scheduler_type: str = "cosine"


def main(argv: list[str] | None = None) -> dict[str, float]:
    model_args, data_args, args = parse_arguments(
        (GroupViTModelArguments, PairDataArguments, TrainingArguments), __doc__, argv
    )
    set_seed(args.seed)
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    if resume:
        model_args.model_name_or_path = resume
    model, processor = build_model(model_args, data_args)
    image_size = model.config.vision_config.image_size
    report = contrastive_report()
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=open_training_rows(model_args, data_args, image_size, args.seed),
        data_collator=build_collator(processor, model_args, data_args, seed=args.seed, report=report),
        processing_class=processor,
        evaluators=open_evaluators(model_args, data_args, image_size),
        report=report,
    )
    return train_and_save(trainer, resume, dataset=data_args.dataset)


if __name__ == "__main__":
    main()
