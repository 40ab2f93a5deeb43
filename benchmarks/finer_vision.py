"""Time and memory of finer vision by setting, and tiles in one batch against a loop over tiles.

A vision tower of the shape of ViT-B/16 with random weights embeds random pictures: at one scale, at two, at three, and
with crops. The settings take turns; medians of the rounds are reported, and ratios to one scale of the same round.
"inference" is `encode_image` without gradient, "training" forward and backward of the image side. Memory is the growth
of the peak beyond model and pictures, in a fresh process per setting (Linux). The loop encodes one view of every
picture at a time by the plain model, and is checked to give the same embeddings.

    python benchmarks/finer_vision.py
    python benchmarks/finer_vision.py --quick
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from contrastive_loss import MIB, _peak

from hf_clipplus.models.configuration_finer_vision import FinerVision, picture_side
from hf_clipplus.models.fff import FFFConfig, FFFModel
from hf_clipplus.ops.tilings import cut_tiles, resize_pictures
from hf_clipplus.training.scratch import SIZES

SETTINGS = {
    "one scale": {},
    "two scales": {"scales": [1, 2]},
    "three scales": {"scales": [1, 2, 3]},
    "4 crops": {"crops": 4},
    "two scales, 4 crops": {"scales": [1, 2], "crops": 4},
}


def make_model(quick: bool) -> FFFModel:
    facts = SIZES["tiny" if quick else "vit-b-16"]
    layers, width, heads = facts["vision"]
    tower = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    vision = tower | {"intermediate_size": 4 * width, "image_size": facts["image"], "patch_size": facts["patch"]}
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 1, "intermediate_size": 32}
    torch.manual_seed(0)
    return FFFModel(
        FFFConfig(
            vision_config=vision | {"model_type": "clip_vision_model"},
            text_config=small | {"model_type": "clip_text_model", "vocab_size": 50},
            projection_dim=facts["joint"],
        )
    )


def look(model: FFFModel, name: str, images: int) -> torch.Tensor:
    """Switch a setting on, and make pictures of the size that it wants."""
    model.set_finer_vision(SETTINGS[name])
    side = picture_side(model.config)
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


def inference(model: FFFModel, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().encode_image(pixels)


def training(model: FFFModel, pixels: torch.Tensor) -> None:
    model.train().embed(pixels).image_embeds.sum().backward()
    model.zero_grad()


@torch.no_grad()
def loop(model: FFFModel, pixels: torch.Tensor, scales: tuple[int, ...]) -> torch.Tensor:
    """`encode_image` of `mean` fusion without crops, a view at a time, by a model without finer vision."""
    side, entries = model.config.vision_config.image_size, []
    for scale in scales:
        tiles = cut_tiles(resize_pictures(pixels, (scale * side, scale * side)), scale, scale)
        views = tiles.unflatten(0, (len(pixels), -1)).unbind(1)
        embeds = torch.stack([model.encode_image(view) for view in views])
        entries.append(F.normalize(embeds.mean(0), dim=-1))
    return F.normalize(torch.stack(entries).mean(0), dim=-1)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure_time(model: FFFModel, images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of every setting, way and round, the first round left out."""
    spent: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):
        for name, fields in SETTINGS.items():
            pixels = look(model, name, images)
            for way in (inference, training):
                spent.setdefault((name, way.__name__), []).append(seconds(lambda way=way: way(model, pixels)))  # noqa: B023
            settings = FinerVision.read(fields)
            if settings.crops or settings.entries == 1:
                continue
            expected = inference(model, pixels)
            model.set_finer_vision(None)
            spent.setdefault((name, "loop"), []).append(seconds(lambda: loop(model, pixels, settings.scales)))  # noqa: B023
            assert (loop(model, pixels, settings.scales) - expected).abs().max() < 1e-5, "the loop differs"
    found = {name: {"views": FinerVision.read(fields).views()} for name, fields in SETTINGS.items()}
    for (name, way), values in spent.items():
        base = spent["one scale", "inference" if way == "loop" else way]
        ratios = [own / one for own, one in zip(values[1:], base[1:], strict=True)]
        found[name][f"{way}_seconds"] = statistics.median(values[1:]) / images
        found[name][f"{way}_ratio"] = statistics.median(ratios)
        if way == "loop":
            pairs = zip(values[1:], spent[name, "inference"][1:], strict=True)
            found[name]["loop_over_batch"] = statistics.median(one / other for one, other in pairs)
    return found


def extra_memory(name: str, quick: bool, images: int) -> dict[str, float]:
    """MiB by which each way raises the peak of this (fresh) process beyond model and pictures."""
    model, found = make_model(quick), {}
    for way in (inference, training):
        way(model, look(model, "one scale", 1))  # libraries and their buffers
        pixels = look(model, name, images)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
        before = _peak()
        way(model, pixels)
        found[f"{way.__name__}_mib"] = (_peak() - before) / MIB
    return found


def measure_memory(name: str, args: argparse.Namespace) -> dict[str, float]:
    """`extra_memory` in a process of its own; glibc gives freed blocks back, so that holes do not count."""
    command = [sys.executable, __file__, "--memory-of", name, "--images", str(args.images)]
    command += ["--quick"] if args.quick else []
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    return json.loads(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="pictures in a pass (2)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--quick", action="store_true", help="a tiny tower, to try the script")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/finer_vision.json"))
    parser.add_argument("--memory-of", choices=tuple(SETTINGS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(extra_memory(args.memory_of, args.quick, args.images)))
        return
    found = measure_time(make_model(args.quick), args.images, args.rounds)
    for name, own in found.items():
        own |= measure_memory(name, args)
    columns = ("views", "inference, s a picture", "times", "training, s a picture", "times", "extra MiB, inference",
               "training", "loop / batch")  # fmt: skip
    print(f"| setting | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name, own in found.items():
        times = [f"{own[f'{way}_seconds']:.3f} | {own[f'{way}_ratio']:.2f}" for way in ("inference", "training")]
        memory = f"{own['inference_mib']:.0f} | {own['training_mib']:.0f}"
        tiles = f"{own['loop_over_batch']:.2f}" if "loop_over_batch" in own else ""
        print(f"| {name} | {own['views']} | {' | '.join(times)} | {memory} | {tiles} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"images": args.images, "threads": args.threads, "rounds": args.rounds, "torch": torch.__version__}
    args.output.write_text(json.dumps(facts | {"settings": found}, indent=1))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
