"""What finer vision does to the embedded encoder, with its weights as they are (training-free).

Zero-shot classification and retrieval on the held-out drawings, retrieval and pointing on the held-out scenes; all
pictures are made at three times the tower's size, for every setting. Pointing is by the patches of a `DreamLIPModel`
with the same weights and no projection of its own. Every setting that is listed is reported.

    python benchmarks/finer_vision_scores.py
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoProcessor

from hf_clipplus.evaluation.clipart import clipart_evaluators
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.evaluation.scenes import scene_evaluators
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.models.finer_vision import fit_pictures

SETTINGS = (
    {},
    {"scales": [1, 2]},
    {"scales": [1, 2, 3]},
    {"crops": 2},
    {"crops": 2, "crop_zoom": 3},
    {"scales": [1, 2], "crops": 2},
)


def scores(name: str, settings: dict, side: int) -> dict[str, float]:
    """Every score of one setting; names say of what."""
    model, processor = load_dual_encoder(name, dtype=torch.float32, finer_vision=settings)
    zero_shot, retrieval, by_name = clipart_evaluators("test", image_size=side)
    by_summary, _, pointing = scene_evaluators("test", image_size=side)
    found = {"zero-shot top-1": zero_shot(model, processor)["top1"]}
    for what, evaluator in (("drawings", retrieval), ("names", by_name), ("scenes", by_summary)):
        own = evaluator(model, processor)
        found |= {f"{what} t->i R@10": own["text_to_image_R@10"], f"{what} i->t R@10": own["image_to_text_R@10"]}
    for grid in ("coarse", "fine"):
        finer = settings | {"patch_grid": grid}
        patches = DreamLIPModel.from_pretrained(name, use_grouping_loss=False, dtype=torch.float32, finer_vision=finer)
        stock = AutoProcessor.from_pretrained(name)
        fit_pictures(stock, patches.config)
        own = pointing(patches.eval(), DreamLIPProcessor(stock.image_processor, stock.tokenizer))
        found |= {f"pointing, {grid}": own["pointing_accuracy"]}
        found |= {f"chance, {grid}": own["chance_pointing_accuracy"], "queries": own["queries"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/checkpoints/clipart-clip", help="a checkpoint of the zoo")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/finer_vision_scores.json"))
    args = parser.parse_args()
    side = 3 * load_dual_encoder(args.model)[0].config.vision_config.image_size
    found = {json.dumps(settings): scores(args.model, settings, side) for settings in SETTINGS}
    columns = [name for name in next(iter(found.values())) if name != "queries"]
    print(f"| setting | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for settings, own in found.items():
        print(f"| {settings} | {' | '.join(f'{100 * own[name]:.1f}' for name in columns)} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"side": side, "scores": found}, indent=1))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
