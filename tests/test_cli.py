"""The command line: answers at once where it can, says what is wrong in one line, and does what it says."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from hf_clipplus import cli, list_models
from hf_clipplus.training.few_shot_compare import ALL_HEADS

ENCODER = "examples/checkpoints/clipart-clip"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*arguments):
    done = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_list_info_and_completion_load_nothing_heavy():
    script = """
import sys
from typer.testing import CliRunner
from hf_clipplus import cli
runner = CliRunner()
told = runner.invoke(cli.app, ["list", "f*"]).output
assert told.startswith("fff ") and len(told.splitlines()) == 1, told
assert "FFFModel" in runner.invoke(cli.app, ["info", "fff"]).output
assert "evaluate" in runner.invoke(cli.app, ["--help"]).output
complete = {"_HF_CLIPPLUS_COMPLETE": "complete_bash", "COMP_WORDS": "hf-clipplus info f", "COMP_CWORD": "2"}
assert runner.invoke(cli.app, [], env=complete, prog_name="hf-clipplus").output.split() == ["fff"]
print(*sorted({"torch", "transformers", "datasets", "peft"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip()


def test_every_variant_is_listed():
    assert [line.split()[0] for line in run("list").output.splitlines()] == list_models()
    assert {"fff", "groupvit", "ape"} <= set(cli._converters("")) <= set(list_models())
    assert set(cli.HEADS) == set(ALL_HEADS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "x*"], "no variant matches 'x*'; there are fff"),
        (["convert", "clip", "a", "b"], "unknown variant 'clip'; converters: "),
        (["fit", ENCODER, "out", "--model", ENCODER, "--head", "svm"], "head 'svm' is unknown: choose one of"),
        (["info", "/no/such/folder"], "no/such/folder"),
    ],
)
def test_errors_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-clipplus", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert str(stopped.value.code).startswith("hf-clipplus: ")
    assert message in str(stopped.value.code)


def test_a_mistyped_command_is_put_right():
    done = run("evalute")
    assert done.exit_code != 0
    assert "evaluate" in done.output


def test_info_of_a_folder():
    told = run("info", os.path.join(ROOT, ENCODER)).output
    assert "variant     fff" in told
    assert "AutoModelForZeroShotImageClassification" in told
    (parameters,) = (line.split()[1] for line in told.splitlines() if line.startswith("parameters"))
    assert int(parameters.replace(",", "")) > 1e6


def test_convert_runs_the_converter_of_the_variant(tmp_path, capsys):
    done = run("convert", "fff", "to-open-clip", os.path.join(ROOT, ENCODER), tmp_path / "open_clip.pt")
    assert "used         " in done.output
    assert "visual.conv1.weight" in torch.load(tmp_path / "open_clip.pt", weights_only=True)
    assert "from-open-clip" in run("convert", "fff", "--help").output


def test_fit_then_push(tmp_path, monkeypatch):
    from hf_clipplus.data.clipart import CaptionWorld

    world, counts = CaptionWorld("test", image_size=48, train=False), {}
    for row in (world[i] for i in range(len(world))):
        counts.setdefault(row["class_name"], []).append(row["image"])
    counts.pop(None, None)
    for name in sorted(counts, key=lambda name: -len(counts[name]))[:3]:
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number, image in enumerate(counts[name][:6]):
            image.save(folder / f"{number}.png")
    encoder, output = os.path.join(ROOT, ENCODER), tmp_path / "classifier"
    told = run("fit", tmp_path / "pictures", output, "--model", encoder, "--shots", 2, "--head", "tip").output
    assert "Tip-Adapter of 3 classes" in told
    (entry,) = json.loads((output / "results.json").read_text())["results"]
    assert f"{entry['value']:.1%} of 6 test images" in told
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    told = run("push", output, "org/tip-plus", "--dry-run", "--results", output / "results.json", "--bundle").output
    assert "ape_bundle.py" in told
    assert "would go to org/tip-plus" in told
