"""Markdown tables of several runs per row."""

import statistics
from collections.abc import Mapping, Sequence


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean with one decimal, and the standard deviation where there are several values: "12.3 ± 0.4"."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def runs_table(
    runs: Mapping[str, Sequence[Mapping[str, float]]], percents: Mapping[str, str], means: Mapping[str, str]
) -> str:
    """A row per arm over its seeds, and the chance levels (`chance_<metric>` of a run) in the last row.

    Args:
        runs: name of an arm -> the scores of each seed.
        percents: head of a column -> a metric in 0..1, shown in percent with its spread.
        means: head of a column -> a number that is only averaged (steps, minutes).
    """
    heads = [*percents, *means]
    lines = ["| arm | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for name, scores in runs.items():
        cells = [mean_and_spread([100 * score[metric] for score in scores]) for metric in percents.values()]
        cells += [_short(statistics.mean(score[key] for score in scores)) for key in means.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    some = next(iter(runs.values()))[0]
    chance = [f"{100 * some[f'chance_{metric}']:.1f}" for metric in percents.values()]
    return "\n".join([*lines, "| chance | " + " | ".join(chance + [""] * len(means)) + " |"])


def under_name(name: str, scores: Mapping[str, float]) -> dict[str, float]:
    """An evaluator's scores as `runs_table` wants those of several: `<name>_<metric>`, `chance_<name>_<metric>`."""
    heads = {key: "chance_" if key.startswith("chance_") else "" for key in scores}
    return {f"{head}{name}_{key.removeprefix(head)}": scores[key] for key, head in heads.items()}


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
