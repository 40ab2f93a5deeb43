"""Train Long-CLIP (2403.15378): a CLIP whose texts may be three times as long, fine-tuned on long captions.

Works with `python`, `torchrun` and `accelerate launch`. Without arguments it stretches the embedded tiny CLIP from 32
to 68 tokens and trains it on the embedded scenes. A run that was stopped goes on from its last complete checkpoint
when started again with the same output_dir.

    python examples/train_longclip.py
    accelerate launch examples/train_longclip.py --config examples/configs/longclip.yaml --dataset my/long-captions \\
        --model_name_or_path openai/clip-vit-base-patch16 --output_dir outputs/longclip --push_to_hub

examples/configs/longclip.yaml holds the published recipe.
"""

from dataclasses import dataclass, field
from math import log

import torch
from transformers import AutoConfig, set_seed

from hf_clipplus.data.clipart import EMBEDDED
from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.data.sub_captions import LongAndShortCaption
from hf_clipplus.evaluation.scenes import long_text_evaluators
from hf_clipplus.models.configuration_finer_vision import picture_side
from hf_clipplus.models.longclip import LongCLIPModel, LongCLIPProcessor
from hf_clipplus.training import ContrastiveTrainer, parse_arguments
from hf_clipplus.training.arguments import EpochTrainingArguments, PairDataArguments
from hf_clipplus.training.long_caption_build import (
    StartArguments,
    build_collator,
    open_evaluators,
    open_rows,
    start_model,
)
from hf_clipplus.training.run import checkpoint_to_resume, train_and_save
from hf_clipplus.training.start import ENCODER

FIRST_SCALE = 100.0  # published: the inverse temperature starts here again


@dataclass
class LongCLIPArguments:
    """How positions are stretched, and the losses; see `LongCLIPConfig`."""

    kept: int = field(default=20, metadata={"help": "First positions that stay as they are, and are not trained."})
    ratio: int = field(default=4, metadata={"help": "How many positions one of the others becomes."})
    components: int = field(default=32, metadata={"help": "Components of the images that short captions match."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Of both losses."})
    short_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the loss of short captions."})

    def config(self) -> dict[str, float]:
        """Fields of `LongCLIPConfig`."""
        values = {name: value for name, value in vars(self).items() if name not in ("kept", "ratio")}
        return values | {"frozen_positions": self.kept}


@dataclass
class TrainingArguments(EpochTrainingArguments):
    """Defaults that suit the embedded scenes on a CPU; every one can be set."""

    output_dir: str | None = "outputs/longclip"
    num_train_epochs: float = 10
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    lr_scheduler_type: str = "cosine"


def main(argv: list[str] | None = None) -> dict[str, float]:
    start, options, data, args = parse_arguments(
        (StartArguments, LongCLIPArguments, PairDataArguments, TrainingArguments), __doc__, argv
    )
    set_seed(args.seed)
    resume = checkpoint_to_resume(args.output_dir, args.resume_from_checkpoint)
    start.model_name_or_path = resume or start.model_name_or_path or str(ENCODER)
    model, processor = start_model(LongCLIPModel, LongCLIPProcessor, start, data, **options.config())
    if AutoConfig.from_pretrained(start.model_name_or_path).model_type != model.config_class.model_type:
        processor.tokenizer.model_max_length = model.extend_context(kept=options.kept, ratio=options.ratio)
        with torch.no_grad():
            model.logit_scale.fill_(log(FIRST_SCALE))
    image_size = picture_side(model.config)
    choose = LongAndShortCaption("long_caption" if data.dataset == EMBEDDED else "caption")
    report = contrastive_report()
    collator = build_collator(processor, data, choose, start=start, seed=args.seed, report=report)
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=open_rows(start, data, image_size, args.seed),
        data_collator=collator,
        processing_class=processor,
        evaluators=open_evaluators(start, data, long_text_evaluators, image_size, args.per_device_eval_batch_size),
        report=report,
    )
    return train_and_save(trainer, resume, dataset=data.dataset)


if __name__ == "__main__":
    main()
