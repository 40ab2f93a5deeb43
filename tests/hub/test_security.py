"""Files from strangers: pickles that run code, paths that leave a folder, pictures and JSON larger than they look."""

import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hostile import Malice, hollow_png
from hub_server import Blob, Repo
from huggingface_hub import snapshot_download

from hf_clipplus.data.images import UnreadableImageError, load_image
from hf_clipplus.evaluation.results import MAX_BYTES, Results
from hf_clipplus.models.ape.convert_ape import load_inert, read_tensor
from hf_clipplus.models.groupvit.convert_groupvit import read_official
from hf_clipplus.models.open_clip_layout import read_checkpoint


@pytest.mark.parametrize("written_by", ["torch", "pickle"])
@pytest.mark.parametrize("read", [read_checkpoint, read_official, read_tensor, load_inert])
def test_no_converter_runs_a_pickle(tmp_path, read, written_by):
    file, target = tmp_path / "model.pt", tmp_path / "owned"
    content = {"weight": torch.ones(2), "model": Malice(target)}
    if written_by == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises((pickle.UnpicklingError, RuntimeError, ValueError)):
        read(file)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malice(target)))
    assert target.exists(), "it does run where it is trusted"


@pytest.mark.parametrize("path", ["../../../evil.txt", "/evil.txt", "a/../../../../evil.txt"])
def test_a_repository_cannot_write_outside_of_the_cache(hub, author, tmp_path, path):
    repo = Repo("org/evil")
    repo.commit("main", {path: Blob(b"evil")}, "evil")
    hub.repos["models", "org/evil"] = repo
    cache = tmp_path / "a" / "b" / "cache"
    with suppress(OSError, ValueError):
        snapshot_download("org/evil", cache_dir=cache)
    written = [file for file in tmp_path.rglob("*") if file.is_file() or file.is_symlink()]
    assert all(file.is_relative_to(cache) for file in written), written
    assert not Path("/evil.txt").exists()


def test_a_picture_with_too_many_pixels_is_not_decoded(tmp_path):
    data = hollow_png(20_000, 20_000)
    assert len(data) < 100_000
    (tmp_path / "hollow.png").write_bytes(data)
    for picture in (data, str(tmp_path / "hollow.png")):
        with pytest.raises(UnreadableImageError, match="decompression bomb"):
            load_image(picture)


@pytest.mark.parametrize("text", ['{"results": ' + "[" * 100_000, '{"results": [{"value": 1e999}]}', "[]"])
def test_no_json_breaks_the_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="no results file"):
        Results.from_json(tmp_path / "results.json")


def test_a_huge_json_is_not_even_read(tmp_path):
    with open(tmp_path / "results.json", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match="a results file at most"):
        Results.from_json(tmp_path / "results.json")
