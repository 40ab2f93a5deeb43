"""Rules of the house that hold in every file: who imports whom, what the catalogue claims, what no file contains."""

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
import transformers
from transformers.pipelines import PIPELINE_REGISTRY

import hf_clipplus
from hf_clipplus.catalogue import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_clipplus"
TRACKED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
FILES = [ROOT / name for name in TRACKED.stdout.split("\0") if name and (ROOT / name).is_file()]
MODULES = [path for path in FILES if path.suffix == ".py"]
EXAMPLES = sorted(path for path in MODULES if path.parent == ROOT / "examples")

# room -> rooms that it may import; its own always, but one variant's folder never another's. No cycle can arise.
BELOW_DATA = {"ops", "models", "tuners"}
MAY_IMPORT = {
    "ops": set(),
    "models": {"ops"},
    "tuners": {"ops", "models"},
    "data": BELOW_DATA,
    "evaluation": BELOW_DATA | {"data", "catalogue"},
    "training": BELOW_DATA | {"data", "evaluation", "catalogue"},
    "hub": BELOW_DATA | {"data", "evaluation", "training", "catalogue", "registration"},
    "pipelines": BELOW_DATA | {"data", "evaluation", "training", "catalogue"},
    # modules of the package itself; what they need of the rooms they load by name
    "catalogue": set(),
    "registration": {"catalogue"},
    "__init__": {"catalogue", "registration"},
    "cli": BELOW_DATA | {"data", "evaluation", "training", "hub", "pipelines", "catalogue"},
    "__main__": {"cli"},
}
NOT_IN_MODELS = {"accelerate", "datasets", "diffusers", "evaluate", "gradio", "peft"}
HEAVY = ("accelerate", "av", "datasets", "diffusers", "evaluate", "gradio", "torchvision")


def imports(source: str, module: str) -> Iterator[tuple[str, bool]]:
    """(full dotted name, whether at the top level) of everything that a module imports, names of `from` included."""
    tree = ast.parse(source)
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            yield from ((f"{base}.{alias.name}", id(node) in top) for alias in node.names)


def broken_rules(source: str, path: str) -> list[str]:
    """What the import rule has against a file; `path` is relative to the package, e.g. `ops/positives.py`."""
    parts = Path(path).with_suffix("").parts
    found = []
    for name, at_top in imports(source, ".".join(("hf_clipplus", *parts))):
        if objection := object_to(name, parts, at_top):
            found.append(f"{objection}: {name}")
    return found


def object_to(name: str, parts: tuple[str, ...], at_top: bool) -> str | None:
    room = parts[0]
    first, *rest = name.split(".")
    if first == "hf_clipplus":
        other = rest[0] if rest and rest[0] in MAY_IMPORT else "__init__"
        if other != room:
            return None if other in MAY_IMPORT[room] else f"{room} may not import {other}"
        folder = rest[1] if len(rest) > 1 and (PACKAGE / room / rest[1]).is_dir() else None
        sideways = room in ("models", "tuners") and folder and parts[1:-1] != (folder,)
        return "only its own folder imports a variant" if sideways else None
    if first in ("examples", "benchmarks", "tests", "upload_scripts"):
        return f"the package may not import {first}"
    if room == "ops" and first != "torch" and first not in sys.stdlib_module_names:
        return "ops imports torch only"
    for_training = first in NOT_IN_MODELS or name.startswith(("transformers.Train", "transformers.train"))
    lazily_in_diva = first == "diffusers" and parts[1:2] == ("diva",) and not at_top
    if room == "models" and for_training and not lazily_in_diva:
        return "models must serve inference alone"
    return None


def test_imports_go_downwards_only():
    package = [path for path in MODULES if path.is_relative_to(PACKAGE)]
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in package}
    assert rooms <= MAY_IMPORT.keys(), "a new room: say in MAY_IMPORT what it may import"
    broken = [
        f"{path.relative_to(ROOT)}: {rule}"
        for path in package
        for rule in broken_rules(path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE)))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/x.py", "import numpy"),
        ("ops/x.py", "from ..models import dual_encoder"),
        ("models/dual_encoder.py", "from .fff import FFFModel"),
        ("models/other/modeling_other.py", "from hf_clipplus.models.fff import FFFModel"),
        ("models/other/modeling_other.py", "from ..fff.modeling_fff import FFFModel"),
        ("models/fff/modeling_fff.py", "def f():\n    import datasets"),
        ("models/fff/modeling_fff.py", "from transformers import Trainer"),
        ("models/fff/modeling_fff.py", "from hf_clipplus import FFFModel"),
        ("models/diva/modeling_diva.py", "import diffusers"),
        ("data/x.py", "from ..evaluation.metrics import similarity"),
        ("evaluation/x.py", "from hf_clipplus.training import ContrastiveTrainer"),
        ("training/x.py", "import hf_clipplus.hub"),
        ("hub/x.py", "from examples import train_fff"),
    ],
)
def test_the_import_rule_sees_what_is_forbidden(path, source):
    assert len(broken_rules(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/x.py", "import math\nimport torch.nn\nfrom .positives import Positives"),
        ("models/fff/modeling_fff.py", "from .configuration_fff import FFFConfig\nfrom ..dual_encoder import X"),
        ("models/diva/modeling_diva.py", "def f():\n    from diffusers import UNet2DModel"),
        ("training/x.py", "from hf_clipplus.evaluation import RetrievalEvaluator"),
    ],
)
def test_the_import_rule_lets_the_rest_pass(path, source):
    assert not broken_rules(source, path)


def test_importing_the_package_is_cheap():
    script = f"""
import sys, time
import torch, transformers
before = set(sys.modules)
start = time.perf_counter()
import hf_clipplus
seconds = time.perf_counter() - start
new = set(sys.modules) - before
print(seconds)
print(*sorted(new & set({HEAVY!r})))
print(*sorted(name for name in new if name.startswith(("transformers.", "torch."))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, heavy, others = done.stdout.split("\n")[:3]
    assert float(seconds) < 0.3
    assert not heavy
    assert not others, f"import hf_clipplus loads {others}"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
def test_catalogue_entry_is_real(variant):
    config, model, processor = (variant.load(name) for name in (variant.config, variant.model, variant.processor))
    assert config.model_type == f"clipplus_{variant.id}"
    assert model.config_class is config
    assert issubclass(processor, transformers.ProcessorMixin)
    assert (getattr(hf_clipplus, variant.config), getattr(hf_clipplus, variant.model)) == (config, model)
    assert re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", variant.paper)
    assert (ROOT / variant.recipe).is_file()
    assert set(variant.tasks) <= set(PIPELINE_REGISTRY.get_supported_tasks())
    assert variant.title.endswith(tuple("abcdefghijklmnopqrstuvwxyz)"))
    for auto_class in variant.auto_classes:
        registered = getattr(transformers, auto_class)._model_mapping[config]
        assert registered.__name__ == variant.model


def test_every_variant_is_in_the_catalogue_once():
    ids = [variant.id for variant in VARIANTS]
    folders = {path.parent.name for path in MODULES if path.parent.parent == PACKAGE / "models"}
    assert sorted(ids) == sorted(folders)


def test_every_module_says_what_it_is_for():
    silent = []
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if not docstring.split("\n\n")[0].endswith((".", ":")):
            silent.append(str(path.relative_to(ROOT)))
    assert not silent, "no sentence at the top of: " + ", ".join(silent)


def call_arguments(text: str, start: int) -> str:
    """What stands between the parenthesis that opens before `start` and the one that closes it."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return text[start:]


def unsafe_loads(text: str) -> list[str]:
    calls = (call_arguments(text, match.end()) for match in re.finditer(r"torch\.load\(", text))
    return [call for call in calls if "weights_only=True" not in call]


def test_pickles_are_never_trusted():
    unsafe = {str(path.relative_to(ROOT)): unsafe_loads(path.read_text(encoding="utf-8")) for path in MODULES}
    unsafe = {path: calls for path, calls in unsafe.items() if calls}
    assert not unsafe, f"torch.load without weights_only=True: {unsafe}"
    assert unsafe_loads("torch" + ".load(f(path), map_location='cpu')")
    assert not unsafe_loads("torch" + ".load(f(path), weights_only=True)")


LOCAL_PATH = re.compile(r"""(?<![\w.:/-])/(?:home|root|Users|work|mnt|opt|srv)/\w|[A-Z]:\\\\?Users\\""")
REGISTRY = re.compile(
    r"--(?:extra-)?index-url[ =]\S|https?://[^\s/\"']*(?:artifactory|nexus|jfrog|devpi|mirror|registry|proxy)[^\s\"']*"
)


def places_of_this_machine() -> list[str]:
    """Folders and package hosts that this very machine uses, whatever they are called."""
    options = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    urls = re.findall(r"https?://[^\s'\"]+", options + " " + os.environ.get("PIP_INDEX_URL", ""))
    hosts = {urlparse(url).hostname for url in urls} - {None, "localhost", "127.0.0.1"}
    return [str(ROOT), *hosts]


def test_no_file_names_a_machine():
    own, found = places_of_this_machine(), []
    for path in FILES:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if LOCAL_PATH.search(line) or REGISTRY.search(line) or any(place in line for place in own):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)
    assert LOCAL_PATH.search("open('/" + "home/me/x')")
    assert REGISTRY.search("pip install --index" + "-url=x")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_answers_help(path, monkeypatch, capsys):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < (150 if path.name.startswith("train_") else 200), f"{path.name} has {lines} lines"
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out
