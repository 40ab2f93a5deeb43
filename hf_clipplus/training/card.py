"""The card of a model: one template, the variant's own text, and facts that the code knows.

`model_cards/template.md` is the frame and `model_cards/<variant>.md` says what a variant is for, with a code sample,
its limits, its licence and how to cite it. Numbers come from a `Results` object and from nowhere else.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from hf_clipplus.catalogue import VARIANTS, Variant
from hf_clipplus.evaluation.results import Results, is_hub_id

TEXTS = Path(__file__).parents[1] / "model_cards"
# Pipelines of our own -> the Hub's nearest task, for variants that no stock pipeline serves
HUB_TASKS = {
    "clipplus-zero-shot-segmentation": "image-segmentation",
    "clipplus-few-shot-video-classification": "video-classification",
}
SAMPLES = "https://huggingface.co/datasets/mishig/sample_images/resolve/main"
WIDGETS = {
    "zero-shot-image-classification": [
        {"src": f"{SAMPLES}/tiger.jpg", "candidate_labels": "tiger, teapot, palace", "example_title": "Tiger"},
        {"src": f"{SAMPLES}/palace.jpg", "candidate_labels": "tiger, teapot, palace", "example_title": "Palace"},
    ],
    "image-classification": [{"src": f"{SAMPLES}/tiger.jpg", "example_title": "Tiger"}],
}
ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/<])(?:/[\w.+-]+){2,}/?|(?<!\w)[A-Za-z]:[\\/][^\s"']*""")


@dataclass(frozen=True)
class CardText:
    """What a file of `model_cards/` says.

    Args:
        about: what stands under the title: what the model is for, and a code sample.
        sections: heading -> text of the rest: Limits, Licence, Citation, ...
    """

    about: str
    sections: dict[str, str]


def read_card_text(name: str, repo_id: str) -> CardText:
    """The text of a variant or a tuner, with the repository's name in its code sample.

    Args:
        name: stem of the file in `model_cards/`.
        repo_id: takes the place of `org/<name>-plus`.
    """
    text = (TEXTS / f"{name}.md").read_text(encoding="utf-8").replace(f"org/{name.replace('_', '-')}-plus", repo_id)
    title_and_about, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = (part.partition("\n") for part in rest)
    return CardText(
        about=title_and_about.partition("\n")[2].strip(),
        sections={heading.strip(): body.strip() for heading, _, body in sections},
    )


def variant_of(model: PreTrainedModel | PeftModel) -> Variant:
    """The catalogue's entry of a model, or of the base of an adapter.

    Raises:
        ValueError: the model is not of the zoo.
    """
    kind = type(model.config).model_type  # the instance of a converted checkpoint may still name the source's
    for variant in VARIANTS:
        if kind == f"clipplus_{variant.id}":
            return variant
    known = ", ".join(variant.model for variant in VARIANTS)
    raise ValueError(f"{type(model).__name__} ({kind}) is no model of the zoo, which has {known}.")


def pipeline_tag(variant: Variant) -> str:
    """The Hub's task of a variant: its first stock pipeline, or the task nearest to its own one."""
    stock = [task for task in variant.tasks if not task.startswith("clipplus-")]
    return stock[0] if stock else HUB_TASKS[variant.tasks[0]]


def model_card(
    model: PreTrainedModel | PeftModel,
    repo_id: str,
    *,
    results: Results | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    **metadata: Any,
) -> ModelCard:
    """The card of a model or an adapter of the zoo.

    Args:
        model: what is published.
        repo_id: Hub id or folder that the code sample loads.
        results: of this model (see `own_results`); its scores become the table and the model-index.
        facts: heading -> fact -> value: what is known of the making (data, hyper-parameters, hardware, ...).
        metadata: further fields of `ModelCardData` (`license`, `language`, `datasets`, `tags`, ...).
    """
    variant, results = variant_of(model), results or Results()
    adapter = isinstance(model, PeftModel)
    name, base = repo_id.rpartition("/")[2], base_model(model)
    if is_hub_id(base) and "base_model" not in metadata:
        metadata |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    tags = ["transformers", f"clipplus_{variant.id}", *(["peft"] if adapter else [])]
    tags += [
        *(getattr(model, "model_tags", None) or []),
        *(metadata.pop("tags", None) or []),
        f"arxiv:{variant.paper}",
    ]
    task = pipeline_tag(variant)
    if task in WIDGETS:
        metadata = {"widget": WIDGETS[task]} | metadata
    scores = results.to_eval_results()
    data = ModelCardData(
        library_name="hf_clipplus",
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags)),
        model_name=name if scores else None,
        eval_results=scores or None,
        **metadata,
    )
    text = read_card_text(_text_name(model, variant), repo_id)
    package = sys.modules["hf_clipplus"]  # a room does not import the package it is part of
    versions = (f"{module.__name__} {module.__version__}" for module in (package, transformers, torch))
    return ModelCard.from_template(
        data,
        template_path=str(TEXTS / "template.md"),
        name=name,
        about=text.about,
        made_of=_made_of(model),
        facts={heading: own for heading, own in (facts or {}).items() if own},
        results=_results_text(results),
        sections=text.sections,
        versions=", ".join(versions),
    )


def own_results(results: Results, repo_id: str, model: PreTrainedModel | PeftModel) -> Results:
    """The numbers of this model, under the name that it is published by; of absolute paths the last part is told.

    Raises:
        ValueError: the numbers are of several models, and none of them is `repo_id` or where the model is from.
    """
    models = {entry.model for entry in results.entries}
    if len(models) > 1:
        models &= {repo_id, model.name_or_path}
        if not models:
            found = sorted({entry.model for entry in results.entries})
            raise ValueError(f"results are of {found}, none of which is {repo_id!r} or {model.name_or_path!r}.")
    return Results(
        [
            replace(
                entry, model=repo_id, **{name: shorten_paths(getattr(entry, name)) for name in ("dataset", "command")}
            )
            for entry in results.entries
            if entry.model in models
        ]
    )


def shorten_paths(text: str) -> str:
    """The text with every absolute path cut to its last part: what it names is told, where it lies is not."""
    return ABSOLUTE_PATH.sub(lambda found: PurePosixPath(found.group().replace("\\", "/")).name, text)


def base_model(model: PreTrainedModel | PeftModel) -> str | None:
    """What the weights were started from, or what an adapter sits on; a Hub id or a folder."""
    if isinstance(model, PeftModel):
        return model.peft_config[model.active_adapter].base_model_name_or_path
    backbone = getattr(model, "backbone", model)
    return backbone.config.name_or_path or None


def _text_name(model: PreTrainedModel | PeftModel, variant: Variant) -> str:
    """The tuner's own text, where it has one, else the variant's."""
    if isinstance(model, PeftModel):
        tuner = str(model.peft_config[model.active_adapter].peft_type.value).lower()
        if (TEXTS / f"{tuner}.md").is_file():
            return tuner
    return variant.id


def _made_of(model: PreTrainedModel | PeftModel) -> str:
    if not isinstance(model, PeftModel):
        return f"A `{type(model).__name__}` with {model.num_parameters():,} parameters."
    method, name = model.peft_config[model.active_adapter].peft_type.value, type(model.get_base_model()).__name__
    numbers = sum(tensor.numel() for tensor in get_peft_model_state_dict(model).values())
    return f"A PEFT adapter ({method}, {numbers:,} numbers) of a `{name}`."


def _results_text(results: Results) -> str:
    """The table, and below it what else is needed to measure again."""
    if not results.entries:
        return "Not evaluated."
    lines = [results.to_markdown()]
    for what in ("hardware", "seed", "date", "command"):
        values = dict.fromkeys(getattr(entry, what) for entry in results.entries)
        told = [f"`{value}`" if what == "command" else str(value) for value in values if value not in ("", None)]
        lines += [f"- {what}: {', '.join(told)}"] if told else []
    return "\n".join(lines)
