"""The demo models and samples of the Space, made once."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples" / "space"))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder that prepare.py wrote, with a whole Space beside it."""
    import prepare

    folder = tmp_path_factory.mktemp("space")
    prepare.main(["--output_dir", str(folder / "made"), "--space_dir", str(folder / "hub")])
    return folder / "made"
