"""An empty Hub on the loopback for each module, and its client in this very process."""

import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from hub_server import serve_hub


@pytest.fixture(scope="module")
def hub():
    """A running `hub_server.Hub`."""
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def author(hub, tmp_path_factory):
    """This process, logged in to the Hub of the module, with a cache of its own: the folder that is returned.

    huggingface_hub reads its environment when it is imported, so what it read then is replaced.
    """
    import transformers.utils.hub
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("author")
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        patch.setenv("HF_TOKEN", "hf_test")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield cache
