"""Arguments of a script: YAML file, command line, which of them wins, and what wrong ones say."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from hf_clipplus.models.configuration_finer_vision import FinerVision
from hf_clipplus.models.longclip import LongCLIPModel, LongCLIPProcessor
from hf_clipplus.training import ContrastiveTrainingArguments, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.build import FFFModelArguments, build_model
from hf_clipplus.training.long_caption_build import StartArguments, start_model

ENCODER = Path(__file__).parents[2] / "examples" / "checkpoints" / "clipart-clip"


@dataclass
class Options:
    """A field of every kind that the scripts use."""

    needed: str = field(metadata={"help": "Has no default."})
    rate: float = field(default=0.1, metadata={"help": "A number."})
    flag: bool = field(default=False, metadata={"help": "Off."})
    on_flag: bool = field(default=True, metadata={"help": "On."})
    names: list[str] = field(default_factory=lambda: ["a"], metadata={"help": "A list."})
    chunk: int | None = field(default=None, metadata={"help": "Optional."})


@pytest.fixture
def parse(tmp_path):
    """parse(values, *argv): read `values` as a YAML file, and the command line after it."""

    def parse(values, *argv):
        path = tmp_path / "config.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        (options,) = parse_arguments((Options,), "A test.", ["--config", str(path), *argv])
        return options

    return parse


def test_file_alone(parse):
    values = {"needed": "x", "rate": 0.5, "flag": True, "on_flag": False, "names": ["b", "c"], "chunk": 4}
    assert vars(parse(values)) == values


@pytest.mark.parametrize("where", ["before", "after"])
def test_command_line_wins_wherever_it_stands(tmp_path, where):
    path = tmp_path / "config.yaml"
    path.write_text("needed: x\nrate: 0.5\nnames: [b, c]\nflag: true\non_flag: false\n")
    line = ["--rate", "0.7", "--names", "d", "--flag", "false", "--on_flag"]
    argv = [*line, "--config", str(path)] if where == "before" else ["--config", str(path), *line]
    (options,) = parse_arguments((Options,), "A test.", argv)
    assert vars(options) == {
        "needed": "x",
        "rate": 0.7,
        "flag": False,
        "on_flag": True,
        "names": ["d"],
        "chunk": None,
    }


def test_config_with_an_equals_sign_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("needed: x\n")
    assert parse_arguments((Options,), "A test.", [f"--config={path}"])[0].needed == "x"


def test_numbers_that_yaml_reads_as_text_or_that_begin_with_a_dash(parse):
    assert parse("needed: x\nrate: 1e-3\n").rate == 1e-3
    assert parse("needed: x\nrate: -2.5e-7\n").rate == -2.5e-7
    assert parse("needed: --x\n").needed == "--x"


def test_null_means_none_and_only_where_that_is_the_default(parse, capsys):
    assert parse("needed: x\nchunk: null\n").chunk is None
    with pytest.raises(SystemExit):
        parse("needed: x\nrate:\n")
    assert "rate has no value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "argv", "message"),
    [
        ("needed: x\nrat: 1\nnmes: [a]\n", [], "unknown arguments nmes, rat"),
        ("needed: x\nconfig: other.yaml\n", [], "unknown arguments config"),
        ("needed: x\n", ["--ratee", "1"], "unknown arguments --ratee 1"),
        ("needed: x\n", ["--rat", "1"], "unknown arguments --rat 1"),
        ("needed: x\nrate: fast\n", [], "--rate"),
        ("needed: x\nflag: perhaps\n", [], "--flag"),
        ("rate: 1\n", [], "--needed"),
        ("- needed\n- x\n", [], "expected lines `name: value`, got a list"),
        ("needed: [x\n", [], "--config"),
    ],
)
def test_what_is_wrong_is_named(parse, capsys, values, argv, message):
    with pytest.raises(SystemExit) as stopped:
        parse(values, *argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--config"], ["--config", "no-such-file.yaml"]])
def test_missing_file_is_named(argv, capsys):
    with pytest.raises(SystemExit):
        parse_arguments((Options,), "A test.", argv)
    assert "--config" in capsys.readouterr().err


def test_several_classes_and_dicts_of_trainer(tmp_path):
    path = tmp_path / "config.yaml"
    values = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "dataset": "my/images",
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 0.001},
        "gradient_cache_chunk_size": 32,
    }
    path.write_text(yaml.safe_dump(values))
    data, args = parse_arguments(
        (PairDataArguments, ContrastiveTrainingArguments), "A test.", ["--config", str(path), "--streaming"]
    )
    assert (data.dataset, data.streaming) == ("my/images", True)
    assert args.lr_scheduler_kwargs == {"min_lr": 0.001}
    assert (args.gradient_cache_chunk_size, args.remove_unused_columns) == (32, False)


def test_help_says_what_a_field_is_for(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments((Options,), "Trains a thing.", ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "Trains a thing." in text
    assert "Has no default." in text


CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("fff*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_committed_configs_name_known_arguments(path, tmp_path):
    from hf_clipplus.training.build import FFFModelArguments

    line = ["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--tf32", "false"]
    kinds = (FFFModelArguments, PairDataArguments, ContrastiveTrainingArguments)
    *_, args = parse_arguments(kinds, "A test.", line)
    assert args.output_dir == str(tmp_path)
    assert CONFIGS


def test_finer_vision_reaches_model_and_processor():
    """Of a checkpoint that has none: the projection is new, and pictures are as large as the scales need."""
    given = {"scales": [1, 2], "fusion": "projection"}
    options = {"model_name_or_path": str(ENCODER), "finer_vision": json.dumps(given)}
    fff, processor, bias_is_open = build_model(
        FFFModelArguments(**options, mining_features="none"), PairDataArguments()
    )
    assert not bias_is_open
    clip, its_processor = start_model(LongCLIPModel, LongCLIPProcessor, StartArguments(**options), PairDataArguments())
    for model, own in ((fff, processor), (clip, its_processor)):
        assert FinerVision.of(model.config) == FinerVision.read(given)
        assert dict(own.image_processor.crop_size) == {"height": 96, "width": 96}
    kept = FFFModelArguments(model_name_or_path=str(ENCODER)).config()
    assert "finer_vision" not in kept  # a resumed run goes on with what its checkpoint says
