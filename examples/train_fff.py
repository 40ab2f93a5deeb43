"""Train FFF (2405.10286): CLIP towers, several captions per image in the batch, mined positives, sigmoid loss.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it trains a tiny model on the embedded
drawings. A run that was stopped goes on from its last complete checkpoint when started again with the same output_dir.

    python examples/train_fff.py
    accelerate launch examples/train_fff.py --dataset my/images --caption_column text \\
        --model_name_or_path openai/clip-vit-base-patch32 --output_dir outputs/fff --bf16 --push_to_hub

The defaults for ViT-B on web data are the recipe of FFF's main baseline, ALIP (AdamW, lr 1e-3, weight decay 0.2, betas
0.9/0.98, 10% warm-up, cosine, clip 1); FFF's own recipe is not published: --config examples/configs/fff_vit_b32.yaml
"""

from dataclasses import dataclass

from transformers import set_seed

from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import EpochTrainingArguments, PairDataArguments
from hf_clipplus.training.build import (
    FFFModelArguments,
    build_collator,
    build_model,
    choose_bias,
    open_evaluators,
    open_mining_model,
    open_training_rows,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save


@dataclass
class TrainingArguments(EpochTrainingArguments):
    """Defaults that suit the embedded drawings on a CPU; every one can be set."""

    output_dir: str | None = "outputs/fff"
    num_train_epochs: float = 40
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    lr_scheduler_type: str = "cosine"


def main(argv: list[str] | None = None) -> dict[str, float]:
    model_args, data_args, args = parse_arguments(
        (FFFModelArguments, PairDataArguments, TrainingArguments), __doc__, argv
    )
    set_seed(args.seed)
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    if resume:
        model_args.model_name_or_path = resume
    model, processor, bias_is_open = build_model(model_args, data_args)
    image_size = picture_side(model.config)
    rows = open_training_rows(data_args, image_size)
    report = contrastive_report()

    mining_model, mining_processor = open_mining_model(
        model_args.mining_model_name, model_args.mining_features, args.label_cluster_features
    )
    collator = build_collator(processor, model_args, data_args, args.seed, report, mining_processor=mining_processor)
    if bias_is_open and args.bias_init == "auto" and model.config.contrastive_loss == "sigmoid":
        bias = choose_bias(model, rows, collator, args.per_device_train_batch_size)
        print(f"first bias, from the share of positives in a few batches: {bias:.3f}")

    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        evaluators=open_evaluators(data_args, image_size, args.per_device_eval_batch_size),
        mining_model=mining_model,
        report=report,
    )
    return train_and_save(trainer, resume, dataset=data_args.dataset)


if __name__ == "__main__":
    main()
