"""An empty Hub on the loopback for each module."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from hub_server import serve_hub


@pytest.fixture(scope="module")
def hub():
    """A running `hub_server.Hub`."""
    with serve_hub() as hub:
        yield hub
