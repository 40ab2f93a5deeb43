"""The command line: `python -m hf_clipplus list | info | convert | evaluate | fit | push`.

Nothing heavy is imported before a command needs it, so that `list`, `--help` and completion answer at once.
"""

import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .catalogue import VARIANTS, get_variant, list_models

HEADS = ("ape", "ape_t", "tip", "tip_f", "gda", "proker", "zero_shot")
app = typer.Typer(
    name="hf-clipplus",
    help="A zoo of published upgrades of CLIP: list, convert, evaluate, fit and push them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run a command; what users can mend ends in one line instead of a traceback."""
    try:
        app()
    except (ValueError, OSError, LookupError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"hf-clipplus: {message}")


def _variants(incomplete: str) -> list[str]:
    return list_models(f"{incomplete}*")


def _converters(incomplete: str) -> list[str]:
    return [variant for variant in _variants(incomplete) if find_spec(_converter(variant))]


def _tasks(incomplete: str) -> list[str]:
    return sorted({task for variant in VARIANTS for task in variant.tasks if task.startswith(incomplete)})


def _heads(incomplete: str) -> list[str]:
    return [head for head in HEADS if head.startswith(incomplete)]


def _converter(variant_id: str) -> str:
    return f"hf_clipplus.models.{variant_id}.convert_{variant_id}"


@app.command("list")
def list_(pattern: Annotated[str, typer.Argument(help="Shell pattern of ids, e.g. 'f*'.")] = "*") -> None:
    """The variants that there are."""
    found = [get_variant(variant_id) for variant_id in list_models(pattern)]
    if not found:
        raise ValueError(f"no variant matches {pattern!r}; there are {', '.join(list_models())}.")
    width = max(len(variant.id) for variant in found)
    for variant in found:
        typer.echo(f"{variant.id:{width}}  {variant.title} (arXiv {variant.paper})")


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A variant, a folder or a Hub id.", autocompletion=_variants)],
) -> None:
    """What a variant is, or what a folder or a repository holds."""
    facts = {}
    variant = get_variant(name) if name in list_models() else None
    if variant is None:
        import torch
        from transformers import AutoConfig

        import_module("hf_clipplus")
        config = AutoConfig.from_pretrained(name)
        kind = type(config).model_type
        variant = next((each for each in VARIANTS if kind == f"clipplus_{each.id}"), None)
        if variant is None:
            raise ValueError(f"{name} is of type {kind!r}, no model of the zoo ({', '.join(list_models())}).")
        with torch.device("meta"):
            facts["parameters"] = f"{variant.load(variant.model)(config).num_parameters():,}"
    facts = {
        "variant": f"{variant.id}: {variant.title}",
        "paper": f"https://arxiv.org/abs/{variant.paper}",
        "classes": f"{variant.model}, {variant.processor}, {variant.config}",
        "loaded by": ", ".join(variant.auto_classes),
        "tasks": ", ".join(variant.tasks),
        "trained by": variant.recipe,
        "licence": variant.licence,
        **facts,
    }
    for fact, value in facts.items():
        typer.echo(f"{fact:11} {value}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def convert(
    context: typer.Context,
    variant: Annotated[str, typer.Argument(help="What to convert to or from.", autocompletion=_converters)],
) -> None:
    """Convert checkpoints to a variant and back; `convert VARIANT --help` says which."""
    if variant not in list_models():
        raise ValueError(f"unknown variant {variant!r}; converters: {', '.join(_converters(''))}.")
    module = _converter(variant)
    if find_spec(module) is None or not hasattr(import_module(module), "main"):
        raise ValueError(f"{variant} has no converter to run; see the functions of hf_clipplus.models.{variant}.")
    sys.argv[0] = f"hf-clipplus convert {variant}"
    import_module(module).main(context.args)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of any CLIP-like model.")],
    classification: Annotated[
        str, typer.Option(help="Class folders, parquet, Hub id, 'clipart' or 'none'.")
    ] = "clipart",
    retrieval: Annotated[str, typer.Option(help="Images with captions; likewise.")] = "clipart",
    split: Annotated[str, typer.Option(help="Split of the data sets.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Images and texts per forward pass.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the GPU if there is one.")] = None,
    output: Annotated[Path, typer.Option(help="Results file; numbers are added to those in it.")] = Path(
        "results.json"
    ),
) -> None:
    """Zero-shot classification and retrieval; examples/evaluate.py has more options."""
    from .evaluation.any_model import EvaluationArguments
    from .evaluation.any_model import evaluate as run

    args = EvaluationArguments(
        model=model,
        classification=classification,
        retrieval=retrieval,
        split=split,
        batch_size=batch_size,
        device=device,
        output=str(output),
    )
    results = run(args, shlex.join(["python", "-m", "hf_clipplus", *sys.argv[1:]]))
    typer.echo(results.to_markdown())
    typer.echo(f"{len(results.entries)} numbers in {output}")


@app.command()
def fit(
    images: Annotated[str, typer.Argument(help="Folder of class folders, Hub id with labels, or 'coop:NAME'.")],
    output: Annotated[Path, typer.Argument(help="Folder for the classifier.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of the CLIP-like encoder.")],
    head: Annotated[str, typer.Option(help=", ".join(HEADS), autocompletion=_heads)] = "ape",
    shots: Annotated[int, typer.Option(min=1, help="Images per class; those left choose the settings.")] = 16,
    template: Annotated[list[str] | None, typer.Option(help="Prompt with {}; may be given more than once.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the augmentation.")] = 0,
) -> None:
    """Make an image classifier from a few labelled images; examples/train_ape.py compares heads and tests them."""
    from .training.few_shot_folder import fit_folder

    typer.echo(fit_folder(images, output, model, head=head, shots=shots, templates=template, seed=seed))


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model or adapter of the zoo.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: owner/name.")],
    results: Annotated[Path | None, typer.Option(exists=True, help="Results file of `evaluate`.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, e.g. cc-by-4.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it is not there.")] = None,
    bundle: Annotated[bool, typer.Option("--bundle", help="Add the code, for machines without hf_clipplus.")] = False,
    handler: Annotated[
        str | None, typer.Option(help="Add an endpoint's handler.py for this task.", autocompletion=_tasks)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go up, and ask nothing.")] = False,
) -> None:
    """Push weights, processor, card and numbers to the Hub by one commit."""
    from .evaluation.results import Results
    from .hub import push as upload
    from .hub.loading import load_from_zoo

    loaded, processor = load_from_zoo(model)
    found = upload(
        loaded,
        processor,
        repo_id,
        results=None if results is None else Results.from_json(results),
        private=private or None,
        revision=revision,
        bundle=bundle,
        handler_task=handler,
        dry_run=dry_run,
        **({} if license is None else {"license": license}),
    )
    typer.echo(str(found))
