"""The way of files to the Hub: what may go up, and how it goes up: all of it in one commit, or nothing."""

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from .card import ABSOLUTE_PATH
from .checkpoints import is_whole_safetensors

TEXTS = (".json", ".jinja", ".md", ".py", ".txt", ".yaml")
KINDS = (*TEXTS, ".png", ".safetensors")
STATE_OF_TRAINING = ("trainer_state.json", "training_args*", "optimizer*", "scheduler*", "rng_state*", "checkpoint-*")
# Files of an earlier push that would contradict the new weights: other shards, and numbers of the old ones
STALE = (
    "model*.safetensors",
    "*.safetensors.index.json",
    "adapter_model.safetensors",
    "results.json",
    ".eval_results/*",
)
SECRETS = {
    "a token of the Hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a token of GitHub": re.compile(r"\b(?:ghp|gho|ghs|github_pat)_\w{30,}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# Vocabularies: every string in them is a piece of text, not a setting
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")
OWN_FOLDERS = ("home", "root", "tmp", "Users", "work", "mnt", "opt", "srv", "usr", "var", "private", "data")


def files_of(folder: str | Path) -> dict[str, Path]:
    """Path in the repository -> file, of everything in a folder."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def check_publishable(files: Mapping[str, Path]) -> None:
    """Refuse what does not belong in a model repository.

    Args:
        files: path in the repository -> file.

    Raises:
        ValueError: a pickle or another kind of file that no loader here reads, a state of training, a broken
            safetensors file, a token, a path of this machine, or a path that leaves the repository; names them all.
    """
    problems = [f"{path}: {problem}" for path, file in files.items() for problem in _problems(path, file)]
    if problems:
        raise ValueError("nothing was uploaded, because of " + "; ".join(problems) + ".")


def publish(
    repo_id: str,
    files: Mapping[str, Path],
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Put files into a repository by one commit. Until it is made, the old state is served; a crash leaves it.

    Args:
        repo_id: made if it is not there.
        files: path in the repository -> file; other files of the repository stay, but for `STALE` ones.
        message: of the commit.
        private: True for a repository that only its owners see; None takes the owner's default.
        revision: branch, made if it is not there; "main" when None.
        token: of the Hub; None takes the one that is logged in.

    Raises:
        ValueError: see `check_publishable`; or the repository is public and should be private.
    """
    check_publishable(files)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} is public already: make it private in its settings, or push to another name.")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.repo_info(repo_id, revision=revision)
    there = [sibling.rfilename for sibling in head.siblings]
    gone = [path for path in there if path not in files and any(fnmatch(path, pattern) for pattern in STALE)]
    operations = [
        *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
        *(CommitOperationDelete(path, is_folder=False) for path in gone),
    ]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha)


def _problems(path: str, file: Path) -> Iterator[str]:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path:
        yield "a path that leaves the repository"
    if any(fnmatch(part, pattern) for part in parts for pattern in STATE_OF_TRAINING):
        yield "a state of training"
    elif file.suffix not in KINDS:
        yield f"a file of a kind that is not published (pickles are not; known kinds: {', '.join(KINDS)})"
    elif file.suffix == ".safetensors":
        if not is_whole_safetensors(file):
            yield "no whole safetensors file"
    elif file.suffix in TEXTS:
        yield from _problems_of_text(file)


def _problems_of_text(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    for what, pattern in SECRETS.items():
        if pattern.search(text):
            yield what
    if (token := get_token()) and token in text:
        yield "the token that you are logged in with"
    if file.name in VOCABULARIES:
        return
    if file.suffix == ".json":
        text = "\n".join(_strings(json.loads(text)))
    for found in sorted({match.group() for match in ABSOLUTE_PATH.finditer(text)}):
        if _is_of_this_machine(found):
            yield f"{found!r}, a path of this machine"


def _is_of_this_machine(path: str) -> bool:
    return path[1:2] == ":" or path.split("/")[1] in OWN_FOLDERS or Path(path).exists()


def _strings(value) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
