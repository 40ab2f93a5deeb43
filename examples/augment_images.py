"""Makes variations of the images of a data set with any diffusers pipeline; run it again to continue.

    python examples/augment_images.py --source my_images/ --output_dir varied/ --strength 0.4 --keep_original true
    torchrun --nproc_per_node 8 examples/augment_images.py --mode inpainting --source 'shards/*.tar' ...
    python examples/augment_images.py --shard 3/16 ...                          # or machine by machine

The output is a folder of parquet shards (image, captions, and where each came from: source, prompt, seed, strength,
pipeline, revision) that `load_pairs` and `load_dataset` read, e.g. `train_fff.py --dataset varied/`.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_clipplus.data.image_variations import MODES, REPORT_KINDS, Varier, write_variations
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.shards import ShardArguments


@dataclass
class AugmentArguments(ShardArguments):
    """Arguments of the augmentation; --help says what each one does."""

    pipeline: str = field(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        metadata={"help": "Pipeline (Hub id or folder) that diffusers loads for the mode."},
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of a pipeline on the Hub."})
    mode: str = field(
        default="image_to_image",
        metadata={"help": "Change the whole image, or paint a random box of it anew.", "choices": list(MODES)},
    )
    strength: float = field(
        default=0.5, metadata={"help": "Share of the way to noise and back, above 0 and at most 1."}
    )
    prompt: str = field(
        default="{caption}", metadata={"help": "Prompt; {caption} stands for the image's (first) caption."}
    )
    variations: int = field(default=1, metadata={"help": "Variations of each image."})
    image_size: int = field(default=512, metadata={"help": "Longer side of the variations in pixels."})
    mask_area: float = field(default=0.25, metadata={"help": "Share of the image that inpainting paints anew."})
    steps: int | None = field(default=None, metadata={"help": "Denoising steps; the pipeline's own when left out."})
    guidance_scale: float | None = field(default=None, metadata={"help": "The pipeline's own when left out."})
    keep_original: bool = field(default=False, metadata={"help": "Write the original images beside the variations."})
    seed: int = field(default=0, metadata={"help": "A row's variations depend on it and on the row alone."})
    batch_size: int = field(default=4, metadata={"help": "Images per call of the pipeline."})


def main() -> None:
    (args,) = HfArgumentParser(AugmentArguments).parse_args_into_dataclasses()
    args.check("augment_images")
    varier = Varier(
        args.pipeline,
        mode=args.mode,
        strength=args.strength,
        prompt=args.prompt,
        variations=args.variations,
        image_size=args.image_size,
        mask_area=args.mask_area,
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        revision=args.revision,
        device=args.device,
    )
    report = DataReport(REPORT_KINDS)
    written, present = write_variations(
        args.open(),
        varier,
        args.output_dir,
        report=report,
        batch_size=args.batch_size,
        keep_original=args.keep_original,
        **args.work(),
    )
    print(f"{written} shards written to {args.output_dir}, {present} were there already. {report.summary()}".strip())


if __name__ == "__main__":
    main()
