"""The models behind the page: which there are, what each can do, and the few that are kept in memory."""

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from hf_clipplus import get_variant
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.hub.loading import NotOfTheZooError, load_from_zoo

DEMO = "demo"  # the choice of no model: each tab takes its own
KEPT = 5  # models in memory
# tab -> the demo's models for it, best first, and what a model needs to serve it, in words
TABS = {
    "name": (("fff", "clipart-clip"), "compares a picture with words"),
    "segment": (("groupvit", "dreamlip"), "knows which part of a picture is what (GroupViT or DreamLIP)"),
    "find": (("dreamlip",), "compares words with parts of a picture (DreamLIP)"),
    "pictures": (("clipart-clip", "fff"), "compares a picture with words"),
    "videos": (("clip_fsar",), "compares videos (CLIP-FSAR)"),
}
# folders that the repository's other commands leave, each under the name of a model above
LEFT_BY_OTHERS = {"fff": "demo/fff-0", "groupvit": "groupvit", "clip_fsar": "clip_fsar", "dreamlip": "dreamlip"}


class SorryError(ValueError):
    """What the visitor should do differently, in the visitor's words."""


@dataclass
class Loaded:
    """A model in memory.

    Args:
        title: what the page calls it.
        model: without a wrapper; an adapter's layers are in it.
        processor: its own.
        tabs: those that it serves.
        trained: how, in a few words; empty where nobody wrote it.
        support: the labelled videos that it came with, if any.
    """

    title: str
    model: PreTrainedModel
    processor: Any
    tabs: frozenset[str]
    trained: str = ""
    support: Any = None


class Shelf:
    """Loads models when they are asked for.

    Args:
        folder: has `models/<name>`; on the Hub the folder of the Space.
        outputs: where the repository's other commands leave models, if it is there.
    """

    def __init__(self, folder: Path, outputs: Path | None = None):
        self.known = {path.name: path for path in sorted((folder / "models").glob("*")) if path.is_dir()}
        for name, left in LEFT_BY_OTHERS.items():
            if outputs is not None and (outputs / left / "config.json").is_file():
                self.known[name] = outputs / left
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    def choices(self) -> list[tuple[str, str]]:
        """Labels and values of the page's list."""
        return [("For each tab its own", DEMO), *((title_of(path), name) for name, path in self.known.items())]

    def of_tab(self, choice: str, tab: str) -> Loaded:
        """The model that serves a tab.

        Raises:
            SorryError: it cannot be loaded, or does something else.
        """
        if choice != DEMO:
            found = self.load(choice)
            if tab not in found.tabs:
                raise SorryError(f"{found.title} cannot do this: the tab needs a model that {TABS[tab][1]}.")
            return found
        for name in TABS[tab][0]:
            if name in self.known:
                return self.load(name)
        raise SorryError(f"No demo model is here for this tab. Choose a model that {TABS[tab][1]}.")

    def load(self, choice: str) -> Loaded:
        """A known model, a folder or a repository of the Hub.

        Raises:
            SorryError: nothing of use is there.
        """
        choice = choice.strip()
        if choice not in self._loaded:
            source = str(self.known.get(choice, choice))
            if choice not in self.known and "SPACE_ID" in os.environ and Path(choice).exists():
                raise SorryError("On this page only models of the Hub can be chosen: owner/name.")
            self._loaded[choice] = load(source)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(choice)
        return self._loaded[choice]


def load(source: str) -> Loaded:
    """Any model of the zoo, an adapter on one, or a CLIP-like model of transformers.

    Raises:
        SorryError: nothing of use is there.
    """
    try:
        try:
            model, processor = load_from_zoo(source)
        except NotOfTheZooError:
            model, processor = load_dual_encoder(source)
    except (OSError, ValueError) as error:
        raise SorryError(
            f"{source!r} could not be loaded. Give a folder that save_pretrained wrote, or the name of a public "
            f"repository on the Hub, like openai/clip-vit-base-patch32. ({str(error).splitlines()[0]})"
        ) from error
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    support = getattr(model, "support", None)
    return Loaded(
        title=title_of(Path(source), model.config.model_type),
        model=model,
        processor=processor,
        tabs=tabs_of(model),
        trained=how_trained(Path(source)),
        support=None if support is None else model.stored_support(),
    )


def tabs_of(model: PreTrainedModel) -> frozenset[str]:
    """The tabs that a model serves, by what it can do."""
    found = set()
    if hasattr(model, "get_image_features"):
        found |= {"name", "pictures"}
    if hasattr(model, "backbone"):  # a classifier on an encoder
        found |= {"name", "pictures"}
    if hasattr(model, "segment") or hasattr(model, "get_patch_features"):
        found.add("segment")
    if hasattr(model, "get_patch_features"):
        found.add("find")
    if hasattr(model, "encode_support"):
        found.add("videos")
    return frozenset(found)


def title_of(path: Path, model_type: str | None = None) -> str:
    """What the page calls a model: its method, and where it is from."""
    if model_type is None:
        model_type = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    name = model_type.removeprefix("clipplus_")
    method = get_variant(name).title.partition(":")[0] if name != model_type else name.upper()
    return f"{method} ({path.name})"


def how_trained(source: Path) -> str:
    """What prepare.py left about a model."""
    file = source / "space.json"
    return json.loads(file.read_text(encoding="utf-8"))["trained"] if file.is_file() else ""
