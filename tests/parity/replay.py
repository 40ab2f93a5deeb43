"""Where the fixtures of a variant are, and how a parity test finds its files among them."""

import os
from pathlib import Path

PARITY = Path(os.environ.get("CLIPPLUS_PARITY_DIR", Path(__file__).parents[1] / "fixtures" / "parity"))


def names_of(folder, kind):
    """Names, without endings, of the fixtures of a kind: those that begin with it. A kind without one fails."""
    found = sorted(path.stem for path in folder.glob(f"{kind}*.json"))
    assert found, f"no fixture {kind}* in {folder}"
    return found


def assert_known(folder, kinds):
    """Every fixture is of a kind that a test knows, and every kind has one."""
    stems = {path.stem for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}
    unknown = [stem for stem in stems if not stem.startswith(tuple(kinds))]
    assert not unknown, f"no test knows these fixtures: {unknown}"
    for kind in kinds:
        names_of(folder, kind)


def part(tensors, prefix):
    """The tensors whose names begin so, under the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
