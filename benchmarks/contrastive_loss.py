"""Time and memory of `ops.contrastive.sigmoid_loss`, forward and backward, against the dense formula and the floor.

Versions: "ours"; "dense", the formula with given labels under autograd; "checkpointed", the same over chunks of rows
under `torch.utils.checkpoint`; "floor", the three tiled matrix products that no exact version can do without. All
versions take turns within a repetition, so that a noisy machine hits all alike, and the best repetition counts. Memory
is the growth of the peak during the first run beyond inputs and warmed-up libraries, in a fresh process per version.

    python benchmarks/contrastive_loss.py
    python benchmarks/contrastive_loss.py --device cuda --dtype bfloat16 --sizes 16384 32768 65536
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hf_clipplus.ops.contrastive import TILE_COLS_PER_ROW, TILE_ROWS, sigmoid_loss
from hf_clipplus.ops.positives import default_owners

CHUNK_ROWS = 512
DENSE_COPIES = 5  # N x C matrices that the dense formula holds at its peak, measured; used to skip what cannot fit
MIB = 2**20
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(images: int, captions: int, width: int, device: str, dtype: torch.dtype) -> Inputs:
    """Embeddings `[N, D]` and `[kN, D]`, scale and bias, all leaves with gradient, and owners."""
    draw = torch.Generator().manual_seed(0)
    sides = [F.normalize(torch.randn(n, width, generator=draw), dim=1) for n in (images, captions * images)]
    scalars = [torch.tensor(2.3), torch.tensor(-10.0)]
    leaves = [side.to(device, dtype) for side in sides] + [scalar.to(device) for scalar in scalars]
    owner = default_owners(images, captions * images, torch.device(device))
    return *(leaf.requires_grad_() for leaf in leaves), owner


def ours(images, texts, log_scale, bias, owner) -> None:
    sigmoid_loss(images, texts, owner, log_scale, bias).backward()


def dense(images, texts, log_scale, bias, owner) -> None:
    labels = images.new_full((len(images), len(texts)), -1.0, dtype=torch.float32)
    labels[owner, torch.arange(len(owner), device=owner.device)] = 1
    logits = (images @ texts.T).float() * log_scale.exp() + bias
    (-F.logsigmoid(labels * logits).sum() / len(images)).backward()


def checkpointed(images, texts, log_scale, bias, owner) -> None:
    def chunk(rows, start):
        logits = (rows @ texts.T).float() * log_scale.exp() + bias
        labels = torch.full_like(logits, -1.0)
        own = ((owner >= start) & (owner < start + len(rows))).nonzero().squeeze(1)
        labels[owner[own] - start, own] = 1
        return -F.logsigmoid(labels * logits).sum()

    starts = range(0, len(images), CHUNK_ROWS)
    parts = [checkpoint(chunk, images[s : s + CHUNK_ROWS], s, use_reentrant=False) for s in starts]
    (torch.stack(parts).sum() / len(images)).backward()


@torch.no_grad()
def floor(images, texts, *_) -> None:
    grad_images, grad_texts = torch.zeros_like(images), torch.zeros_like(texts)
    rows, cols = TILE_ROWS, TILE_ROWS * TILE_COLS_PER_ROW
    buffer = images.new_empty(min(rows, len(images)) * min(cols, len(texts)))
    for top in range(0, len(images), rows):
        x = images[top : top + rows]
        for left in range(0, len(texts), cols):
            t = texts[left : left + cols]
            z = torch.mm(x, t.T, out=buffer[: len(x) * len(t)].view(len(x), len(t)))
            grad_images[top : top + rows].addmm_(z, t)
            grad_texts[left : left + cols].addmm_(z.T, x)


VERSIONS = {"ours": ours, "dense": dense, "checkpointed": checkpointed, "floor": floor}


def fits(version: str, images: int, captions: int, device: str) -> bool:
    """Whether the dense formula has room for its N x C matrices."""
    if version != "dense":
        return True
    if device == "cuda":
        room = torch.cuda.mem_get_info()[0]
    else:
        room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return DENSE_COPIES * 4 * images * images * captions < 0.8 * room


def timed(run: Callable, inputs: Inputs, device: str) -> float:
    """Seconds of one forward and backward."""
    for tensor in inputs:
        tensor.grad = None
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(*inputs)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def extra_memory(version: str, images: int, captions: int, width: int, device: str, dtype: torch.dtype) -> float:
    """MiB by which the first run raises the peak of this (fresh) process beyond its inputs."""
    run = VERSIONS[version]
    if device == "cuda":
        run(*make_inputs(64, captions, width, device, dtype))
        inputs = make_inputs(images, captions, width, device, dtype)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(*inputs)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    run(*make_inputs(600, 1, width, device, dtype))  # libraries and their buffers; small beside the run measured
    inputs = make_inputs(images, captions, width, device, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _peak()
    run(*inputs)
    return (_peak() - before) / MIB


def _peak() -> float:
    """Largest resident set of this process in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure_memory(version: str, images: int, captions: int, args: argparse.Namespace, threads: int) -> float:
    """Run `extra_memory` in a process of its own; glibc gives freed blocks back, so that holes do not count."""
    command = [sys.executable, __file__, "--device", args.device, "--dtype", args.dtype, "--width", str(args.width)]
    command += ["--threads", str(threads), "--memory-of", version, "--sizes", str(images), "--captions", str(captions)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {version!r} failed:\n{done.stderr}")
    return float(done.stdout)


def measure(images: int, captions: int, threads: int, args: argparse.Namespace) -> dict:
    """Best seconds and extra MiB of every version that fits; the others are listed as skipped."""
    torch.set_num_threads(threads)
    dtype = getattr(torch, args.dtype)
    versions = [version for version in VERSIONS if fits(version, images, captions, args.device)]
    inputs = make_inputs(images, captions, args.width, args.device, dtype)
    seconds = {version: [] for version in versions}
    for repetition in range(args.repetitions + 1):
        for version in versions:
            spent = timed(VERSIONS[version], inputs, args.device)
            if repetition:  # the first one warms up
                seconds[version].append(spent)
    return {
        "images": images,
        "captions_per_image": captions,
        "threads": threads,
        "seconds": {version: min(values) for version, values in seconds.items()},
        "extra_mib": {version: measure_memory(version, images, captions, args, threads) for version in versions},
        "skipped": [version for version in VERSIONS if version not in versions],
    }


def row(result: dict) -> str:
    """One line of the table."""
    seconds, memory = result["seconds"], result["extra_mib"]
    cells = [f"{result['images']}", f"{result['captions_per_image']}", f"{result['threads']}"]
    cells += [f"{seconds[version]:.3f}" if version in seconds else "skipped" for version in VERSIONS]
    cells += [f"{seconds['ours'] / seconds['floor']:.2f}"]
    others = ("dense", "checkpointed")
    cells += [f"{seconds[other] / seconds['ours']:.2f}" if other in seconds else "-" for other in others]
    cells += [f"{memory[version]:.0f}" if version in memory else "-" for version in VERSIONS]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 8192], help="images (1024 4096 8192)")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5], help="captions per image (1 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (1 2)")
    parser.add_argument("--width", type=int, default=512, help="embedding width (512)")
    parser.add_argument("--repetitions", type=int, default=3, help="interleaved repetitions, the best counts (3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/contrastive_loss.json"), help="where the JSON goes"
    )
    parser.add_argument("--memory-of", choices=tuple(VERSIONS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        torch.set_num_threads(args.threads[0])
        size = (args.sizes[0], args.captions[0], args.width)
        print(extra_memory(args.memory_of, *size, args.device, getattr(torch, args.dtype)))
        return
    threads = args.threads if args.device == "cpu" else args.threads[:1]
    head = ["N", "k", "threads", *(f"{version} s" for version in VERSIONS), "ours/floor", "dense/ours", "checkp./ours"]
    head += [f"{version} MiB" for version in VERSIONS]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for images in args.sizes:
        for captions in args.captions:
            for count in threads:
                results.append(measure(images, captions, count, args))
                print(row(results[-1]), flush=True)
                facts = {"device": args.device, "dtype": args.dtype, "width": args.width, "torch": torch.__version__}
                args.output.write_text(json.dumps(facts | {"results": results}, indent=1))
    skipped = [f"{v} at N={r['images']}, k={r['captions_per_image']}" for r in results for v in r["skipped"]]
    print(f"skipped, would not fit in memory: {', '.join(skipped) or 'nothing'}; written to {args.output}")


if __name__ == "__main__":
    main()
