"""All few-shot heads on one support set, validation set and test set: one row of a table each."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hf_clipplus.evaluation.tables import mean_and_spread
from hf_clipplus.models.ape import APEForImageClassification, SearchGrid
from hf_clipplus.models.ape.checks_ape import row_hashes
from hf_clipplus.models.ape.processing_ape import prompt_facts
from hf_clipplus.tuners.ape_t import attach_ape_t

from .few_shot import FeatureRows, ape_t_arguments, tip_f_arguments, train_few_shot

ALL_HEADS = ("zero_shot", "tip", "tip_f", "ape", "ape_t", "gda", "proker")
TITLES = {
    "zero_shot": "zero-shot CLIP",
    "tip": "Tip-Adapter",
    "tip_f": "Tip-Adapter-F",
    "ape": "APE",
    "ape_t": "APE-T",
    "gda": "GDA",
    "proker": "ProKeR",
}


@dataclass(frozen=True)
class HeadSettings:
    """What the heads start from; everything else is found on validation.

    Args:
        num_channels, ape_t_channels: Q of APE and of APE-T; None takes their defaults.
        channel_weights: of APE's criterion.
        tip_alpha, ape_alpha, beta: fixed while Tip-Adapter-F and APE-T are trained.
        tip_epochs, ape_epochs: passes over the support set.
        learning_rate, epsilon: of APE-T.
        seed: of the views that training sees.
    """

    num_channels: int | None = None
    ape_t_channels: int | None = None
    channel_weights: tuple[float, float] = (0.5, 0.5)
    tip_alpha: float = 1.17
    ape_alpha: float = 1.0
    beta: float = 1.0
    tip_epochs: int = 20
    ape_epochs: int = 30
    learning_rate: float = 1e-3
    epsilon: float = 1e-3
    seed: int = 0

    def unsearched(self, head: str) -> SearchGrid:
        """A grid of the one point that training uses; GDA and ProKeR, which have none, keep weight 1."""
        alpha = self.tip_alpha if head.startswith("tip") else self.ape_alpha
        return SearchGrid([self.beta], [alpha], [0.1], gda_alphas=[1.0], strengths=[1.0])


@dataclass(frozen=True)
class HeadResult:
    """One head's row.

    Args:
        head: name.
        accuracy: on the test set.
        validation_accuracy: of the setting that was chosen; None without a search.
        trained: numbers changed by training.
        stored: numbers kept beside the text classifier.
        seconds: fit, training and search.
        alpha, beta: as chosen.
        protocol: "honest" or "paper".
        warnings: what fit, training and search warned of.
        prompts_sha256: of the texts of the classes; None where the text classifier was given as features.
    """

    head: str
    accuracy: float
    validation_accuracy: float | None
    trained: int
    stored: int
    seconds: float
    alpha: float | None
    beta: float | None
    protocol: str
    warnings: tuple[str, ...]
    prompts_sha256: str | None


@dataclass(frozen=True)
class FewShotData:
    """Features of one episode.

    Args:
        views: `[A, N, D]` raw views of the support set, with `labels` `[N]`.
        validation, test: unit features `[., D]` with labels.
    """

    views: Tensor
    labels: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def compare_heads(
    base: APEForImageClassification,
    data: FewShotData,
    *,
    heads: tuple[str, ...] = ALL_HEADS,
    settings: HeadSettings | None = None,
    protocol: str = "honest",
    grid: SearchGrid | None = None,
    grids: dict[str, SearchGrid] | None = None,
    allow_test_selection: bool = False,
) -> tuple[list[HeadResult], dict[str, Any]]:
    """Fit or train every head on the same features and texts, and test it.

    Args:
        base: zero-shot model of the classes (`set_classes`); it is left as it is.
        data: see `FewShotData`.
        heads: names, see `ALL_HEADS`.
        settings: see `HeadSettings`.
        protocol: see `FewShotHead.fit`.
        grid: the same for all heads; None takes `SearchGrid()`.
        grids: instead of it for single heads, e.g. the published ones.
        allow_test_selection: let validation and test share images, which is refused otherwise.

    Returns:
        Results, and by head the model that was made (a PeftModel for APE-T).

    Raises:
        ValueError: validation and test share images.
    """
    shared = row_hashes(data.validation[0]) & row_hashes(data.test[0])
    if shared and not allow_test_selection:
        raise ValueError(
            f"validation and test share {len(shared)} images: hyper-parameters would be chosen on the test set. Keep "
            "them apart, or pass allow_test_selection=True and say so beside every number."
        )
    results, models = [], {}
    for head in heads:
        started = time.perf_counter()
        own_grid = (grids or {}).get(head, grid)
        make = _adapted if head == "ape_t" else _fitted
        model, facts = make(base, data, head, settings or HeadSettings(), protocol, own_grid)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            right = model(image_embeds=data.test[0]).logits.argmax(1) == data.test[1]
        prompts = prompt_facts(base.config.fit_report).get("prompts_sha256")
        facts |= {"seconds": seconds, "protocol": protocol, "prompts_sha256": prompts}
        results.append(HeadResult(head, right.double().mean().item(), **facts))
        models[head] = model
    return results, models


def _fitted(
    base: APEForImageClassification,
    data: FewShotData,
    head: str,
    settings: HeadSettings,
    protocol: str,
    grid: SearchGrid | None,
) -> tuple[APEForImageClassification, dict[str, Any]]:
    model = APEForImageClassification.from_clip(base.backbone)
    model.config.text_scale = base.config.text_scale
    options: dict[str, Any] = {"validation": data.validation, "protocol": protocol, "grid": grid}
    if head == "ape":
        options |= {"num_channels": settings.num_channels or 0, "channel_weights": settings.channel_weights}
    if head == "tip_f":
        options |= {"validation": None, "alpha": settings.tip_alpha, "beta": settings.beta}
    text, names = base.classifier.text_weight, base.classifier.class_names
    model.fit(data.views, data.labels, names, text_weight=text, head=head, **options)
    model.config.fit_report |= prompt_facts(base.config.fit_report)
    if head == "tip_f":
        args = tip_f_arguments(num_train_epochs=settings.tip_epochs, seed=settings.seed)
        rows = FeatureRows(data.views, data.labels, settings.seed)
        train_few_shot(model, rows, validation=data.validation, args=args, grid=grid, protocol=protocol)
    stored = sum(each.numel() for each in model.classifier.state_dict().values()) - text.numel()
    return model.eval(), _facts(model.config.fit_report, stored)


def _adapted(
    base: APEForImageClassification,
    data: FewShotData,
    head: str,
    settings: HeadSettings,
    protocol: str,
    grid: SearchGrid | None,
) -> tuple[Any, dict[str, Any]]:
    model = APEForImageClassification.from_clip(base.backbone)
    model.config.text_scale = base.config.text_scale
    model.set_classes(base.classifier.class_names, text_weight=base.classifier.text_weight.detach().clone())
    model.config.fit_report |= prompt_facts(base.config.fit_report)
    options = {"num_channels": settings.ape_t_channels, "alpha": settings.ape_alpha, "beta": settings.beta}
    adapted = attach_ape_t(model, data.views, data.labels, **options)
    args = ape_t_arguments(
        num_train_epochs=settings.ape_epochs,
        learning_rate=settings.learning_rate,
        adam_epsilon=settings.epsilon,
        seed=settings.seed,
    )
    rows = FeatureRows(data.views, data.labels, settings.seed)
    train_few_shot(adapted, rows, validation=data.validation, args=args, grid=grid, protocol=protocol)
    layer = adapted.get_base_model().classifier
    stored = sum(each.numel() for name, each in layer.state_dict().items() if name.startswith("ape_t_"))
    return adapted.eval(), _facts(adapted.peft_config["default"].fit_report, stored)


def _facts(found: dict[str, Any], stored: int) -> dict[str, Any]:
    facts = {key: found.get(key) for key in ("validation_accuracy", "alpha", "beta")}
    facts |= {"trained": found.get("trained_parameters", 0), "stored": stored}
    return facts | {"warnings": tuple(found["warnings"])}


def comparison_table(results: dict[int, list[list[HeadResult]]]) -> str:
    """Markdown: a row per head, accuracy in percent over seeds for every number of shots, then the head's facts.

    Args:
        results: shots -> one list of rows per seed.
    """
    shots = sorted(results)
    last = results[shots[-1]]
    protocols = {row.protocol for runs in results.values() for rows in runs for row in rows}
    lines = [
        f"Test accuracy in percent, protocol: {', '.join(sorted(protocols))}, {len(last)} seeds; "
        f"the other columns at {shots[-1]} shots.",
        "",
        "| head | " + " | ".join(f"{k} shots" for k in shots) + " | trained | stored | seconds |",
        "| --- |" + " ---: |" * (len(shots) + 3),
    ]
    for place, row in enumerate(last[0]):
        cells = [mean_and_spread([100 * rows[place].accuracy for rows in results[k]]) for k in shots]
        seconds = sum(rows[place].seconds for rows in last) / len(last)
        facts = f"{row.trained:,} | {row.stored:,} | {seconds:.2f}"
        lines.append(f"| {TITLES[row.head]} | " + " | ".join(cells) + f" | {facts} |")
    return "\n".join(lines) + "\n"


def as_records(results: dict[int, list[list[HeadResult]]]) -> list[dict[str, Any]]:
    """Flat rows for a JSON file."""
    return [
        {"shots": shots, "seed": seed, **asdict(row)}
        for shots, runs in results.items()
        for seed, rows in enumerate(runs)
        for row in rows
    ]
