"""FFF against its baselines on pairs of handwritten digits: minutes on one CPU core, everything known about the truth.

An image is two scikit-learn digits side by side, its class "left digit, right digit" (100 classes); the test images
are made of digits that no training image holds. Raw captions are noisy, five pseudo-captions per image come from a
weak captioner, and most training images are near-duplicates of another one. Every arm trains the same towers from the
same start on the same batches, with the losses and the mining of `hf_clipplus.ops`.

    python benchmarks/fff_digits.py            # the whole experiment, default 5 seeds; goes on where it was stopped
    python benchmarks/fff_digits.py --quick    # one seed of the main table
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from hf_clipplus.data.seeding import item_generator
from hf_clipplus.evaluation.tables import mean_and_spread
from hf_clipplus.ops.contrastive import sigmoid_loss, softmax_loss
from hf_clipplus.ops.positives import default_owners, mine_positives

TRAIN_PAIRS, TEST_PAIRS, CAPTIONS = 1600, 600, 5
TRAIN_DIGITS, CAPTIONER_DIGITS = 1197, 80  # of 1797 pictures; the captioner learns from a part of the training digits
PIXEL_NOISE = 0.05  # of the full range; two noisy copies of a picture have a centred cosine of about 0.97
AUGMENTATION = 0.3  # further noise, new in every step; without it the towers learn 320 pictures by heart
FILLERS = 12
VOCABULARY = 20 + FILLERS  # word d: "left d", word 10 + d: "right d", then words without content
WRONG_SHARE = 0.4  # of the noisy captions: wrong digits; the rest of them has no content (16% and 24% at noise 0.4)
P2, GATE_QUANTILE, OFF = 0.9, 0.3, 2.0  # OFF: a cosine threshold that nothing passes
LEARNING_RATE, WEIGHT_DECAY, SCALE_LIMIT = 2e-3, 0.1, log(100)


@dataclass(frozen=True)
class Arm:
    """A way to train: loss, the captions of an image to take from, one of them in a batch or all, mining or not."""

    name: str
    loss: str
    captions: str = "pseudo"
    one: bool = False
    mining: bool = False


FFF = Arm("FFF (k captions + gated mining)", "sigmoid", mining=True)
FFF_APPEND = Arm("FFF, raw caption appended (FFFConfig's default)", "sigmoid", captions="both", mining=True)
CLIP_RAW = Arm("CLIP, raw caption", "softmax", captions="raw", one=True)
SIGLIP_RAW = Arm("SigLIP, raw caption", "sigmoid", captions="raw", one=True)
SAMPLED = (
    Arm("CLIP, one of raw + pseudo sampled", "softmax", captions="both", one=True),
    Arm("SigLIP, one of raw + pseudo sampled", "sigmoid", captions="both", one=True),
)
NO_MINING = Arm("sigmoid, k captions, no mining (FFF - mining)", "sigmoid")
ARMS = (
    CLIP_RAW,
    SIGLIP_RAW,
    *SAMPLED,
    Arm("CLIP, k captions (FFF - mining - sigmoid)", "softmax"),
    NO_MINING,
    FFF,
    Arm("FFF - k captions (one of raw + pseudo sampled, mined)", "sigmoid", captions="both", one=True, mining=True),
    Arm("FFF - sigmoid (softmax, mined)", "softmax", mining=True),
    Arm("SigLIP, one of the pseudo sampled", "sigmoid", one=True),
    FFF_APPEND,
)
SWEEP_ARMS = (CLIP_RAW, SIGLIP_RAW, *SAMPLED, NO_MINING, FFF, FFF_APPEND)
RANGES = {"raw": (0, 1), "pseudo": (1, 1 + CAPTIONS), "both": (0, 1 + CAPTIONS)}  # the raw caption is number 0


@dataclass(frozen=True)
class Setting:
    """Batch size, first bias of the sigmoid loss, optimizer steps, noise of the raw captions, share of duplicates."""

    batch: int
    bias: float
    steps: int
    noise: float = 0.4
    duplicates: float = 0.8

    def __str__(self) -> str:
        return (
            f"B={self.batch}, bias {self.bias:g}, {self.steps} steps, "
            f"{self.noise:.0%} noisy raw captions, {self.duplicates:.0%} duplicates"
        )


MAIN = (Setting(200, -10.0, 480), Setting(400, -5.3, 320))
SWEEPS = (
    Setting(200, -10.0, 480, noise=0.0),
    Setting(200, -10.0, 480, noise=0.7),
    Setting(200, -10.0, 480, duplicates=0.25),
)


@dataclass(frozen=True)
class World:
    """Training and test pairs of one seed.

    Args:
        pixels: `[n, 128]` centred training images; `test_pixels` likewise.
        digits: `[n, 2]` true digits of the training images; `test_classes [m]` = 10 left + right.
        source: `[n]` training images with equal source are near-duplicates.
        words: `[n, 1 + k, V]` word counts of the raw caption and of the k pseudo-captions.
        named: `[n, 1 + k, 2]` digits that each caption names, -1 where it names none.
    """

    pixels: torch.Tensor
    digits: torch.Tensor
    source: torch.Tensor
    words: torch.Tensor
    named: torch.Tensor
    test_pixels: torch.Tensor
    test_classes: torch.Tensor

    def truth(self) -> torch.Tensor:
        """`[n, n, 1 + k]` bool: caption (j, c) names at least one digit and all it names are those of image i."""
        fits = (self.named[None] == self.digits[:, None, None]) | (self.named[None] < 0)
        return fits.all(-1) & (self.named >= 0).any(-1)[None]


def make_world(seed: int, noise: float, duplicates: float) -> World:
    """Draw digits, images and captions; everything depends on the seed alone."""
    draw = item_generator(seed, 0, 0)
    pictures = load_digits()
    order = draw.permutation(len(pictures.target))
    images, targets = pictures.data[order] / 16, pictures.target[order]
    captioner = LogisticRegression(max_iter=2000).fit(images[:CAPTIONER_DIGITS], targets[:CAPTIONER_DIGITS])

    def compose(left_right: np.ndarray) -> np.ndarray:
        """`[rows, 2]` digit numbers to noisy images `[rows, 2, 64]`."""
        return images[left_right] + PIXEL_NOISE * draw.standard_normal((*left_right.shape, 64))

    distinct = round(TRAIN_PAIRS * (1 - duplicates))
    source = draw.permutation(np.r_[np.arange(distinct), draw.integers(0, distinct, TRAIN_PAIRS - distinct)])
    train = draw.integers(0, TRAIN_DIGITS, (distinct, 2))[source]
    test = draw.integers(TRAIN_DIGITS, len(targets), (TEST_PAIRS, 2))
    train_pixels, test_pixels = compose(train), compose(test)
    digits = targets[train]
    seen = captioner.predict(train_pixels.reshape(-1, 64)).reshape(-1, 2)
    named = np.concatenate([_raw_captions(digits, noise, draw)[:, None], _subsets(seen, CAPTIONS, draw)], axis=1)
    mean = train_pixels.mean(0)
    tensors = (train_pixels - mean, digits, source, _count_words(named, draw), named, test_pixels - mean)
    pixels, digits, source, words, named, test_pixels = (torch.from_numpy(np.ascontiguousarray(t)) for t in tensors)
    classes = torch.from_numpy(targets[test] @ np.array([10, 1]))
    return World(pixels.flatten(1).float(), digits, source, words, named, test_pixels.flatten(1).float(), classes)


def _subsets(digits: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`[rows, count, 2]`: half of the captions name both digits, the rest the left or the right one; -1: none."""
    kind = draw.integers(0, 4, (len(digits), count, 1))
    return np.where((kind >= 2) | (kind == np.arange(2)), digits[:, None], -1)


def _raw_captions(digits: np.ndarray, noise: float, draw: np.random.Generator) -> np.ndarray:
    """`[rows, 2]`: exactly the share `noise` of the captions is wrong or without content."""
    named = _subsets(digits, 1, draw)[:, 0]
    noisy = draw.permutation(len(digits))[: round(noise * len(digits))]
    wrong, empty = np.split(noisy, [round(WRONG_SHARE * len(noisy))])
    named[wrong] = np.where(named[wrong] < 0, -1, (named[wrong] + draw.integers(1, 10, (len(wrong), 2))) % 10)
    named[empty] = -1
    return named


def _count_words(named: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """`[rows, captions, V]` word counts: the named digits and one to three fillers."""
    words = np.zeros((*named.shape[:2], VOCABULARY), dtype=np.float32)
    for side in range(2):
        row, caption = np.nonzero(named[..., side] >= 0)
        words[row, caption, 10 * side + named[row, caption, side]] = 1
    fillers = draw.integers(20, VOCABULARY, (*named.shape[:2], 3))
    used = np.arange(3) < draw.integers(1, 4, named.shape[:2])[..., None]
    row, caption, _ = np.nonzero(used)
    np.add.at(words, (row, caption, fillers[used]), 1)
    return words


def class_prompts() -> torch.Tensor:
    """`[100, V]` captions "left a, right b" without fillers."""
    a, b = torch.arange(100) // 10, torch.arange(100) % 10
    return F.one_hot(a, VOCABULARY).float() + F.one_hot(b + 10, VOCABULARY).float()


class Towers(nn.Module):
    """Image MLP 128-256-128-48 and bag-of-words MLP V-96-48, with the scale and the bias of the losses."""

    def __init__(self, loss: str, bias: float):
        super().__init__()
        layers = [nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 48)]
        self.image = nn.Sequential(*layers)
        self.text = nn.Sequential(nn.Linear(VOCABULARY, 96), nn.ReLU(), nn.Linear(96, 48))
        self.log_scale = nn.Parameter(torch.tensor(log(10) if loss == "sigmoid" else log(1 / 0.07)))
        self.bias = nn.Parameter(torch.tensor(bias))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.image(pixels), dim=-1)

    def encode_text(self, words: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text(words), dim=-1)


def train(world: World, arm: Arm, setting: Setting, seed: int, mined: torch.Tensor | None) -> Towers:
    """Train one arm.

    Args:
        mined: `[n, n, 1 + k]` bool, caption (j, c) is positive for image i; needed by arms that mine.
    """
    torch.manual_seed(seed)
    noise = torch.Generator().manual_seed(seed)
    model = Towers(arm.loss, setting.bias)
    scalars = [model.log_scale, model.bias]
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    groups = [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": biases + scalars, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=setting.steps, pct_start=0.1)
    per_epoch, (first, last) = TRAIN_PAIRS // setting.batch, RANGES[arm.captions]
    for step in range(setting.steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = torch.from_numpy(item_generator(seed, epoch, 1).permutation(TRAIN_PAIRS))
            sampled = torch.from_numpy(item_generator(seed, epoch, 2).integers(first, last, TRAIN_PAIRS))
        rows = order[position * setting.batch : (position + 1) * setting.batch]
        columns = sampled[rows, None] if arm.one else torch.arange(first, last).expand(len(rows), -1)
        images = model.encode_image(world.pixels[rows] + AUGMENTATION * torch.randn(len(rows), 128, generator=noise))
        texts = model.encode_text(world.words[rows[:, None], columns].flatten(0, 1))
        if arm.mining:
            here = mined.index_select(0, rows).index_select(1, rows)  # [B, B, 1 + k]
            positives = here.gather(2, columns.expand(len(rows), *columns.shape)).flatten(1)
        else:
            positives = default_owners(len(images), len(texts))
        if arm.loss == "sigmoid":
            loss = sigmoid_loss(images, texts, positives, model.log_scale, model.bias)
        else:
            loss = softmax_loss(images, texts, positives, model.log_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.log_scale.clamp_(0, SCALE_LIMIT)
    return model


@torch.no_grad()
def evaluate(model: Towers, world: World) -> dict[str, float]:
    """Zero-shot accuracy of the 100 classes, and share of class prompts whose nearest test image is of the class."""
    similarity = model.encode_image(world.test_pixels) @ model.encode_text(class_prompts()).T  # [600, 100]
    present = world.test_classes.unique()
    found = world.test_classes[similarity.argmax(0)]
    return {
        "accuracy": 100 * (similarity.argmax(1) == world.test_classes).float().mean().item(),
        "recall_at_1": 100 * (found[present] == present).float().mean().item(),
    }


@torch.no_grad()
def mine(world: World, gate_model: Towers) -> tuple[torch.Tensor, float]:
    """Positives of the whole training set, `[n, n, 1 + k]`, and the gate; a batch does not change what is mined in it.

    S_ii compares pixels; S_it comes from a model trained on the raw captions, its gate being the 30% quantile of the
    images' own pseudo-captions.
    """
    images, texts = gate_model.encode_image(world.pixels), gate_model.encode_text(world.words)  # [n, 48], [n, 1+k, 48]
    own = torch.einsum("nd,nkd->nk", images, texts[:, 1:])
    gate = own.flatten().quantile(GATE_QUANTILE).item()
    found, _ = mine_positives(
        images,
        texts.flatten(0, 1),
        default_owners(len(images), texts.shape[0] * texts.shape[1]),
        p1=OFF,
        p1_gate=gate,
        p2=P2,
        p3=OFF,
        image_image_features=world.pixels,
    )
    return found.to_mask().view(len(images), len(images), -1), gate


def judge(world: World, mined: torch.Tensor, gate: float, batch: int) -> dict[str, float]:
    """Mined pseudo-caption pairs against the truth.

    Returns:
        Percentages: `precision_caption`, the caption is true of the image; `precision_image`, the caption's image has
        the class of the image (flatters, captions being wrong at times); `base_rate`, precision of random pairs;
        `recall_duplicates`, of the true pairs between near-duplicates; `recall_all`, of all true pairs;
        `own_precision`, of the images' own pseudo-captions. Also `per_image`, expected mined pairs per image of a
        batch, and `gate`.
    """
    n = len(world.pixels)
    other = ~torch.eye(n, dtype=torch.bool)[:, :, None].expand(n, n, CAPTIONS)
    truth, mined = world.truth()[..., 1:], mined[..., 1:]
    mined_other, true_other = mined & other, truth & other
    same_class = (world.digits[:, None] == world.digits[None]).all(-1)[:, :, None]
    duplicate = (world.source[:, None] == world.source[None])[:, :, None]
    percent = lambda part, whole: 100 * part.sum().item() / max(whole.sum().item(), 1)  # noqa: E731
    return {
        "precision_caption": percent(mined_other & truth, mined_other),
        "precision_image": percent(mined_other & same_class, mined_other),
        "base_rate": percent(true_other, other),
        "recall_duplicates": percent(mined_other & true_other & duplicate, true_other & duplicate),
        "recall_all": percent(mined_other & true_other, true_other),
        "own_precision": percent(truth & ~other, ~other),
        "per_image": mined_other.sum().item() / n * (batch - 1) / (n - 1),
        "gate": gate,
    }


def run_setting(setting: Setting, arms: tuple[Arm, ...], seeds: list[int]) -> dict:
    """Train all arms with all seeds; `arms` -> metric -> one value per seed, `mining` -> figure -> one per seed."""
    results = {arm.name: {"accuracy": [], "recall_at_1": []} for arm in arms}
    mining = []
    for seed in seeds:
        world = make_world(seed, setting.noise, setting.duplicates)
        trained = {SIGLIP_RAW: train(world, SIGLIP_RAW, setting, seed, None)}
        mined, gate = mine(world, trained[SIGLIP_RAW])
        mining.append(judge(world, mined, gate, setting.batch))
        for arm in arms:
            model = trained.get(arm) or train(world, arm, setting, seed, mined)
            for metric, value in evaluate(model, world).items():
                results[arm.name][metric].append(value)
        print(f"  seed {seed} done", file=sys.stderr, flush=True)
    return {
        "setting": asdict(setting),
        "arms": results,
        "mining": {figure: [row[figure] for row in mining] for figure in mining[0]},
    }


def differences(result: dict) -> dict[str, dict[str, float]]:
    """FFF minus every other arm, accuracy paired by seed: mean and standard error (0 with a single seed)."""
    ours, found = result["arms"][FFF.name]["accuracy"], {}
    for name, metrics in result["arms"].items():
        if name != FFF.name:
            gaps = [a - b for a, b in zip(ours, metrics["accuracy"], strict=True)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
            found[name] = {"mean": statistics.mean(gaps), "standard_error": error}
    return found


def verdict(result: dict) -> dict[str, bool]:
    """The acceptance of the experiment, from mean accuracies.

    The sampled baselines see the raw caption too, so the last line compares FFF with them on the same captions.
    """
    gaps = {name: gap["mean"] for name, gap in differences(result).items()}
    best_sampled = min(gaps[arm.name] for arm in SAMPLED)
    return {
        "beats both raw baselines by 10 points": min(gaps[CLIP_RAW.name], gaps[SIGLIP_RAW.name]) >= 10,
        "at least the best sampled baseline": best_sampled >= 0,
        "at least the best sampled baseline, with the raw caption appended": best_sampled >= gaps[FFF_APPEND.name],
    }


def table(result: dict) -> str:
    """One setting as a Markdown table, with what was mined and what holds."""
    gaps = differences(result)
    lines = [
        f"**{Setting(**result['setting'])}**",
        "",
        "| arm | zero-shot accuracy | text-to-image R@1 | FFF minus this arm (± standard error) |",
        "|---|---|---|---|",
    ]
    for name, metrics in result["arms"].items():
        gap = f"{gaps[name]['mean']:+.1f} ± {gaps[name]['standard_error']:.1f}" if name in gaps else ""
        lines.append(
            f"| {name} | {mean_and_spread(metrics['accuracy'])} | {mean_and_spread(metrics['recall_at_1'])} | {gap} |"
        )
    mined = {figure: mean_and_spread(values) for figure, values in result["mining"].items()}
    lines += [
        "",
        f"Chance 1.0. Mined: {mined['per_image']} pairs per image in a batch; the caption is true of the image in "
        f"{mined['precision_caption']}% (same class: {mined['precision_image']}%; random pairs: "
        f"{mined['base_rate']}%; own pseudo-captions: {mined['own_precision']}%). Recall "
        f"{mined['recall_duplicates']}% of the true pairs between near-duplicates, {mined['recall_all']}% of all true "
        "pairs.",
        "",
        "; ".join(f"{what}: {'yes' if holds else 'NO'}" for what, holds in verdict(result).items()) + ".",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (5)")
    parser.add_argument("--first-seed", type=int, default=0, help="first of the seeds (0)")
    parser.add_argument("--quick", action="store_true", help="one seed of the first main setting, no sweeps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1; the models are tiny)")
    parser.add_argument("--output", type=Path, default=Path("outputs/fff_digits.json"), help="where the JSON goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = list(range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds)))
    plan = [(MAIN[0], ARMS)] if args.quick else [(s, ARMS) for s in MAIN] + [(s, SWEEP_ARMS) for s in SWEEPS]
    started, results = time.perf_counter(), []
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(args.output.read_text()) if args.output.exists() else {"seeds": None}
    known = done["results"] if done["seeds"] == seeds else []
    for setting, arms in plan:
        result = next((result for result in known if result["setting"] == asdict(setting)), None)
        result = result or run_setting(setting, arms, seeds)
        results.append(result | {"fff_minus": differences(result), "verdict": verdict(result)})
        print(table(result), flush=True)
        args.output.write_text(json.dumps({"seeds": seeds, "chance": 1.0, "results": results}, indent=1))
    print(f"{time.perf_counter() - started:.0f} s, {args.threads} thread(s); written to {args.output}")


if __name__ == "__main__":
    main()
