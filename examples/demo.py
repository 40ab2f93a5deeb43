"""The demonstration behind `make demo`: train FFF and CLIP for as long, compare, draw a gallery, load what was saved.

python examples/demo.py                     # about 6 minutes of training on 2 cores
python examples/demo.py --minutes 0.2       # only to see that it runs
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from compare_fff import ARMS, CompareArguments, run_arm, table
from transformers import AutoModel, AutoProcessor

import hf_clipplus  # noqa: F401  registers the zoo's models with AutoModel
from hf_clipplus.data.clipart import CaptionWorld, load_drawings, query_captions
from hf_clipplus.data.sources import iterate
from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.gallery import retrieval_gallery
from hf_clipplus.training import parse_arguments

FRESH_PROCESS = """
import sys, torch, hf_clipplus
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
folder, picture = sys.argv[1:]
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
batch = processor(images=Image.open(picture), text=["a bird", "a car"], return_tensors="pt")
print(f"  AutoModel      {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")
print(f"  AutoProcessor  {type(processor).__name__}: {', '.join(f'{k} {list(v.shape)}' for k, v in batch.items())}")
classify = pipeline("zero-shot-image-classification", model=folder)
labels = ["fruit", "bird", "boat", "musical instrument", "computer", "flag"]
answer = classify(picture, candidate_labels=labels, hypothesis_template="a drawing of a {}")
print("  pipeline       " + ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in answer))
"""


@dataclass
class DemoArguments:
    """How long, and where to."""

    minutes: float = field(default=2.7, metadata={"help": "Training time of each of the two arms."})
    output_dir: str = field(default="outputs/demo", metadata={"help": "Models, table and pictures."})


def gallery(folder: Path, output: Path) -> None:
    """Draw text query -> best held-out drawings and drawing -> best texts."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    drawings = load_drawings("test")
    model_side, shown_side = model.config.vision_config.image_size, 112
    seen, shown = (CaptionWorld(drawings, image_size=side, train=False) for side in (model_side, shown_side))
    images = [row["image"] for row in iterate(seen)]
    texts = [query_captions(drawing)[1] for drawing in drawings]
    queries = range(7, len(drawings), len(drawings) // 8)
    picture = retrieval_gallery(
        [row["image"] for row in iterate(shown)],
        texts,
        encode_images(model, processor, images),
        encode_texts(model, processor, texts),
        torch.arange(len(drawings)),
        text_queries=queries[:5],
        image_queries=queries[5:8],
        title=f"FFF on {len(drawings)} drawings it has never seen",
    )
    picture.save(output)


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((DemoArguments,), __doc__, argv)
    output = Path(args.output_dir)
    compare = CompareArguments(arms=["clip_raw", "fff"], minutes=args.minutes, output_dir=args.output_dir)
    scores = {}
    for name in compare.arms:
        print(f"\n== training: {ARMS[name].label}, {args.minutes:g} minutes", flush=True)
        scores[name] = [run_arm(name, 0, compare)]
    print("\n== 294 held-out drawings, clean text queries, percent\n")
    print(table(scores))
    (output / "table.md").write_text(table(scores) + "\n")

    folder = output / "fff-0"
    gallery(folder, output / "gallery.png")
    picture = output / "drawing.png"
    CaptionWorld("test", image_size=112, train=False)[40]["image"].save(picture)
    print(f"\n== a fresh process loads {folder}", flush=True)
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(folder), str(picture)], check=True)
    print(f"\nlook at {output / 'gallery.png'}; the model is in {folder}")


if __name__ == "__main__":
    main()
