"""Speed of APE's criterion, grid search and prediction against the published way of computing them, on one thread.

Seconds are processor time of the one thread.

Criterion: the closed form against the published loop over pairs of vectors, whose full length is estimated from the
time of a few class pairs (the loop itself would run for minutes). Search: the exact fast search against the
published triple loop, on data where accuracy does not saturate; the optimum must be the same. Prediction: 10,000
images against a 1000-class 16-shot cache in chunks; memory is the growth of the peak in a fresh process.

    python benchmarks/ape.py
    python benchmarks/ape.py --quick      # small sizes, to see that it runs
"""

import argparse
import itertools
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
from torch import Tensor

from hf_clipplus.models.ape import APEHead
from hf_clipplus.ops import cache_classifier as ops
from hf_clipplus.ops.cache_search import correct_on_grid, first_maximum, published_axis

MIB = 2**20


def world(classes: int, shots: int, dim: int, queries: int, noise: float) -> tuple[Tensor, ...]:
    """Texts, keys, labels, queries and their classes around random centres."""
    draw = torch.Generator().manual_seed(0)

    def near(centres: Tensor, share: float) -> Tensor:
        return F.normalize(centres + share * torch.randn(centres.shape, generator=draw) / dim**0.5, dim=1)

    centres = near(torch.ones(classes, dim) / dim**0.5, 0.7)  # CLIP's features share a large common part
    labels = torch.arange(classes).repeat_interleave(shots)
    targets = torch.randint(classes, (queries,), generator=draw)
    return near(centres, 0.5), near(centres[labels], noise), labels, near(centres[targets], noise), targets


def timed(call: Callable, repetitions: int) -> tuple[float, object]:
    """Median seconds of this process (what others do on the machine hardly counts), and the result."""
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        result = call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def criterion(classes: int, shots: int, dim: int, pairs: int) -> dict[str, float]:
    """Seconds of the closed form, and of the per-pair loop, extrapolated from `pairs` class pairs."""
    text, keys, labels, *_ = world(classes, shots, dim, 1, 1.0)
    ours, sim = timed(lambda: ops.channel_similarity(text, keys, labels), 30)
    members = torch.cat([text[:, None], keys.view(classes, shots, dim)], dim=1)  # [C, M, D]

    def loop() -> Tensor:
        total = torch.zeros(dim)
        for i, j in itertools.islice(itertools.permutations(range(classes), 2), pairs):
            for m, n in itertools.product(range(1 + shots), repeat=2):
                total += members[i, m] * members[j, n]
        return total

    part, _ = timed(loop, 3)
    seconds = part * classes * (classes - 1) / pairs
    means = members.double().mean(1)
    pairwise = torch.einsum("id,jd->ijd", means[:20], means[:20])
    pairwise = (pairwise.sum((0, 1)) - pairwise.diagonal().sum(1)) / (20 * 19)
    few = ops.channel_similarity(text[:20], keys[: 20 * shots], labels[: 20 * shots])
    assert torch.allclose(few, pairwise), "closed form and pairs differ"
    assert torch.isfinite(sim).all()
    return {"ours, s": ours, "loop, s (extrapolated)": seconds, "ratio": seconds / ours}


def search(classes: int, shots: int, dim: int, queries: int, steps: tuple[int, int, int]) -> dict[str, object]:
    """Seconds of the fast search and of the triple loop, and whether they agree."""
    text, keys, labels, images, targets = world(classes, shots, dim, queries, 3.2)
    base, difficulty = 100 * images @ text.T, ops.key_difficulty(keys, labels, text)
    axes = [published_axis(scale, n, start) for scale, n, start in zip((7, 7, 1), steps, (0.1, 0.1, 0.0), strict=True)]
    names = dict(zip(("betas", "alphas", "gammas"), axes, strict=True))
    ours, counts = timed(
        lambda: correct_on_grid(images, keys, labels, base, targets, difficulty=difficulty, **names), 5
    )
    one_hot = F.one_hot(labels, classes).float()

    def loop() -> Tensor:
        found = torch.zeros(*steps, dtype=torch.int64)
        cosines = images @ keys.T
        for (i, beta), (j, alpha), (k, gamma) in itertools.product(*map(enumerate, axes)):
            values = one_hot * torch.exp(gamma * difficulty)[:, None]
            logits = base + alpha * (torch.exp(-beta * (1 - cosines)) @ values)
            found[i, j, k] = (logits.argmax(1) == targets).sum()
        return found

    theirs, expected = timed(loop, 1)
    return {
        "ours, s": ours,
        "loop, s": theirs,
        "ratio": theirs / ours,
        "accuracy on the grid": [int(expected.min()) / queries, int(expected.max()) / queries],
        "same optimum": first_maximum(counts) == first_maximum(expected),
        "grid points that differ (rounding)": int((counts != expected).sum()),
    }


def peak_mib() -> float:
    """Peak of the resident memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def predict(images: int, classes: int, shots: int, dim: int) -> dict[str, float]:
    """Seconds and growth of peak memory of a fitted APE head's answers; run in a process of its own."""
    text, keys, labels, queries, _ = world(classes, shots, dim, images, 1.0)
    head = APEHead(alpha=2.0, beta=5.5).fit(keys, labels, text)
    head.decision_function(queries[:8])  # libraries warm up
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = peak_mib()
    seconds, logits = timed(lambda: head.decision_function(queries), 1)
    return {
        "seconds": seconds,
        "growth of peak memory, MiB": peak_mib() - before,
        "of which logits, MiB": logits.nbytes / MIB,
        "affinities at once would be, MiB": images * len(keys) * 4 / MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--output", default="outputs/benchmark_ape.json", help="JSON with the numbers")
    parser.add_argument("--predict-only", nargs=4, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.predict_only:
        print(json.dumps(predict(*args.predict_only)))
        return
    sizes = [500, 100, 4, 64] if args.quick else [10_000, 1000, 16, 1024]
    found = {
        "criterion, C=100 K=16 D=1024": criterion(100, 16, 1024, 2 if args.quick else 10),
        "search": search(*((10, 4, 64, 80, (4, 5, 3)) if args.quick else (47, 16, 1024, 500, (20, 20, 20)))),
    }
    command = [sys.executable, __file__, "--predict-only", *map(str, sizes)]
    trimmed = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}  # freed blocks go back, so that holes do not count
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=trimmed)
    found["prediction, " + " x ".join(map(str, sizes))] = json.loads(done.stdout)
    for name, facts in found.items():
        print(f"\n{name}")
        for key, value in facts.items():
            print(f"  {key:36} {value:.5g}" if isinstance(value, float) else f"  {key:36} {value}")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
