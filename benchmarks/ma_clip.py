"""What MA-CLIP's adapters cost in a step, in time and memory, and what evaluation on cached features saves.

    python benchmarks/ma_clip.py             # ViT-B/16 with random weights, 2 videos of 8 frames
    python benchmarks/ma_clip.py --quick     # a toy tower, to see that it runs

Steps: forward of the frozen tower; forward and backward with adapters, with and without activation checkpointing; and
forward and backward of the whole tower. They take turns; medians are reported, and the median of the ratios to the
frozen forward. Memory is the growth of the peak in a fresh process per version (Linux). Evaluation: 1-shot episodes of
240 videos from pixels, each video encoded once for each branch, against one episode after the other; passes of videos
through the tower are counted, and predictions must be equal.
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
from contrastive_loss import MIB, _peak
from torch import nn
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_clipplus.data.episodes import EpisodeSampler
from hf_clipplus.evaluation.few_shot_video import predict_episodes
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.models.ma_clip import MACLIPConfig, MACLIPForFewShotVideoClassification
from hf_clipplus.tuners.ma_clip import attach_ma_clip

VERSIONS = ("frozen forward", "adapters", "adapters, checkpointed", "full fine-tuning")
VIDEOS, FRAMES = 2, 8
CLASSES, VIDEOS_PER_CLASS, WAY = 24, 10, 5
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(quick: bool) -> MACLIPForFewShotVideoClassification:
    """A model with random weights: ViT-B/16's vision tower, or a toy."""
    text = CLIPTextConfig(**TOY, vocab_size=16, bos_token_id=0, eos_token_id=1).to_dict()
    vision = CLIPVisionConfig(**TOY, image_size=32, patch_size=16) if quick else CLIPVisionConfig(patch_size=16)
    joint = 32 if quick else 512
    sizes = {"projection_dim": joint, "temporal_heads": 4, "num_frames": FRAMES}
    torch.manual_seed(0)
    config = MACLIPConfig(text_config=text, vision_config=vision.to_dict(), **sizes)
    return MACLIPForFewShotVideoClassification(config)


def make_step(version: str, quick: bool) -> Callable[[], None]:
    """What a version does in one step."""
    model = build(quick).train()
    side = model.config.vision_config.image_size
    pixels, text = torch.randn(VIDEOS, FRAMES, 3, side, side), torch.randn(VIDEOS, model.config.projection_dim)
    if version == "full fine-tuning":
        model.vision_model.requires_grad_(True)
        model.visual_projection.requires_grad_(True)
    elif version != "frozen forward":
        attach_ma_clip(model)
        if version.endswith("checkpointed"):
            model.vision_model.activation_checkpointing_enable({"use_reentrant": False})

    def step() -> None:
        if version == "frozen forward":
            with torch.no_grad():
                model.frame_features(pixels)
            return
        model.zero_grad()
        model.frame_features(pixels, text).square().mean().backward()

    return step


def measure_memory(version: str, args: argparse.Namespace) -> float:
    """MiB by which a step, gradients included, raises the peak of a process of its own."""
    command = [sys.executable, __file__, "--memory-of", version, *(["--quick"] if args.quick else [])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.split()[-1])


def memory_here(version: str, quick: bool) -> float:
    step = make_step(version, quick)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _peak()
    step()
    return (_peak() - before) / MIB


def compare_steps(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds, ratio to the first version, and MiB of every version."""
    steps = {version: make_step(version, args.quick) for version in VERSIONS}
    for step in steps.values():
        step()
    rounds = []
    for _ in range(1 if args.quick else args.rounds):
        seconds = {}
        for version, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[version] = time.perf_counter() - start
        rounds.append(seconds)
    return {
        version: {
            "seconds": statistics.median(each[version] for each in rounds),
            "ratio": statistics.median(each[version] / each[VERSIONS[0]] for each in rounds),
            "mib": measure_memory(version, args),
        }
        for version in VERSIONS
    }


@torch.no_grad()
def compare_evaluation(count: int) -> dict[str, float]:
    """Passes of videos and seconds of both ways on a toy tower, and the share of equal predictions."""
    model = attach_ma_clip(build(quick=True))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "norm" not in name:
            nn.init.normal_(parameter, std=0.1)
    videos, labels = CLASSES * VIDEOS_PER_CLASS, [label for label in range(CLASSES) for _ in range(VIDEOS_PER_CLASS)]
    means = torch.randn(CLASSES, 1, 3, 32, 32).repeat_interleave(VIDEOS_PER_CLASS, 0)
    pixels, text = means + torch.randn(videos, FRAMES, 3, 32, 32), torch.randn(CLASSES, model.config.projection_dim)
    sampler, passes = EpisodeSampler(labels, way=WAY, shots=1, queries=1), []
    model.vision_model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0]) // FRAMES))
    episodes = [sampler(number) for number in range(count)]
    with evaluation_mode(model):
        start = time.perf_counter()
        own = text[torch.tensor(labels)]
        features, supports = (
            torch.cat([model.frame_features(*part) for part in zip(*(each.split(16) for each in given), strict=True)])
            for given in ((pixels,), (pixels, own))
        )
        found = predict_episodes(model, features[None], text, labels, episodes, support_features=supports[None])
        ours, cached = time.perf_counter() - start, sum(passes)
        passes.clear()
        start, expected = time.perf_counter(), []
        for episode in episodes:
            each = torch.tensor(episode.support_labels)
            out = model(
                support_pixel_values=pixels[episode.support],
                support_labels=each,
                query_pixel_values=pixels[episode.query],
                class_embeds=text,
                support_class_ids=torch.tensor(episode.classes)[each],
            )
            expected.append(out.logits.argmax(-1))
        theirs = time.perf_counter() - start
    equal = (found == torch.stack(expected)).double().mean().item()
    return {"cached passes": cached, "passes": sum(passes), "seconds": ours, "one by one": theirs, "equal": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--episodes", type=int, default=500, help="of the evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a toy tower, one round, few episodes")
    parser.add_argument("--memory-of", choices=VERSIONS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_ma_clip.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_here(args.memory_of, args.quick))
        return
    steps = compare_steps(args)
    print("| step | seconds | over the frozen forward | growth of the peak, MiB |\n| --- | ---: | ---: | ---: |")
    for version, row in steps.items():
        print(f"| {version} | {row['seconds']:.3g} | {row['ratio']:.2f} | {row['mib']:.0f} |")
    found = compare_evaluation(50 if args.quick else args.episodes)
    print(
        f"evaluation: {found['cached passes']} passes instead of {found['passes']} "
        f"({found['passes'] / found['cached passes']:.1f}x fewer), {found['seconds']:.2g} s instead of "
        f"{found['one by one']:.2g} s; equal predictions: {found['equal']:.2%}; {args.threads} thread(s)"
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"steps": steps, "evaluation": found, "threads": args.threads}, indent=1))


if __name__ == "__main__":
    main()
