"""The digits experiment in its quick form: trains with the product's losses, and FFF beats the raw baselines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fff_digits.py"


@pytest.mark.slow
def test_quick_experiment(tmp_path):
    output = tmp_path / "digits.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--output", str(output)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| FFF (k captions + gated mining) |" in done.stdout
    (result,) = json.loads(output.read_text())["results"]
    accuracy = {name: metrics["accuracy"][0] for name, metrics in result["arms"].items()}
    assert len(accuracy) == 11
    assert result["verdict"]["beats both raw baselines by 10 points"] is True
    assert min(accuracy.values()) > 10  # chance is 1: no arm failed to train
    mining = {figure: values[0] for figure, values in result["mining"].items()}
    assert mining["precision_caption"] > mining["own_precision"] > mining["base_rate"]
    assert mining["recall_duplicates"] > 50 > mining["recall_all"] > 0
