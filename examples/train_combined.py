"""Train one model by DreamLIP's sub-captions and patches, FFF's sigmoid loss and mined positives, and hard negatives.

The model is a `DreamLIPModel` with `contrastive_loss="sigmoid"`: sentences of long captions stand in the batch, each
tied to the patches that it describes; a sentence that several images share is positive for all of them (equal texts,
mined pairs), a false one (--hard_negatives) for none. Works with `python`, `torchrun` and `accelerate launch`; a run
that was stopped goes on from its last complete checkpoint when started again with the same output_dir.

    python examples/train_combined.py                                     # a tiny model on the embedded scenes
    accelerate launch examples/train_combined.py --model_name_or_path openai/clip-vit-base-patch16 \\
        --caption_files cc3m_3long_3short_1raw_captions_url.csv --images cc3m/urls_and_files.csv \\
        --mining_features frozen_model --mining_model_name openai/clip-vit-base-patch32 --p1 0.27 --p1_gate 0.24

Thresholds of mining are those of one feature model: `hf_clipplus.training.calibrate` proposes them for yours.
"""

from dataclasses import dataclass, field

from transformers import AutoConfig, set_seed

from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.evaluation.scenes import fine_grained_scenes, scene_evaluators
from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import EpochTrainingArguments, PairDataArguments
from hf_clipplus.training.build import choose_bias, open_mining_model
from hf_clipplus.training.long_caption_build import (
    ADDED,
    OTHER_IMAGES,
    StartArguments,
    SubCaptionArguments,
    build_collator,
    open_evaluators,
    open_rows,
    start_model,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save


@dataclass
class CombinedArguments:
    """The losses, see `DreamLIPConfig`; the thresholds suit online mining by a tiny model."""

    use_grouping_loss: bool = field(default=True, metadata={"help": "Tie captions to patches (DreamLIP)."})
    grouping_negatives: str = field(
        default="cross_image", metadata={"help": "'cross_image', 'batch' or 'within_image', see train_dreamlip.py."}
    )
    max_grouping_negatives: int | None = field(
        default=OTHER_IMAGES, metadata={"help": "Images beside its own for a caption with 'cross_image'."}
    )
    mining_features: str = field(
        default="online",
        metadata={
            "help": "What positives are mined from (FFF): 'online' (the model itself, after the warm-up), "
            "'frozen_model' (mining_model_name), 'precomputed' (columns), or 'none': equal texts and images only."
        },
    )
    mining_model_name: str | None = field(default=None, metadata={"help": "Frozen CLIP that mines."})
    mining_warmup_steps: int = field(default=450, metadata={"help": "Steps before online mining begins."})
    p1: float = field(default=0.8, metadata={"help": "Image-text threshold."})
    p1_gate: float = field(default=0.4, metadata={"help": "Image-text threshold of the gate on image-image pairs."})
    p2: float = field(default=0.95, metadata={"help": "Image-image threshold."})
    p3: float = field(default=0.98, metadata={"help": "Text-text threshold."})

    def config(self) -> dict:
        """Fields of `DreamLIPConfig`."""
        mining = None if self.mining_features == "none" else self.mining_features
        return vars(self) | {"contrastive_loss": "sigmoid", "mining_features": mining}


@dataclass
class DataArguments(PairDataArguments):
    """Sentences that are true of several images are positive for all of them."""

    equal_texts_are_positive: bool = field(
        default=True, metadata={"help": "A caption that stands under two images of a batch is positive for both."}
    )
    hard_negatives: int = field(
        default=1, metadata={"help": "False captions of each image, made of its captions, that are negatives for all."}
    )


@dataclass
class TrainingArguments(EpochTrainingArguments):
    """Defaults that suit the embedded scenes on a CPU; every one can be set."""

    output_dir: str | None = "outputs/combined"
    num_train_epochs: float = 15
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    lr_schedule: str | None = "open_clip"


def evaluators_of_scenes(split: str, *, image_size: int, batch_size: int) -> list:
    """Retrieval, pointing, and pairs that differ in one thing."""
    options = {"image_size": image_size, "batch_size": batch_size}
    return [*scene_evaluators(split, **options), fine_grained_scenes(split, **options)]


def bias_is_open(name: str | None) -> bool:
    """Whether a start has no bias of a sigmoid loss yet."""
    return name is None or getattr(AutoConfig.from_pretrained(name), "contrastive_loss", None) != "sigmoid"


def main(argv: list[str] | None = None) -> dict[str, float]:
    start, captions, losses, data, args = parse_arguments(
        (StartArguments, SubCaptionArguments, CombinedArguments, DataArguments, TrainingArguments), __doc__, argv
    )
    set_seed(args.seed)
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    if resume:
        start.model_name_or_path = resume
    config = losses.config() | {"captions_per_image": captions.captions_per_image}
    added = (*ADDED, "logit_bias")
    model, processor = start_model(DreamLIPModel, DreamLIPProcessor, start, data, added=added, **config)
    image_size = picture_side(model.config)
    rows = open_rows(start, data, image_size, args.seed)
    mining_model, mining_processor = open_mining_model(
        losses.mining_model_name, losses.mining_features, args.label_cluster_features
    )
    report = contrastive_report()
    options = {"start": start, "seed": args.seed, "report": report, "mining_processor": mining_processor}
    collator = build_collator(processor, data, captions.sampler_of_rows(), **options)
    if args.bias_init == "auto" and bias_is_open(start.model_name_or_path):
        bias = choose_bias(model, rows, collator, args.per_device_train_batch_size)
        print(f"first bias, from the share of positives in a few batches: {bias:.3f}")
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        evaluators=open_evaluators(start, data, evaluators_of_scenes, image_size, args.per_device_eval_batch_size),
        mining_model=mining_model,
        report=report,
    )
    return train_and_save(trainer, resume, dataset=data.dataset)


if __name__ == "__main__":
    main()
