"""The download of transformers' tests: what is unpacked, what is refused, what an unreachable registry says."""

import io
import tarfile
from importlib.metadata import version

import fetch_sdist
import pytest

INSTALLED = version("transformers")


def archive(folder, *names):
    path = folder / "transformers.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            data = name.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_only_the_tests_folder_is_unpacked_and_once(tmp_path, monkeypatch):
    inside = f"transformers-{INSTALLED}/tests/test_modeling_common.py"
    source = archive(tmp_path, inside, f"transformers-{INSTALLED}/src/setup.py")
    monkeypatch.setattr(fetch_sdist, "_download", lambda installed, target: source)
    folder = fetch_sdist.fetch(tmp_path / "cache")
    assert folder == tmp_path / "cache" / INSTALLED / "tests"
    assert [path.name for path in sorted(folder.iterdir())] == ["__init__.py", "test_modeling_common.py"]
    assert [path.name for path in folder.parent.iterdir()] == ["tests"]
    monkeypatch.setattr(fetch_sdist, "_download", None)
    assert fetch_sdist.fetch(tmp_path / "cache") == folder


def test_archive_of_another_version_is_refused(tmp_path, monkeypatch):
    source = archive(tmp_path, "transformers-0.0.1/tests/test_modeling_common.py")
    monkeypatch.setattr(fetch_sdist, "_download", lambda installed, target: source)
    with pytest.raises(fetch_sdist.SdistError, match=f"holds no transformers-{INSTALLED}/tests/"):
        fetch_sdist.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache" / INSTALLED / "tests").exists()


def test_unreachable_registry_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(fetch_sdist.SdistError, match=f"could not download the source of transformers {INSTALLED}"):
        fetch_sdist.fetch(tmp_path / "cache")
