"""Alignment metrics and few-shot evaluation against the loops that their definitions describe, on one thread.

    python benchmarks/alignment.py            # everything, about three minutes
    python benchmarks/alignment.py --quick    # toy sizes, to see that it runs

OTAM and TRX: forward and backward, against `alignment_reference.py`, in turns; the median of the pairs' ratios is
reported. Evaluation: episodes of random features of 2,400 videos (24 classes) through our cached evaluation against
one episode after the other through the model's forward, both without the tower; the predictions must be equal.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from alignment_reference import otam_both_by_cells, trx_by_class
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_clipplus.data.episodes import EpisodeSampler
from hf_clipplus.evaluation.few_shot_video import predict_episodes
from hf_clipplus.models.clip_fsar import CLIPFSARConfig, CLIPFSARForFewShotVideoClassification
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.models.temporal_cross_transformer import TemporalCrossTransformer
from hf_clipplus.ops.alignment import frame_distances, otam, sinusoidal_positions

QUERIES, PROTOTYPES = 25, 5
CLASSES, VIDEOS_PER_CLASS = 24, 100
SHORTEST = 0.1  # seconds of a timing


def clock() -> float:
    """Seconds of the processor with one thread, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(run: Callable[[], object]) -> float:
    start = clock()
    run()
    return clock() - start


def compare(ours: Callable, theirs: Callable, rounds: int) -> dict[str, float]:
    """Median seconds of both, in turns, and the median of the ratios theirs / ours; short runs are repeated."""
    ours(), theirs()
    repeats = [max(1, round(SHORTEST / seconds(run))) for run in (ours, theirs)]

    def mean(run: Callable, count: int) -> float:
        return seconds(lambda: [run() for _ in range(count)]) / count

    pairs = [(mean(ours, repeats[0]), mean(theirs, repeats[1])) for _ in range(rounds)]
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "reference": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def otam_case(frames: int, rounds: int, lam: float = 0.5) -> dict[str, float]:
    """Both directions, forward and backward."""
    distances = torch.rand(QUERIES, PROTOTYPES, frames, frames, requires_grad=True)

    def step(metric: Callable) -> None:
        distances.grad = None
        metric(distances, lam=lam).sum().backward()

    return compare(lambda: step(otam), lambda: step(otam_both_by_cells), rounds)


def compiled_otam_case(frames: int, rounds: int) -> dict[str, float]:
    """Cosine distances and OTAM, forward: compiled against eager (`reference` is eager)."""
    queries, prototypes = torch.randn(QUERIES, frames, 512), torch.randn(PROTOTYPES, frames, 512)

    def metric(queries, prototypes):
        return otam(frame_distances(queries, prototypes))

    compiled = torch.compile(metric)
    with torch.no_grad():
        return compare(lambda: compiled(queries, prototypes), lambda: metric(queries, prototypes), rounds)


def trx_case(rounds: int, dim: int = 512, width: int = 1152, frames: int = 8) -> dict[str, float]:
    """5-way 5-shot, 5 queries, cardinalities 2 and 3, forward and backward."""
    model = TemporalCrossTransformer(dim, (2, 3), width=width).eval()
    queries, supports = torch.randn(5, frames, dim, requires_grad=True), torch.randn(25, frames, dim)
    labels, targets = torch.arange(5).repeat(5), torch.arange(5)
    code = sinusoidal_positions(frames, dim)

    def reference() -> torch.Tensor:
        found = []
        for layers in model.transformers:
            names = {"key": layers.k_linear, "value": layers.v_linear, "norm": layers.norm_k}
            weights = {
                f"{name}_{part}": getattr(each, part) for name, each in names.items() for part in ("weight", "bias")
            }
            found.append(trx_by_class(queries + code, supports + code, labels, 5, layers.cardinality, weights))
        return torch.stack(found).mean(0)

    def step(distances: Callable[[], torch.Tensor]) -> None:
        model.zero_grad()
        cross_entropy(-distances(), targets).backward()

    return compare(lambda: step(lambda: model(queries, supports, labels, 5)), lambda: step(reference), rounds)


def head(dim: int, frames: int) -> CLIPFSARForFewShotVideoClassification:
    """CLIP-FSAR at the published size, with towers that are not used."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPFSARConfig(
        text_config=CLIPTextConfig(**tower, vocab_size=16, bos_token_id=0, eos_token_id=1).to_dict(),
        vision_config=CLIPVisionConfig(**tower, image_size=16, patch_size=8).to_dict(),
        projection_dim=dim,
        num_frames=frames,
    )
    return CLIPFSARForFewShotVideoClassification(config).eval()


@torch.no_grad()
def evaluation_case(shots: int, merge: str, episodes: int, sample: int, dim: int = 512, frames: int = 8) -> dict:
    """5-way evaluation on cached features against `sample` episodes one by one, extrapolated to all."""
    model, labels = head(dim, frames), [label for label in range(CLASSES) for _ in range(VIDEOS_PER_CLASS)]
    model.config.merge = merge
    means = torch.randn(CLASSES, 1, dim).repeat_interleave(VIDEOS_PER_CLASS, 0)
    features, text = means + 3 * torch.randn(len(labels), frames, dim), torch.randn(CLASSES, dim)
    sampler = EpisodeSampler(labels, way=5, shots=shots, queries=1)
    start = clock()
    drawn = [sampler(number) for number in range(episodes)]
    found = predict_episodes(model, features[None], text, labels, drawn)
    ours = clock() - start
    start = clock()
    expected = []
    with evaluation_mode(model):
        for episode in drawn[:sample]:
            own = torch.tensor(episode.support_labels)
            out = model(
                support_features=features[episode.support],
                support_labels=own,
                query_features=features[episode.query],
                class_embeds=text,
                support_class_ids=torch.tensor(episode.classes)[own],
            )
            expected.append(out.logits.argmax(-1))
    theirs = (clock() - start) * episodes / len(expected)
    equal = (found[:sample] == torch.stack(expected)).double().mean().item()
    return {"ours": ours, "reference": theirs, "ratio": theirs / ours, "equal predictions": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed pairs of each metric")
    parser.add_argument("--episodes", type=int, default=10_000, help="episodes of an evaluation")
    parser.add_argument("--sample", type=int, default=500, help="of them, episodes that also go one by one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_alignment.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rounds, episodes, sample = (1, 40, 20) if args.quick else (args.rounds, args.episodes, args.sample)
    small = {"dim": 32} if args.quick else {}
    results = {f"OTAM, T = {frames}": otam_case(frames, rounds) for frames in ((4,) if args.quick else (8, 16, 32))}
    if not args.quick:
        results["OTAM, T = 8, compiled against eager"] = compiled_otam_case(8, 50)
    results["TRX {2, 3}"] = trx_case(rounds, **(small | {"width": 16} if args.quick else {}))
    for shots, merge in ((1, "before"), (5, "after"), (5, "before")):
        name = f"{episodes} episodes, {shots}-shot" + (f", merged {merge}" if shots > 1 else "")
        results[name] = evaluation_case(shots, merge, episodes, sample, **small)
    print("| case | ours, s | reference, s | reference / ours |\n| --- | ---: | ---: | ---: |")
    for name, row in results.items():
        print(f"| {name} | {row['ours']:.4g} | {row['reference']:.4g} | {row['ratio']:.1f} |")
    same = [row["equal predictions"] for row in results.values() if "equal predictions" in row]
    print(f"equal predictions: {', '.join(f'{100 * each:.2f}%' for each in same)}; {args.threads} thread(s)")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"results": results, "threads": args.threads}, indent=1))


if __name__ == "__main__":
    main()
