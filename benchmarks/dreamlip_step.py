"""A training step of `DreamLIPModel` against the straightforward version, and the memory of both losses.

The straightforward version encodes every caption at 77 positions and computes the dense matrix of all captions and
groups twice, once per direction, as the published code does. Both are forward, backward and AdamW on the same model
and batch: embedded scenes with K captions. They take turns; the median of the pairs' ratios is reported with its 95%
interval. Memory is the growth of the peak by the loss of captions and their groups, forward and backward, in a fresh
process per version (Linux); grouping itself is the same in both and left out.

    python benchmarks/dreamlip_step.py
    python benchmarks/dreamlip_step.py --size vit-b-16 --batch 16 --pairs 5
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from contrastive_loss import MIB, _peak
from fff_step import median_interval, step

from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.ops.contrastive import softmax_loss
from hf_clipplus.ops.patch_groups import group_patches, softmax_tile_rows
from hf_clipplus.training.long_caption_build import scene_texts
from hf_clipplus.training.scratch import SIZES, build_from_nothing, train_tokenizer


def make_batch(processor: DreamLIPProcessor, images: int, captions: int, side: int) -> dict[str, torch.Tensor]:
    """Scenes with K captions each."""
    world = SceneWorld("train", image_size=side, length=images)
    collator = ContrastiveCollator(processor, choose=SubCaptions(captions_per_image=captions))
    batch = collator([world[index] | {"index": index} for index in range(images)])
    return {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def ours(model: DreamLIPModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, return_loss=True).loss


def straightforward(model: DreamLIPModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same loss with 77 positions and dense matrices."""
    missing = 77 - batch["input_ids"].shape[1]
    ids, mask = (F.pad(batch[name], (0, missing)) for name in ("input_ids", "attention_mask"))
    vision = model.get_image_features(batch["pixel_values"])
    images = F.normalize(vision.pooler_output, dim=-1)
    patches = model.patch_projection(model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]))
    texts = model.text_projection(model.text_model(ids, attention_mask=mask).pooler_output)
    texts = F.normalize(texts, dim=-1).unflatten(0, (len(images), -1))
    target = torch.arange(len(images))
    logits = [model.logit_scale.exp() * images @ texts[:, k].T for k in range(texts.shape[1])]
    found = [(F.cross_entropy(each, target) + F.cross_entropy(each.T, target)) / 2 for each in logits]
    groups = group_patches(texts, F.normalize(patches, dim=-1)).embeds
    return torch.stack(found).mean() + dense_loss(texts.flatten(0, 1), groups.flatten(0, 1), model.logit_scale_local)


def dense_loss(texts: torch.Tensor, groups: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(texts))
    to_groups, to_texts = log_scale.exp() * texts @ groups.T, log_scale.exp() * groups @ texts.T
    return (F.cross_entropy(to_groups, target) + F.cross_entropy(to_texts, target)) / 2


def tiled_loss(texts: torch.Tensor, groups: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    return softmax_loss(groups, texts, torch.arange(len(texts)), log_scale, tile_size=softmax_tile_rows(len(texts)))


LOSSES: dict[str, Callable] = {"ours": tiled_loss, "straightforward": dense_loss}


def measure(model: DreamLIPModel, batch: dict[str, torch.Tensor], pairs: int) -> dict:
    """Steps in turns; the first pair warms up and checks that both losses and their gradients agree."""
    check(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    versions, seconds = [ours, straightforward], {ours: [], straightforward: []}
    lots = random.Random(0)
    for pair in range(pairs + 1):
        lots.shuffle(versions)
        for version in versions:
            spent = step(version, model, batch, optimizer)
            if pair:
                seconds[version].append(spent)
    ratios = [b / a for a, b in zip(seconds[ours], seconds[straightforward], strict=True)]
    return {
        "ours_seconds": statistics.median(seconds[ours]),
        "straightforward_seconds": statistics.median(seconds[straightforward]),
        "ratio": statistics.median(ratios),
        "ratio_interval": median_interval(ratios),
        "mean_tokens": batch["attention_mask"].sum(1).float().mean().item(),
    }


def check(model: DreamLIPModel, batch: dict[str, torch.Tensor]) -> None:
    """Both versions give the same loss and gradients, to 1e-5 of the largest."""
    found = {}
    for version in (ours, straightforward):
        model.zero_grad()
        loss = version(model, batch)
        loss.backward()
        grads = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found[version] = loss.detach(), grads
    for a, b in zip(found[ours], found[straightforward], strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), "the versions differ"
    model.zero_grad()


def extra_memory(version: str, images: int, captions: int, width: int) -> float:
    """MiB by which a loss raises the peak of this (fresh) process beyond its inputs."""

    def inputs(rows: int) -> list[torch.Tensor]:
        sides = [F.normalize(torch.randn(rows, width), dim=-1).requires_grad_() for _ in range(2)]
        return [*sides, torch.tensor(2.6593).requires_grad_()]

    LOSSES[version](*inputs(images * captions)).backward()  # libraries and their buffers
    leaves = inputs(images * captions)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _peak()
    LOSSES[version](*leaves).backward()
    return (_peak() - before) / MIB


def measure_memory(version: str, args: argparse.Namespace, width: int) -> float:
    """`extra_memory` in a process of its own; glibc gives freed blocks back, so that holes do not count."""
    command = [sys.executable, __file__, "--memory-of", version, "--width", str(width)]
    command += ["--batch", str(args.batch), "--captions", str(args.captions)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="scene-fine", help="towers (scene-fine)")
    parser.add_argument("--batch", type=int, default=256, help="images per step (256)")
    parser.add_argument("--captions", type=int, default=7, help="K, captions per image (7)")
    parser.add_argument("--pairs", type=int, default=11, help="measured pairs of steps (11)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/dreamlip_step.json"), help="where the JSON goes")
    parser.add_argument("--widths", type=int, nargs="*", default=[], help="widths of which the memory is measured too")
    parser.add_argument("--memory-of", choices=tuple(LOSSES), help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory_of:
        print(extra_memory(args.memory_of, args.batch, args.captions, args.width))
        return
    facts = SIZES[args.size]
    tokenizer = train_tokenizer(scene_texts("train"), vocab_size=1500, context=77)
    model, processor = build_from_nothing(DreamLIPModel, DreamLIPProcessor, args.size, tokenizer)
    found = measure(model.train(), make_batch(processor, args.batch, args.captions, facts["image"]), args.pairs)
    found["loss_mib"] = {}
    for width in (facts["joint"], *args.widths):
        own = found["loss_mib"][width] = {version: measure_memory(version, args, width) for version in LOSSES}
        own["ratio"] = own["straightforward"] / own["ours"]
    low, high = found["ratio_interval"]
    print(f"step, B = {args.batch}, K = {args.captions}, {found['mean_tokens']:.1f} tokens a caption: ours "
          f"{found['ours_seconds']:.2f} s, straightforward {found['straightforward_seconds']:.2f} s, "
          f"{found['ratio']:.2f} times as long (95% interval {low:.2f} to {high:.2f})")  # fmt: skip
    for width, own in found["loss_mib"].items():
        print(f"loss memory at width {width}: ours {own['ours']:.1f} MiB, straightforward "
              f"{own['straightforward']:.1f} MiB, {own['ratio']:.1f} times as much")  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(args, name) for name in ("size", "batch", "captions", "threads")}
    args.output.write_text(json.dumps(settings | {"torch": torch.__version__} | found, indent=1))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
