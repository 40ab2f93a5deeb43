"""The loopback Hub, asked by huggingface_hub itself: what goes up comes back, old states stay, errors have classes."""

import subprocess
import sys

CLIENT = """
import os
import pytest
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError)

api, weights = HfApi(), bytes(range(256)) * 40
assert api.whoami()["name"] == "tester"
for kind in ("model", "dataset", "space"):
    sdk = {"space_sdk": "static"} if kind == "space" else {}
    url = api.create_repo("org/x", repo_type=kind, **sdk)
    assert url.repo_id == api.create_repo("org/x", repo_type=kind, exist_ok=True, **sdk).repo_id == "org/x"
    Path("up/sub").mkdir(parents=True, exist_ok=True)
    Path("up/README.md").write_text("---\\nlicense: mit\\n---\\n# x")
    Path("up/sub/w.safetensors").write_bytes(weights)
    first = api.upload_folder(repo_id="org/x", repo_type=kind, folder_path="up", commit_message="one").oid
    folder = Path(snapshot_download("org/x", repo_type=kind))
    assert folder.name == first == api.repo_info("org/x", repo_type=kind).sha
    assert (folder / "sub/w.safetensors").read_bytes() == weights
    assert (folder / "README.md").read_bytes() == Path("up/README.md").read_bytes()

again = api.upload_folder(repo_id="org/x", folder_path="up", commit_message="the same")
assert again.oid == first == api.model_info("org/x").sha != "", "unchanged files make no commit"
entries = {e.path: e for e in api.list_repo_tree("org/x", recursive=True)}
assert sorted(entries) == [".gitattributes", "README.md", "sub", "sub/w.safetensors"]
assert entries["sub/w.safetensors"].lfs.size == len(weights) and entries["README.md"].lfs is None
assert [e.path for e in api.list_repo_tree("org/x", "sub")] == ["sub/w.safetensors"]
assert [e.path for e in api.get_paths_info("org/x", ["README.md", "none"])] == ["README.md"]

api.create_tag("org/x", tag="v1")
api.create_branch("org/x", branch="feature/a")
second = api.create_commit("org/x", [CommitOperationAdd("a b.txt", b"a"), CommitOperationDelete("sub/")],
                           commit_message="two", parent_commit=first).oid
assert api.list_repo_files("org/x") == [".gitattributes", "README.md", "a b.txt"]
assert Path(hf_hub_download("org/x", "a b.txt")).read_bytes() == b"a"
for old in ("v1", first, "feature/a"):
    assert "sub/w.safetensors" in api.list_repo_files("org/x", revision=old)
    assert Path(hf_hub_download("org/x", "sub/w.safetensors", revision=old)).read_bytes() == weights
assert [branch.name for branch in api.list_repo_refs("org/x").branches] == ["main", "feature/a"]

url = f"{os.environ['HF_ENDPOINT']}/org/x/resolve/v1/sub/w.safetensors"
from huggingface_hub.utils import get_session
part = get_session().get(url, headers={"Range": "bytes=3-9"})
assert (part.status_code, part.content, part.headers["content-range"]) == (206, weights[3:10], "bytes 3-9/10240")
assert get_session().get(url, headers={"Range": "bytes=10240-"}).status_code == 416

def status(call):
    with pytest.raises(HfHubHTTPError) as error:
        call()
    return error.value.response.status_code

with pytest.raises(RepositoryNotFoundError):
    api.model_info("org/nothing")
with pytest.raises(RepositoryNotFoundError):
    api.model_info("nothing")
with pytest.raises(RevisionNotFoundError):
    hf_hub_download("org/x", "README.md", revision="v2")
with pytest.raises(EntryNotFoundError):
    hf_hub_download("org/x", "sub/w.safetensors")
assert status(lambda: api.create_repo("org/x")) == 409
assert status(lambda: api.create_tag("org/x", tag="v1")) == 409
assert status(lambda: api.create_branch("org/x", branch="main")) == 409
add = [CommitOperationAdd("c", b"c")]
assert status(lambda: api.create_commit("org/x", add, commit_message="late", parent_commit=first)) == 412
assert status(lambda: HfApi(token=False).create_repo("org/y")) == 401
"""


def test_huggingface_hub_as_client(hub, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        cwd=tmp_path,
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert hub.files("org/x", "v1")["sub/w.safetensors"] == bytes(range(256)) * 40
    assert ("POST", "/api/models/org/x/commit/main") in hub.requests
