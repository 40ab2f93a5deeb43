"""Gets the `tests/` folder of the installed transformers version from its source distribution; the wheel has none.

    python tests/common/fetch_sdist.py

Downloads some 10 MB once per version, with pip; afterwards there is nothing to do.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "transformers-sdist"


class SdistError(RuntimeError):
    """The source distribution could not be had; says why."""


def fetch(cache: Path = CACHE) -> Path:
    """The unpacked `tests` folder `<cache>/<version>/tests` of the installed transformers, downloaded when missing.

    Raises:
        SdistError: the download failed, or the archive is not the one of the installed version.
    """
    installed = version("transformers")
    folder = cache / installed / "tests"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        unpacked = _unpack(_download(installed, Path(scratch)), f"transformers-{installed}/tests/", Path(scratch))
        (unpacked / "__init__.py").touch()
        if not folder.is_dir():  # another process may have been faster
            unpacked.rename(folder)
    return folder


def _download(installed: str, target: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--no-binary", "transformers", "--retries", "1", "--timeout", "30"]
    command = [sys.executable, "-m", "pip", "download", *options, f"transformers=={installed}", "-d", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = list(target.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        lines = done.stderr.strip().splitlines() or ["no archive came"]
        raise SdistError(f"pip could not download the source of transformers {installed}: {lines[-1]}")
    return archives[0]


def _unpack(archive: Path, prefix: str, target: Path) -> Path:
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(prefix)]
        if not members:
            raise SdistError(f"{archive.name} holds no {prefix}: it is another version, or its layout has changed.")
        tar.extractall(target, members, filter="data")
    return target / prefix


if __name__ == "__main__":
    try:
        print(fetch().relative_to(CACHE.parents[1]))
    except SdistError as error:
        sys.exit(str(error))
