"""Sliding-window segmentation with GroupViT at full size: ours against the published order of computation.

Random weights, one picture of 448 x 597, one thread, seconds of the processor. The reference does what the published
code does: one crop at a time, two passes of the encoder per crop, eager attention, logits of every class for every
pixel. Runs take turns; the median of the pairs' ratios is reported. A batch of pictures is timed against the same
number of single ones.

    python benchmarks/segmentation.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_clipplus.models.groupvit import GroupViTPlusConfig, GroupViTPlusModel
from hf_clipplus.models.groupvit.segmentation_groupvit import windows
from hf_clipplus.ops.grouping import background_logits, group_affinity, roll_out

HEIGHT, WIDTH, TARGET = 448, 597, (480, 640)
CROP, STRIDE = 448, 224


@torch.no_grad()
def published_order(model, pixels: torch.Tensor, class_embeds: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Labels `[h, w]` of one picture, crop by crop; `model` has eager attention."""
    patch = model.config.vision_config.patch_size
    classes = len(class_embeds) + (threshold is not None)
    total, count = pixels.new_zeros(classes, *pixels.shape[1:]), pixels.new_zeros(pixels.shape[1:])
    for y1, y2, x1, x2 in windows(*pixels.shape[1:], crop_size=CROP, stride=STRIDE):
        crop = pixels[None, :, y1:y2, x1:x2]
        size = (y2 - y1, x2 - x1)
        maps = model.vision_model(crop, output_assignments=True).soft_assignments  # first pass, for the maps
        rolled = roll_out(maps).transpose(1, 2).unflatten(2, (size[0] // patch, size[1] // patch))
        owner = F.interpolate(rolled, size=size, mode="bilinear", align_corners=False).argmax(1)[0]
        vision = model.vision_model(crop)  # second pass, for the features
        groups = F.normalize(model.visual_projection(vision.last_hidden_state), dim=-1)
        whole = F.normalize(model.visual_projection(vision.pooler_output), dim=-1)
        affinity, _ = group_affinity(groups, whole, class_embeds, model.logit_scale)
        owned = F.one_hot(owner.flatten(), affinity.shape[1]).any(0)[None]
        table = affinity
        if threshold is not None:
            table = torch.cat([background_logits(affinity, owned, threshold)[..., None], affinity], dim=2)
        total[:, y1:y2, x1:x2] += table[0][owner].permute(2, 0, 1)
        count[y1:y2, x1:x2] += 1
    logits = F.interpolate((total / count)[None], size=TARGET, mode="bilinear", align_corners=False)[0]
    return logits.softmax(0).argmax(0)


def ours(
    model, pictures: list[torch.Tensor], class_embeds: torch.Tensor, threshold: float | None
) -> list[torch.Tensor]:
    options = {"crop_size": CROP, "stride": STRIDE, "target_sizes": [TARGET] * len(pictures)}
    return [each.labels for each in model.segment(pictures, class_embeds, background_threshold=threshold, **options)]


def seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def make_model(tiny: bool) -> GroupViTPlusModel:
    torch.manual_seed(0)
    small = {"hidden_size": 48, "num_attention_heads": 2, "depths": [1, 1, 1]} if tiny else {}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}
    model = GroupViTPlusModel(GroupViTPlusConfig(text_config=text, vision_config=small)).eval()
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
        for name, parameter in model.vision_model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter *= 2  # else all patches are assigned alike, and the maps are trivial
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--threshold", type=float, help="of the background (no background)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/segmentation.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, reference = make_model(args.tiny), make_model(args.tiny)
    reference.set_attn_implementation("eager")
    class_embeds = F.normalize(torch.randn(args.classes, model.config.projection_dim), dim=-1)
    pictures = [
        F.interpolate(torch.randn(1, 3, 14, 19), (HEIGHT, WIDTH), mode="bicubic")[0] for _ in range(args.batch)
    ]

    def theirs():
        return published_order(reference, pictures[0], class_embeds, args.threshold)

    found, expected = ours(model, pictures[:1], class_embeds, args.threshold)[0], theirs()  # also warms up
    equal = (found == expected).double().mean().item()
    times = {"ours": [], "published order": [], "batch, per picture": []}
    for _ in range(args.rounds):
        times["ours"].append(seconds(lambda: ours(model, pictures[:1], class_embeds, args.threshold)))
        times["published order"].append(seconds(theirs))
        batch = seconds(lambda: ours(model, pictures, class_embeds, args.threshold))
        times["batch, per picture"].append(batch / args.batch)

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    result = {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "speed-up": ratio("published order", "ours"),
        "single / batch, per picture": ratio("ours", "batch, per picture"),
        "equal labels": equal,
        "classes found": len(found.unique()),
        "attention": model.config._attn_implementation,
    }
    print(f"| {'run':20} | median s |\n| --- | ---: |")
    for name, value in result["seconds"].items():
        print(f"| {name:20} | {value:.3f} |")
    print(
        f"speed-up {result['speed-up']:.2f}; batch of {args.batch}: {result['single / batch, per picture']:.2f} times"
    )
    print(f"the throughput of single pictures; equal labels {100 * equal:.3f}%, {result['classes found']} classes")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
