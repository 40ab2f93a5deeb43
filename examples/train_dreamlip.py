"""Train DreamLIP (2403.17007): K captions per image from long captions, each tied to the patches it describes.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it trains a tiny model on the embedded
scenes (several drawings in a picture, described in sentences). A run that was stopped goes on from its last complete
checkpoint when started again with the same output_dir.

    python examples/train_dreamlip.py
    accelerate launch examples/train_dreamlip.py --config examples/configs/dreamlip_cc3m.yaml \\
        --caption_files cc3m_3long_3short_1raw_captions_url.csv --images cc3m/urls_and_files.csv --push_to_hub

examples/configs/dreamlip_*.yaml hold recipes for the published captions; each says which of its numbers are confirmed.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.evaluation.scenes import scene_evaluators
from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import EpochTrainingArguments, PairDataArguments
from hf_clipplus.training.long_caption_build import (
    ADDED,
    OTHER_IMAGES,
    SUB_CAPTION_LOSS,
    StartArguments,
    SubCaptionArguments,
    build_collator,
    open_evaluators,
    open_rows,
    start_model,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save


@dataclass
class DreamLIPArguments:
    """The losses of DreamLIP, see `DreamLIPConfig`."""

    use_grouping_loss: bool = field(default=True, metadata={"help": "Tie captions to patches."})
    grouping_loss_weight: float = field(default=1.0, metadata={"help": "Weight of that loss."})
    grouping_negatives: str = field(
        default="cross_image",
        metadata={
            "help": "'cross_image' (only patches differ; what taught patches in our runs, see PAPERS.md), 'batch' "
            "(published code) or 'within_image' (paper)."
        },
    )
    max_grouping_negatives: int | None = field(
        default=OTHER_IMAGES,
        metadata={"help": "Images beside its own for a caption with 'cross_image'."},
    )
    grouping_normalization: str = field(default="minmax", metadata={"help": "Of similarities: 'minmax' or 'softmax'."})
    grouping_threshold: float = field(
        default=-1.0,
        metadata={"help": "Patches below it are cut off; negative: 1 / patches; 0: none (published code)."},
    )
    use_circle_loss: bool = field(default=False, metadata={"help": "Add the circle loss, as the published code can."})


@dataclass
class TrainingArguments(EpochTrainingArguments):
    """Defaults that suit the embedded scenes on a CPU; every one can be set."""

    output_dir: str | None = "outputs/dreamlip"
    num_train_epochs: float = 15
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    lr_schedule: str | None = "open_clip"


def main(argv: list[str] | None = None) -> dict[str, float]:
    start, captions, losses, data, args = parse_arguments(
        (StartArguments, SubCaptionArguments, DreamLIPArguments, PairDataArguments, TrainingArguments), __doc__, argv
    )
    if data.equal_texts_are_positive:
        raise SystemExit(
            "--equal_texts_are_positive: DreamLIP's loss has one image for a caption; examples/train_combined.py has "
            "the loss with several."
        )
    set_seed(args.seed)
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    if resume:
        start.model_name_or_path = resume
    model, processor = start_model(
        DreamLIPModel,
        DreamLIPProcessor,
        start,
        data,
        added=ADDED,
        captions_per_image=captions.captions_per_image,
        **SUB_CAPTION_LOSS,
        **vars(losses),
    )
    image_size = picture_side(model.config)
    report = contrastive_report()
    options = {"start": start, "seed": args.seed, "report": report}
    collator = build_collator(processor, data, captions.sampler_of_rows(), **options)
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=open_rows(start, data, image_size, args.seed),
        data_collator=collator,
        processing_class=processor,
        evaluators=open_evaluators(start, data, scene_evaluators, image_size, args.per_device_eval_batch_size),
        report=report,
    )
    return train_and_save(trainer, resume, dataset=data.dataset)


if __name__ == "__main__":
    main()
