"""GroupViT in the trainer: what is logged, decayed, scheduled and refused; the example in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from hf_clipplus.data.nouns import NounPromptCollator
from hf_clipplus.data.sources import IndexedRows
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments, NonFiniteLossError
from hf_clipplus.training.groupvit_build import build_groupvit
from hf_clipplus.training.scratch import train_tokenizer

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"a {colour} picture" for colour in COLOURS], vocab_size=540, context=32)


def make_trainer(tokenizer, folder, callbacks=(), **args):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "image_size": 16}
    model, processor = build_groupvit("tiny", tokenizer, vision=small, prompts_per_image=2)
    rows = [
        {"image": Image.new("RGB", (16, 16), colour), "caption": f"a {colour} picture", "nouns": [colour, "picture"]}
        for colour in COLOURS * 4
    ]
    arguments = ContrastiveTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **args,
    )
    return ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=IndexedRows(rows),
        data_collator=NounPromptCollator(processor, prompts=2),
        processing_class=processor,
        callbacks=list(callbacks),
    )


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_log_schedule_and_decay(tokenizer, tmp_path):
    rates = Rates()
    options = {"lr_schedule": "groupvit", "warmup_steps": 2, "decay_scales": True, "weight_decay": 0.05}
    trainer = make_trainer(tokenizer, tmp_path, [rates], **options)
    assert {"logit_scale", "multi_label_logit_scale"} <= set(trainer.get_decay_parameter_names(trainer.model))
    assert "visual_projection.1.weight" not in trainer.get_decay_parameter_names(trainer.model)
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 4
    names = {"logit_scale", "multi_label_logit_scale", "groups_used_0", "assignment_entropy_0", "groups_with_pixels"}
    assert records[0].keys() >= names | {"image_text_loss", "multi_label_loss"}
    assert "logit_bias" not in records[0]
    assert records[0]["loss"] == pytest.approx(
        records[0]["image_text_loss"] + records[0]["multi_label_loss"], abs=2e-3
    )
    low = 1e-3 / 400
    assert rates.seen[:3] == pytest.approx([low, low, (low + 1e-3) / 2])
    assert rates.seen[3] == pytest.approx(1e-3 / 40 + (1e-3 - 1e-3 / 40) / 2)  # the cosine at step 2 of 4
    assert trainer.model.visual_projection[1].num_batches_tracked == 4


def test_scales_are_not_decayed_unless_asked_for(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    assert not [name for name in trainer.get_decay_parameter_names(trainer.model) if "logit_scale" in name]
    with pytest.raises(ValueError, match="lr_schedule='cosine'"):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), lr_schedule="cosine")


def test_gradient_cache_refuses_batch_norm(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"normalises over the batch \(visual_projection\.1, text_projection\.1\)"):
        make_trainer(tokenizer, tmp_path, gradient_cache_chunk_size=4)


def test_a_loss_that_is_not_finite_stops_the_run(tokenizer, tmp_path):
    trainer = make_trainer(tokenizer, tmp_path)
    with torch.no_grad():
        trainer.model.text_projection[3].bias.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        trainer.train()


# In a process that has seen nothing of the run: the pipeline finds the saved folder, then the example goes on with it
FRESH = """
import sys, hf_clipplus
from transformers import AutoModel, pipeline
from PIL import Image
folder, examples, *arguments = sys.argv[1:]
print(type(AutoModel.from_pretrained(folder)).__name__)
segment = pipeline("clipplus-zero-shot-segmentation", model=folder)
print(segment(Image.new("RGB", (50, 70), "red"), ["cat", "boat"], short_side=40)["labels"].shape)
sys.path.insert(0, examples)
import train_groupvit
train_groupvit.main(arguments)
"""


def test_example_trains_saves_and_resumes(tmp_path, monkeypatch):
    examples = str(ROOT / "examples")
    monkeypatch.syspath_prepend(examples)
    import train_groupvit

    options = ["--output_dir", str(tmp_path), "--scenes", "8", "--per_device_train_batch_size", "4", "--use_cpu"]
    options += ["--vocab_size", "600", "--report_to", "none", "--eval_strategy", "no", "--num_train_epochs"]
    train_groupvit.main([*options, "1"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FRESH, str(tmp_path), examples, *options, "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("GroupViTPlusModel\n(70, 50)\n")
    assert "Resuming from" in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < metrics["eval_scenes_mIoU"] < 1
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
