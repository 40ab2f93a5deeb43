"""Writes pseudo-captions for an image data set with any transformers captioner; run it again to continue.

    python examples/recaption.py --source my_images/ --output_dir captioned/ --model microsoft/git-base-coco
    torchrun --nproc_per_node 8 examples/recaption.py --source 'shards/*.tar' --streaming --decoding nucleus ...

The output is a folder of parquet shards (image, caption, pseudo_captions) that `load_pairs` and `load_dataset` read.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_clipplus.data.recaption import REPORT_KINDS, Captioner, recaption
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.shards import ShardArguments


@dataclass
class RecaptionArguments(ShardArguments):
    """Arguments of the recaptioning; --help says what each one does."""

    model: str = field(
        default="Salesforce/blip-image-captioning-base",
        metadata={"help": "Captioner (Hub id or folder): BLIP, BLIP-2, GIT, vision-encoder-decoder or a chat model."},
    )
    captions_per_image: int = field(default=5, metadata={"help": "Captions per image; equal ones are written once."})
    decoding: str = field(
        default="beam",
        metadata={"help": "beam: the best of as many beams; nucleus: random samples.", "choices": ["beam", "nucleus"]},
    )
    top_p: float = field(default=0.9, metadata={"help": "Probability mass that nucleus sampling draws from."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of nucleus sampling."})
    max_new_tokens: int = field(default=30, metadata={"help": "Longest caption in tokens."})
    prompt: str | None = field(
        default=None, metadata={"help": "Text that the captioner continues; the instruction for a chat model."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of nucleus sampling; a row's captions depend on it alone."})
    batch_size: int = field(default=16, metadata={"help": "Images per call of the captioner."})
    keep_image: str = field(
        default="bytes",
        metadata={
            "help": "bytes: copy images into the shards; path: keep their paths only.",
            "choices": ["bytes", "path"],
        },
    )


def main() -> None:
    (args,) = HfArgumentParser(RecaptionArguments).parse_args_into_dataclasses()
    args.check("recaption")
    captioner = Captioner(
        args.model,
        captions_per_image=args.captions_per_image,
        decoding=args.decoding,
        top_p=args.top_p,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        prompt=args.prompt,
        seed=args.seed,
        device=args.device,
    )
    report = DataReport(REPORT_KINDS)
    written, present = recaption(
        args.open(),
        captioner,
        args.output_dir,
        report=report,
        batch_size=args.batch_size,
        keep_image=args.keep_image,
        **args.work(),
    )
    print(f"{written} shards written to {args.output_dir}, {present} were there already. {report.summary()}".strip())


if __name__ == "__main__":
    main()
