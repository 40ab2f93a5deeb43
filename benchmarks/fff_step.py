"""A training step of `FFFModel` against the same towers with the dense SigLIP loss: what the loss costs in a step.

Both steps are forward, backward and AdamW on the same model and the same random batch (k captions per image). They
take turns, the first of a pair being drawn by lot, and the median of the pairs' ratios is reported with the interval
of order statistics that holds the true median with 95% confidence.

    python benchmarks/fff_step.py
"""

import argparse
import json
import random
import statistics
import time
from math import comb
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_clipplus.models.fff import FFFModel
from hf_clipplus.training.scratch import SIZES, build_fff, train_tokenizer

WORDS = "a red green blue small large old round cat dog boat tree house star cup hat on under beside the of two three"


def make_batch(model: FFFModel, images: int, captions: int) -> dict[str, torch.Tensor]:
    """Random pixels and random texts of full length."""
    text, vision = model.config.text_config, model.config.vision_config
    ids = torch.randint(0, text.vocab_size - 2, (captions * images, text.max_position_embeddings))
    ids[:, -1] = text.eos_token_id
    return {
        "pixel_values": torch.randn(images, 3, vision.image_size, vision.image_size),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "caption_owner": torch.arange(images).repeat_interleave(captions),
    }


def fff_loss(model: FFFModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, return_loss=True).loss


def dense_loss(model: FFFModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The SigLIP formula over the full matrix, with a label for every pair."""
    owner = batch["caption_owner"]
    found = model.embed(**{key: batch[key] for key in ("pixel_values", "input_ids", "attention_mask")})
    logits = found.image_embeds @ found.text_embeds.T * model.logit_scale.exp() + model.logit_bias
    labels = 2.0 * (owner[None] == torch.arange(len(logits))[:, None]) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def step(loss, model: FFFModel, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one training step."""
    started = time.perf_counter()
    optimizer.zero_grad()
    loss(model, batch).backward()
    optimizer.step()
    return time.perf_counter() - started


def median_interval(values: list[float]) -> tuple[float, float]:
    """The narrowest symmetric pair of order statistics around the median with 95% confidence (all, if too few)."""
    ordered, n = sorted(values), len(values)
    outside, rank = 0.0, 0  # rank values may be left out at either end
    while rank < n // 2 and (outside := outside + 2 * comb(n, rank) / 2**n) <= 0.05:
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[n - 1 - rank]


def measure(model: FFFModel, images: int, captions: int, pairs: int) -> dict:
    """Steps in turns; the first pair warms up and checks that both losses agree."""
    torch.manual_seed(0)
    batch = make_batch(model, images, captions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fff_loss(model, batch), dense_loss(model, batch), rtol=1e-4, atol=1e-4)
    losses, seconds = [fff_loss, dense_loss], {fff_loss: [], dense_loss: []}
    lots = random.Random(0)
    for pair in range(pairs + 1):
        lots.shuffle(losses)
        for loss in losses:
            spent = step(loss, model, batch, optimizer)
            if pair:
                seconds[loss].append(spent)
    ratios = [a / b for a, b in zip(seconds[fff_loss], seconds[dense_loss], strict=True)]
    low, high = median_interval(ratios)
    return {
        "images": images,
        "captions_per_image": captions,
        "fff_seconds": statistics.median(seconds[fff_loss]),
        "dense_seconds": statistics.median(seconds[dense_loss]),
        "ratio": statistics.median(ratios),
        "ratio_interval": [low, high],
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny", help="towers (tiny)")
    parser.add_argument("--batch", type=int, default=256, help="images per step (256)")
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5], help="captions per image (1 5)")
    parser.add_argument("--pairs", type=int, default=15, help="measured pairs of steps (15)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/fff_step.json"), help="where the JSON goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokenizer = train_tokenizer([WORDS], vocab_size=600, context=SIZES[args.size]["context"])
    model = build_fff(args.size, tokenizer, mining_features=None)[0].train()
    print("| B | k | FFF s | dense s | FFF / dense, median | 95% interval |\n|---|---|---|---|---|---|")
    results = []
    for captions in args.captions:
        found = measure(model, args.batch, captions, args.pairs)
        results.append(found)
        low, high = found["ratio_interval"]
        cells = [f"{found['images']}", f"{captions}", f"{found['fff_seconds']:.2f}", f"{found['dense_seconds']:.2f}"]
        print("| " + " | ".join([*cells, f"{found['ratio']:.3f}", f"{low:.3f} to {high:.3f}"]) + " |", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"size": args.size, "threads": args.threads, "torch": torch.__version__}
    args.output.write_text(json.dumps(facts | {"results": results}, indent=1))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
