"""Writes pseudo-captions for an image data set with any transformers captioner; run it again to continue.

    python examples/recaption.py --source my_images/ --output_dir captioned/ --model microsoft/git-base-coco
    torchrun --nproc_per_node 8 examples/recaption.py --source 'shards/*.tar' --streaming --decoding nucleus ...

The output is a folder of parquet shards (image, caption, pseudo_captions) that `load_pairs` and `load_dataset` read.
"""

import os
from dataclasses import asdict, dataclass, field

import torch
from transformers import HfArgumentParser

from hf_clipplus.data.recaption import REPORT_KINDS, Captioner, check_settings, recaption
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.sources import load_pairs

# What may differ between two runs into one folder without changing what a shard holds.
FREE_SETTINGS = {"output_dir", "batch_size", "process_index", "num_processes", "max_shards", "device", "streaming"}


@dataclass
class RecaptionArguments:
    """Arguments of the recaptioning; --help says what each one does."""

    source: str = field(
        metadata={"help": "Hub data set id, folder of images (with metadata.jsonl/.csv or none), parquet or tar glob."}
    )
    output_dir: str = field(metadata={"help": "Folder of the parquet shards; complete shards in it are skipped."})
    model: str = field(
        default="Salesforce/blip-image-captioning-base",
        metadata={"help": "Captioner (Hub id or folder): BLIP, BLIP-2, GIT, vision-encoder-decoder or a chat model."},
    )
    split: str = field(default="train", metadata={"help": "Split of the source."})
    streaming: bool = field(default=False, metadata={"help": "Read the source while iterating (webdataset shards)."})
    image_column: str | None = field(default=None, metadata={"help": "Image column; a usual name when left out."})
    caption_column: str | None = field(
        default=None, metadata={"help": "Raw caption column, kept in the output; by its usual names when left out."}
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
    shard_size: int = field(default=1000, metadata={"help": "Rows per shard, the unit of resuming."})
    batch_size: int = field(default=16, metadata={"help": "Images per call of the captioner."})
    keep_image: str = field(
        default="bytes",
        metadata={
            "help": "bytes: copy images into the shards; path: keep their paths only.",
            "choices": ["bytes", "path"],
        },
    )
    process_index: int = field(
        default_factory=lambda: int(os.environ.get("RANK", 0)),
        metadata={"help": "Which of the processes this is, from 0; torchrun's RANK when left out."},
    )
    num_processes: int = field(
        default_factory=lambda: int(os.environ.get("WORLD_SIZE", 1)),
        metadata={"help": "How many processes share the shards; torchrun's WORLD_SIZE when left out."},
    )
    max_shards: int | None = field(default=None, metadata={"help": "Stop after this many new shards."})
    device: str | None = field(default=None, metadata={"help": "Device of the captioner; LOCAL_RANK's GPU, or cpu."})

    def __post_init__(self):
        if not 0 <= self.process_index < self.num_processes:
            raise ValueError(f"process_index must be in 0..{self.num_processes - 1}, got {self.process_index}.")
        if self.device is None:
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def main() -> None:
    (args,) = HfArgumentParser(RecaptionArguments).parse_args_into_dataclasses()
    check_settings(args.output_dir, {k: v for k, v in asdict(args).items() if k not in FREE_SETTINGS})
    dataset = load_pairs(
        args.source,
        split=args.split,
        image_column=args.image_column,
        caption_column=args.caption_column,
        streaming=args.streaming,
        require_text=False,
    )
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
        dataset,
        captioner,
        args.output_dir,
        report=report,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        keep_image=args.keep_image,
        process_index=args.process_index,
        num_processes=args.num_processes,
        max_shards=args.max_shards,
    )
    print(f"{written} shards written to {args.output_dir}, {present} were there already. {report.summary()}".strip())


if __name__ == "__main__":
    main()
