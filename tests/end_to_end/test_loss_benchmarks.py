"""The benchmarks of the loss run, and what they compare computes the same thing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["dense", "checkpointed"])
def test_compared_losses_have_equal_gradients(version, monkeypatch):
    benchmark = load("contrastive_loss")
    monkeypatch.setattr(benchmark, "CHUNK_ROWS", 7)  # several chunks, the last one smaller
    inputs = benchmark.make_inputs(24, 3, 8, "cpu", torch.float32)
    found = {}
    for name in ("ours", version):
        for leaf in inputs[:4]:
            leaf.grad = None
        benchmark.VERSIONS[name](*inputs)
        found[name] = [leaf.grad.clone() for leaf in inputs[:4]]
    for a, b in zip(found["ours"], found[version], strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def run(script, output, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())["results"]


@pytest.mark.slow
def test_loss_benchmark_at_toy_size(tmp_path):
    size = ("--sizes", "1024", "--captions", "2", "--threads", "1", "--width", "16", "--repetitions", "1")
    (result,) = run("contrastive_loss.py", tmp_path / "loss.json", *size)
    assert set(result["seconds"]) == {"ours", "dense", "checkpointed", "floor"}
    assert min(result["seconds"].values()) > 0
    assert result["extra_mib"]["dense"] > 16 > result["extra_mib"]["floor"] > 1  # 8 MiB: the N x C matrix; a tile: 2


@pytest.mark.slow
def test_step_benchmark_at_toy_size(tmp_path):
    results = run("fff_step.py", tmp_path / "step.json", "--batch", "4", "--captions", "2", "--pairs", "2")
    assert [len(result["ratios"]) for result in results] == [2]


def test_interval_of_the_median():
    interval = load("fff_step").median_interval
    assert interval(list(range(6))) == (0, 5)  # six values: the extremes hold the median with 97%
    assert interval(list(range(15))) == (3, 11)  # ranks 4 and 12 of 15: 96.5%
    assert interval([1.0]) == (1.0, 1.0)
