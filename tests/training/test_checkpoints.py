"""Which checkpoint a run resumes from: whole ones of a stock Trainer, never one that was cut anywhere."""

import json
import logging
import shutil

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from hf_clipplus.training.checkpoints import last_complete_checkpoint, why_incomplete


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, 8, 8, generator=generator),
            "input_ids": torch.tensor([0, index + 2, 1]),
            "return_loss": True,
        }


def collate(rows):
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("pixel_values", "input_ids")}
    return batch | {"return_loss": True}


@pytest.fixture(scope="module")
def stock_run(tmp_path_factory):
    """A run of transformers' own Trainer and CLIPModel with checkpoints after each of 3 steps."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = tower | {"vocab_size": 10, "max_position_embeddings": 4, "eos_token_id": 1, "bos_token_id": 0}
    vision = tower | {"image_size": 8, "patch_size": 4}
    output = tmp_path_factory.mktemp("run")
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=2,
        max_steps=3,
        save_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    Trainer(model, args, data_collator=collate, train_dataset=Rows()).train()
    return output


@pytest.fixture
def run(stock_run, tmp_path):
    return shutil.copytree(stock_run, tmp_path / "run")


def cut(path, keep=0.9):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])


def test_stock_checkpoint_is_whole_and_the_newest_is_taken(run):
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert [why_incomplete(path) for path in run.iterdir()] == [None] * 3
    assert last_complete_checkpoint(run) == str(run / "checkpoint-3")


def test_steps_are_compared_as_numbers(run):
    (run / "checkpoint-3").rename(run / "checkpoint-10")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-10")


def test_other_folders_are_no_checkpoints(run, tmp_path):
    (run / "checkpoint-best").mkdir()
    (run / "runs").mkdir()
    assert last_complete_checkpoint(run) == str(run / "checkpoint-3")
    assert last_complete_checkpoint(tmp_path / "never-written") is None


FILES = [
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
]


def test_the_list_of_files_is_what_trainer_writes(run):
    assert sorted(path.name for path in (run / "checkpoint-3").iterdir()) == FILES


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.0])
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_found(run, name, keep):
    cut(run / "checkpoint-3" / name, keep)
    assert name in why_incomplete(run / "checkpoint-3")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2")


@pytest.mark.parametrize("name", [name for name in FILES if name != "training_args.bin"])  # nothing reads that one
def test_a_missing_file_is_found(run, name):
    (run / "checkpoint-3" / name).unlink()
    assert why_incomplete(run / "checkpoint-3")


def test_safetensors_cut_within_its_header(run):
    weights = run / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    assert why_incomplete(run / "checkpoint-3") == "model.safetensors is missing or cut short"


def test_missing_shard_of_large_weights(run):
    folder = run / "checkpoint-3"
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="2KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert why_incomplete(folder) is None
    shards[-1].unlink()
    assert why_incomplete(folder) == f"{shards[-1].name} is missing"


def test_state_without_a_step(run):
    (run / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"epoch": 1}))
    assert why_incomplete(run / "checkpoint-3") == "trainer_state.json has no step"


def test_incomplete_ones_are_named_until_a_whole_one_is_found(run, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("hf_clipplus"), "propagate", True)
    cut(run / "checkpoint-3" / "optimizer.pt")
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    assert last_complete_checkpoint(run) == str(run / "checkpoint-1")
    named = [record.getMessage() for record in caplog.records]
    assert any("checkpoint-3" in text and "optimizer.pt" in text for text in named)
    assert any("checkpoint-2" in text and "trainer_state.json" in text for text in named)


def test_nothing_whole_gives_none(run):
    for path in run.iterdir():
        cut(path / "model.safetensors")
    assert last_complete_checkpoint(run) is None


def test_a_checkpoint_that_is_called_whole_can_be_resumed(run):
    state = torch.load(run / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert state["state"]
    assert isinstance(CLIPModel.from_pretrained(last_complete_checkpoint(run)), nn.Module)
