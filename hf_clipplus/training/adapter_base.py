"""The base of an adapter: saved beside it, and published before it, so that the adapter's repository finds it."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel

from .card import model_card
from .publish import files_of, publish

FOLDER, ADAPTER_CONFIG = "base", "adapter_config.json"


def base_id(repo_id: str) -> str:
    """The repository of an adapter's base."""
    return f"{repo_id}-base"


def save_base(base: PreTrainedModel, processor: Any, folder: str | Path, repo_id: str) -> str:
    """Save a base, its processor and its card in `folder/base`; adapters that are made on it now name that folder.

    Args:
        base, processor: of the zoo.
        folder: of the adapter.
        repo_id: of the adapter.

    Returns:
        The base's folder.
    """
    folder = (Path(folder) / FOLDER).absolute()
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(str(model_card(base, base_id(repo_id))), encoding="utf-8")
    base.name_or_path = str(folder)
    return str(folder)


def publish_adapter(repo_id: str, files: Mapping[str, Path], base_folder: Path, **options: Any) -> CommitInfo:
    """Publish a base as `<repo_id>-base`, then the adapter, which names it.

    Args:
        repo_id: of the adapter.
        files: see `publish`; `adapter_config.json` names a folder of this machine as its base.
        base_folder: see `save_base`.
        options: of `publish`.
    """
    publish(base_id(repo_id), files_of(base_folder), **options)
    with TemporaryDirectory() as temporary:
        config = json.loads(files[ADAPTER_CONFIG].read_text(encoding="utf-8"))
        file = Path(temporary) / ADAPTER_CONFIG
        file.write_text(json.dumps(config | {"base_model_name_or_path": base_id(repo_id)}, indent=2), encoding="utf-8")
        return publish(repo_id, {**files, ADAPTER_CONFIG: file}, **options)
