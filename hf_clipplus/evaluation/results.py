"""The one place for measured numbers: kept as JSON, shown as a table, and given to model cards as a model-index."""

import json
import math
import os
import platform
import re
import statistics
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path

import torch
from huggingface_hub import EvalResult, EvalResultEntry

COUNTS = ("samples", "classes", "classes_without_samples", "images", "captions", "blank_captions")
"""Numbers of the evaluators that are no scores: in the JSON, not in tables of scores and not in the model-index."""
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Result:
    """One measured number and everything needed to measure it again.

    Args:
        task: the Hub's task id, e.g. "zero-shot-image-classification".
        dataset: Hub id or plain name.
        split: e.g. "test".
        metric: e.g. "text_to_image_R@1"; names that start with `chance_` are levels to compare with.
        value: finite; shares are in [0, 1].
        model: Hub id or folder name of the model.
        protocol: what else decides the number, e.g. "7 templates, 64 px".
        seed: of the training run, None where there is no choice.
        date: ISO day; "" becomes today (UTC).
        command: what reproduces it.
        hardware: what it ran on, see `describe_hardware`.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    model: str
    protocol: str = ""
    seed: int | None = None
    date: str = ""
    command: str = ""
    hardware: str = ""

    def __post_init__(self):
        if isinstance(self.value, bool) or not math.isfinite(self.value):
            raise ValueError(f"{self.metric} on {self.dataset}: expected a finite number, got {self.value!r}")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "date", self.date or datetime.now(timezone.utc).date().isoformat())

    @property
    def measurement(self) -> tuple:
        """What was measured, without the seed: numbers that share this may be averaged."""
        return (self.model, self.task, self.dataset, self.split, self.protocol, self.metric)


@dataclass
class Results:
    """A list of results; one number per measurement and seed.

    Example:
        >>> results = Results()
        >>> facts = {"task": "zero-shot-image-classification", "dataset": "cifar10", "split": "test"}
        >>> for metric, value in evaluator(model, processor).items():
        ...     results.add(metric, value, **facts, model="org/fff-plus")
        >>> print(results.to_markdown())
    """

    entries: list[Result] = field(default_factory=list)

    def add(self, metric: str, value: float, **facts: str | int | None) -> None:
        """Add a number; the same measurement with the same seed is replaced.

        Args:
            metric, value: see `Result`.
            facts: the other fields of `Result`; `task`, `dataset`, `split` and `model` are required.

        Raises:
            ValueError: the value is not finite.
        """
        new = Result(metric=metric, value=value, **facts)
        key = (new.measurement, new.seed)
        self.entries = [entry for entry in self.entries if (entry.measurement, entry.seed) != key] + [new]

    def to_json(self, file: str | Path) -> None:
        """Write all entries; the file is replaced in one step, so a crash leaves the old one whole."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"results": [asdict(entry) for entry in self.entries]}, indent=2, ensure_ascii=False)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            part.write_text(text + "\n", encoding="utf-8")
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def from_json(cls, file: str | Path) -> "Results":
        """Read what `to_json` wrote.

        Raises:
            ValueError: the file is not of that form, or larger than any list of results; the message names the file.
        """
        if (size := os.path.getsize(file)) > MAX_BYTES:
            raise ValueError(f"{file} has {size:,} bytes, a results file at most {MAX_BYTES:,}.")
        try:
            entries = json.loads(Path(file).read_text(encoding="utf-8"))["results"]
            return cls([Result(**entry) for entry in entries])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            known = [each.name for each in fields(Result)]
            raise ValueError(f"{file} is no results file ({{'results': [{known}, ...]}}): {error}") from error

    def to_markdown(self) -> str:
        """A table of all scores, seeds of one measurement as mean ± standard deviation; counts are left out."""
        lines = ["| model | task | dataset | split | protocol | metric | value |", "|---|---|---|---|---|---|---:|"]
        for (*facts, metric), entries in self._scores().items():
            values = [entry.value for entry in entries]
            value = f"{statistics.mean(values):.4f}"
            if len(values) > 1:
                value += f" ± {statistics.stdev(values):.4f} ({len(values)} seeds)"
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*facts, metric, value)) + " |")
        return "\n".join(lines) + "\n"

    def to_eval_results(self) -> list[EvalResult]:
        """The scores as the Hub's model-index wants them, for `ModelCardData(eval_results=...)`.

        Seeds of one measurement become their mean, with count and standard deviation in `metric_args`. Counts and
        chance levels are left out.
        """
        return [
            EvalResult(
                task_type=task,
                dataset_type="_".join(dataset.split()),
                dataset_name=dataset,
                dataset_split=split,
                metric_type=metric,
                metric_value=statistics.mean(entry.value for entry in entries),
                metric_name=f"{metric} ({protocol})" if protocol else metric,
                metric_args=_seed_facts(entries),
            )
            for (_, task, dataset, split, protocol, metric), entries in self._scores().items()
            if not metric.startswith("chance_")
        ]

    def to_eval_entries(self) -> list[EvalResultEntry]:
        """The scores on data sets of the Hub, as its `.eval_results/*.yaml` files want them (mean over seeds)."""
        return [
            EvalResultEntry(
                dataset_id=dataset,
                task_id=metric,
                value=statistics.mean(entry.value for entry in entries),
                date=max(entry.date for entry in entries),
                notes=", ".join(filter(None, [split, protocol, f"{len(entries)} seeds" if len(entries) > 1 else ""])),
            )
            for (_, _, dataset, split, protocol, metric), entries in self._scores().items()
            if is_hub_id(dataset) and not metric.startswith("chance_")
        ]

    def _scores(self) -> dict[tuple, list[Result]]:
        """Entries that are no counts, by measurement."""
        groups = {}
        for entry in self.entries:
            if entry.metric not in COUNTS:
                groups.setdefault(entry.measurement, []).append(entry)
        return groups


def is_hub_id(name: str | None) -> bool:
    """Whether a name is `owner/name` and no path of this machine."""
    return bool(name) and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not os.path.exists(name)


def describe_hardware() -> str:
    """The accelerator's name, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {os.cpu_count()} cores"


def _seed_facts(entries: list[Result]) -> dict | None:
    if len(entries) < 2:
        return None
    return {"seeds": len(entries), "standard_deviation": statistics.stdev(entry.value for entry in entries)}
