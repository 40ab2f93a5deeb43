"""Writes the repository of a model of the zoo, and pushes it by one commit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import CommitInfo, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from transformers import PreTrainedModel

from hf_clipplus.evaluation.results import Results, is_hub_id
from hf_clipplus.training.card import base_model, model_card, own_results, variant_of
from hf_clipplus.training.publish import check_publishable, files_of, publish
from hf_clipplus.training.trainer_card import RESULTS_FILE

from . import handler
from .bundle import export_remote_code

EVAL_RESULTS = ".eval_results"


@dataclass(frozen=True)
class Push:
    """What went up, or would.

    Args:
        repo_id: the repository.
        sizes: path in the repository -> bytes.
        commit: None after a dry run.
    """

    repo_id: str
    sizes: dict[str, int]
    commit: CommitInfo | None = None

    def __str__(self) -> str:
        lines = [f"{size:>15,}  {path}" for path, size in self.sizes.items()]
        what = "would go to" if self.commit is None else f"are commit {self.commit.oid} of"
        return "\n".join(
            [*lines, f"{sum(self.sizes.values()):>15,}  bytes in {len(lines)} files {what} {self.repo_id}"]
        )


def write_repository(
    model: PreTrainedModel | PeftModel,
    processor: Any,
    folder: str | Path,
    repo_id: str,
    *,
    results: Results | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    bundle: bool = False,
    handler_task: str | None = None,
    max_shard_size: str = "5GB",
    **metadata: Any,
) -> None:
    """Write everything that goes into a repository.

    Args:
        model: of the zoo, or an adapter whose base is on the Hub.
        processor: saved beside it.
        folder: is made; should be empty.
        repo_id: Hub id; what the card calls the model.
        results: numbers of this model: `results.json`, the card's table and model-index, and `.eval_results`.
        facts: further sections of the card, see `model_card`.
        bundle: add the code of the model, for machines without this package (`export_remote_code`).
        handler_task: add `handler.py` for an Inference Endpoint with this pipeline; needs the bundle.
        max_shard_size: of a weight file.
        metadata: of the card (`license`, `language`, `datasets`, `tags`, ...).

    Raises:
        ValueError: the model is not of the zoo, an adapter's base is not on the Hub, results of other models, a
            handler without the bundle or for a task that it does not know.
    """
    folder, adapter = Path(folder), isinstance(model, PeftModel)
    if adapter and not is_hub_id(base_model(model)):
        raise ValueError(
            f"the adapter's base is {base_model(model)!r}, which nobody else can load: push the base, then set "
            "model.peft_config[...].base_model_name_or_path to its Hub id."
        )
    if handler_task and not bundle:
        raise ValueError("handler_task needs bundle=True: an endpoint's machine does not have this package.")
    folder.mkdir(parents=True, exist_ok=True)
    if adapter:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    results = own_results(results or Results(), repo_id, model)
    card = model_card(model, repo_id, results=results, facts=facts, **metadata)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    if results.entries:
        results.to_json(folder / RESULTS_FILE)
        _write_eval_results(results, folder / EVAL_RESULTS)
    if bundle:
        export_remote_code(model, processor, folder)
    if handler_task:
        _write_handler(handler_task, folder / "handler.py")


def push(
    model: PreTrainedModel | PeftModel,
    processor: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    token: str | None = None,
    **contents: Any,
) -> Push:
    """Push a model of the zoo by one commit; until it is made, the repository is as it was.

    Example:

    ```python
    >>> from hf_clipplus.hub import push

    >>> print(push(model, processor, "org/fff-plus", results=results, license="cc0-1.0", dry_run=True))
    ```

    Args:
        model, processor: see `write_repository`.
        repo_id: made if it is not there.
        private: True for a repository that only its owners see; None takes the owner's default.
        revision: branch, made if it is not there.
        dry_run: write and check everything, ask nothing of the Hub, and say what would go up.
        message: of the commit.
        token: of the Hub; None takes the one that is logged in.
        contents: `results`, `facts`, `bundle`, `handler_task`, `max_shard_size` and metadata of `write_repository`.

    Raises:
        ValueError: see `write_repository` and `training.publish.check_publishable`.
    """
    validate_repo_id(repo_id)
    with TemporaryDirectory() as folder:
        write_repository(model, processor, folder, repo_id, **contents)
        files = files_of(folder)
        sizes = {path: file.stat().st_size for path, file in files.items()}
        if dry_run:
            check_publishable(files)
            return Push(repo_id, sizes)
        message = message or f"Upload {variant_of(model).title.partition(':')[0]}"
        commit = publish(repo_id, files, message=message, private=private, revision=revision, token=token)
    return Push(repo_id, sizes, commit)


def _write_eval_results(results: Results, folder: Path) -> None:
    """One file for each data set of the Hub, as its leaderboards read them."""
    by_dataset = {}
    for entry in results.to_eval_entries():
        by_dataset.setdefault(entry.dataset_id, []).append(entry)
    for dataset, entries in by_dataset.items():
        folder.mkdir(exist_ok=True)
        file = folder / f"{dataset.replace('/', '--')}.yaml"
        file.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")


def _write_handler(task: str, file: Path) -> None:
    """The endpoint's file, for one task."""
    if task not in handler.PARAMETERS:
        raise ValueError(f"handler.py serves {', '.join(handler.PARAMETERS)}, not {task!r}.")
    code = Path(handler.__file__).read_text(encoding="utf-8")
    file.write_text(code.replace(f'TASK = "{handler.TASK}"', f'TASK = "{task}"'), encoding="utf-8")
