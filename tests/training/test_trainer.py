"""ContrastiveTrainer on a tiny FFF model: gradients, logs, clamping, decay, stops, mining and exact resumption."""

import importlib.util
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, Trainer, TrainerCallback

from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.models.fff import FFFModel
from hf_clipplus.ops.contrastive import sigmoid_loss
from hf_clipplus.training import NonFiniteLossError, last_complete_checkpoint
from hf_clipplus.training.gradient_cache import cached_backward, chunk_inputs

TINY_RUN = Path(__file__).with_name("tiny_run.py")
spec = importlib.util.spec_from_file_location("tiny_run", TINY_RUN)
tiny_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_run)

SGD = {"optim": "sgd", "max_grad_norm": 0.0, "train_sampling_strategy": "sequential", "augment": False}
THRESHOLDS = {"p1": 0.4, "p1_gate": 0.1, "p2": 0.3, "p3": 0.4}


def make_batch(processor, count=7, dtype=torch.float64):
    batch = ContrastiveCollator(processor)([{**row, "index": i} for i, row in enumerate(tiny_run.make_rows(count))])
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    return batch


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal_gradients(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name, **tolerance)


def logged(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_cached_gradients_are_those_of_the_whole_batch(chunk_size):
    model, processor = tiny_run.make_model(**THRESHOLDS)
    model.double().train()
    batch = make_batch(processor)
    expected_loss = model(**batch).loss
    expected_loss.backward()
    expected = gradients(model)
    result = cached_backward(model, batch, chunk_size=chunk_size, backward=lambda loss: loss.backward())
    torch.testing.assert_close(result["loss"], expected_loss.detach(), rtol=1e-12, atol=0)
    assert result["statistics"]["mined"] > 0
    assert set(expected) == {name for name, _ in model.named_parameters()}
    assert_equal_gradients(gradients(model), expected, rtol=1e-9, atol=1e-11)


def test_cached_gradients_with_dropout_repeat_the_same_dropout():
    model, processor = tiny_run.make_model(attention_dropout=0.4)
    model.double().train()
    batch = make_batch(processor)

    def with_graph():
        torch.manual_seed(11)
        parts = {}
        for side in (model.image_inputs, model.text_inputs):
            for chunk in chunk_inputs(batch, side, 3):
                for name, value in model.embed(**chunk).items():
                    parts.setdefault(name, []).append(value)
        embeddings = {name: torch.cat(parts[name]) for name in ("image_embeds", "text_embeds")}
        loss = model.contrast(SimpleNamespace(**embeddings), **batch)["loss"]
        loss.backward()
        return loss.detach(), gradients(model), torch.rand(1)

    expected_loss, expected, expected_next = with_graph()
    torch.manual_seed(11)
    result = cached_backward(model, batch, chunk_size=3, backward=lambda loss: loss.backward())
    assert torch.equal(torch.rand(1), expected_next)  # the rest of the run does not notice
    torch.testing.assert_close(result["loss"], expected_loss, rtol=1e-12, atol=0)
    found = gradients(model)
    assert_equal_gradients(found, expected, rtol=1e-9, atol=1e-11)
    torch.manual_seed(12)
    other = cached_backward(model, batch, chunk_size=3, backward=lambda loss: loss.backward())
    assert abs(other["loss"] - expected_loss) > 1e-6


def test_cached_gradients_with_a_frozen_tower():
    model, processor = tiny_run.make_model()
    model.double().vision_model.requires_grad_(False)
    model.visual_projection.requires_grad_(False)
    batch = make_batch(processor)
    model(**batch).loss.backward()
    expected = gradients(model)
    cached_backward(model, batch, chunk_size=2, backward=lambda loss: loss.backward())
    assert_equal_gradients(gradients(model), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_with_gradient_cache_reaches_the_same_weights(tmp_path, bf16):
    options = {"max_steps": 2, "learning_rate": 0.01, "bf16": bf16, **SGD}
    plain = tiny_run.make_trainer(tmp_path / "plain", **options)
    before = weights(plain)
    plain.train()
    cached = tiny_run.make_trainer(tmp_path / "cached", gradient_cache_chunk_size=3, **options)
    cached.train()
    assert logged(cached) == pytest.approx(logged(plain), rel=1e-2 if bf16 else 1e-5)
    for name, value in cached.model.named_parameters():
        change, expected = value - before[name], plain.model.state_dict()[name] - before[name]
        if not name.endswith("k_proj.bias"):  # softmax does not see a bias of the keys: its gradient is rounding
            largest = expected.abs().max()
            assert largest > 0, name
            assert (change - expected).abs().max() <= (0.1 if bf16 else 1e-3) * largest + 1e-7, name


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_accumulated_gradient_is_the_mean_of_the_batches(tmp_path, chunk_size):
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.01, **SGD}
    trainer = tiny_run.make_trainer(tmp_path, gradient_cache_chunk_size=chunk_size, **options)
    reference, before = tiny_run.make_model()[0], weights(trainer)
    trainer.train()
    rows = [trainer.train_dataset[i] for i in range(8)]
    total = sum(reference(**trainer.data_collator(part)).loss for part in (rows[:4], rows[4:])) / 2
    total.backward()
    assert logged(trainer) == [pytest.approx(total.item(), rel=1e-4)]
    for name, parameter in reference.named_parameters():
        expected = before[name] - 0.01 * parameter.grad
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_logs_say_what_happens(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, config=THRESHOLDS, max_steps=3)
    trainer.train()
    branches = {"mined", "mined_image_text", "mined_image_image", "mined_text_text"}
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    for entry in entries:
        assert {"loss", "logit_scale", "logit_bias", "positive_logit", "negative_logit", *branches} <= set(entry)
        assert all(math.isfinite(value) for value in entry.values())
        assert max(entry[b] for b in branches - {"mined"}) <= entry["mined"] <= sum(entry[b] for b in branches) / 1.0
    assert any(entry["mined"] > 0 for entry in entries)
    assert entries[-1]["logit_scale"] == pytest.approx(trainer.model.logit_scale.exp().item(), abs=1e-4)
    assert entries[-1]["logit_bias"] == pytest.approx(trainer.model.logit_bias.item(), abs=1e-4)


@pytest.mark.parametrize(("start", "end"), [(9.0, math.log(30.0)), (-4.0, 0.0)])
def test_scale_stays_in_its_limits(tmp_path, start, end):
    trainer = tiny_run.make_trainer(tmp_path, max_steps=1, learning_rate=1e-6, max_logit_scale=30.0)
    trainer.model.logit_scale.data.fill_(start)
    trainer.train()
    assert trainer.model.logit_scale.item() == pytest.approx(end, abs=1e-6)


def test_only_matrices_decay(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, weight_decay=0.2)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] == 0.2 for p in group["params"]}
    spared = {names[id(p)] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert decayed | spared == set(names.values())
    assert {"logit_scale", "logit_bias", "vision_model.embeddings.class_embedding"} <= spared
    for name, parameter in trainer.model.named_parameters():
        vector = name.endswith("bias") or "norm" in name or parameter.ndim < 2
        assert (name in spared) == vector, name


class Corrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            model.visual_projection.weight.data[0, 0] = torch.nan


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_corrupt_weight_stops_the_run_and_spares_the_checkpoint(tmp_path, chunk_size):
    options = {"save_strategy": "steps", "save_steps": 1, "gradient_cache_chunk_size": chunk_size}
    trainer = tiny_run.make_trainer(tmp_path, **options, trainer={"callbacks": [Corrupt()]})
    with pytest.raises(NonFiniteLossError, match=r"nan at step 3; rows of the batch: \d+, \d+, \d+, \d+\."):
        trainer.train()
    checkpoint = last_complete_checkpoint(tmp_path)
    assert Path(checkpoint).name == "checkpoint-2"
    assert all(value.isfinite().all() for value in load_file(f"{checkpoint}/model.safetensors").values())
    assert isinstance(FFFModel.from_pretrained(checkpoint), FFFModel)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_nan_pixel_is_found_with_its_row(tmp_path, chunk_size):
    trainer = tiny_run.make_trainer(tmp_path, gradient_cache_chunk_size=chunk_size, **SGD)
    collate = trainer.data_collator

    def with_nan(rows):
        batch = collate(rows)
        batch["pixel_values"][batch["example_index"] == 9, 0, 0, 0] = torch.nan
        return batch

    trainer.data_collator = with_nan
    with pytest.raises(NonFiniteLossError, match="step 3; rows of the batch: 8, 9, 10, 11"):
        trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_online_mining_begins_after_the_warmup(tmp_path):
    config = {"mining_features": "online", "mining_warmup_steps": 3, "p1": -1.0}
    trainer = tiny_run.make_trainer(tmp_path, config=config, max_steps=5)
    trainer.train()
    mined = [entry.get("mined", 0.0) for entry in trainer.state.log_history if "loss" in entry]
    assert mined[:3] == [0.0] * 3  # the columns of the data set do not step in before
    assert min(mined[3:]) > 0


def gap(cosines, share):
    """A threshold near a quantile and as far as can be from every cosine, so that rounding decides nothing."""
    values = cosines.flatten().sort().values
    near = values[int(share * len(values)) :][:20]
    at = near.diff().argmax()
    return float(near[at : at + 2].mean())


def test_frozen_model_mines_like_its_features_given_as_columns(tmp_path):
    model, processor = tiny_run.make_model(seed=4)
    config = {"text_config": model.config.text_config.to_dict(), "vision_config": model.config.vision_config.to_dict()}
    miner = CLIPModel(CLIPConfig(**config, projection_dim=8)).eval()
    miner_processor = CLIPProcessor(processor.image_processor, processor.tokenizer)
    rows = tiny_run.make_rows(24)

    @torch.no_grad()
    def features(row):
        texts = [row["caption"], *row["pseudo_captions"]]
        inputs = miner_processor(images=[row["image"]], text=texts, return_tensors="pt", padding=True)
        found = miner(**inputs)
        return found.image_embeds[0].numpy(), found.text_embeds.numpy()

    found = [features(row) for row in rows]
    images, texts = torch.stack([torch.tensor(f[0]) for f in found]), torch.cat([torch.tensor(f[1]) for f in found])
    groups = torch.stack([torch.tensor(f[1]).mean(0) for f in found])
    image_text, image_image, text_text = images @ texts.T, images @ images.T, groups @ groups.T
    chosen = {"p1": (image_text, 0.95), "p1_gate": (image_text, 0.5), "p2": (image_image, 0.8), "p3": (text_text, 0.8)}
    thresholds = {name: gap(cosines, share) for name, (cosines, share) in chosen.items()}
    options = {"max_steps": 6, "columns": ["image", "caption", "pseudo_captions"]}
    frozen = tiny_run.make_trainer(
        tmp_path / "frozen",
        config=thresholds | {"mining_features": "frozen_model"},
        collator={"mining_processor": miner_processor},
        trainer={"mining_model": miner},
        **options,
    )
    given = tiny_run.make_trainer(tmp_path / "given", config=thresholds, **options)
    for row, (image, text) in zip(given.train_dataset.dataset, found, strict=True):
        row["mining_image_features"], row["mining_text_features"] = image, text
    before = weights(given)
    for trainer in (frozen, given):
        trainer.train()
    for branch in ("mined", "mined_image_text", "mined_image_image", "mined_text_text"):
        assert logged(frozen, branch) == logged(given, branch)
        assert any(logged(given, branch)), branch
    for name, value in weights(frozen).items():
        torch.testing.assert_close(value, weights(given)[name], rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.equal(value, before[name]) for name, value in weights(given).items())
    assert not any(parameter.requires_grad for parameter in miner.parameters())


def test_frozen_model_that_is_not_there_is_named(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, config={"mining_features": "frozen_model"})
    with pytest.raises(ValueError, match="mining_model"):
        trainer.train()


RESUMABLE = {"rows": 12, "dropout": 0.2, "save_strategy": "steps"}  # three steps an epoch, so saves are within epochs


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    trainer = tiny_run.make_trainer(tmp_path_factory.mktemp("straight"), **RESUMABLE | {"save_strategy": "no"})
    trainer.train()
    return weights(trainer), logged(trainer)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of runs in other processes that SIGKILL ended: two between saves, one while it saved."""
    runs = {
        "no workers": {"save_steps": 4, "die_after_step": 6, "dataloader_num_workers": 0},
        "two workers": {"save_steps": 4, "die_after_step": 6, "dataloader_num_workers": 2},
        "in a save": {"save_steps": 2, "die_in_save": 2},
    }
    folder = tmp_path_factory.mktemp("killed")
    processes = []
    for name, settings in runs.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps([{"output": str(folder / name), **RESUMABLE, **settings}]))
        processes.append(subprocess.Popen([sys.executable, TINY_RUN, file], stderr=subprocess.PIPE, text=True))
    for process in processes:
        errors = process.communicate(timeout=500)[1]
        assert process.returncode == -signal.SIGKILL, errors[-3000:]
    return folder


@pytest.mark.parametrize(("name", "checkpoint"), [("no workers", 4), ("two workers", 4), ("in a save", 2)])
def test_a_killed_run_continues_to_the_same_weights(name, checkpoint, straight, killed):
    expected_weights, expected_losses = straight
    last = last_complete_checkpoint(killed / name)
    assert Path(last).name == f"checkpoint-{checkpoint}"
    if name == "in a save":
        assert (killed / name / "checkpoint-4" / "model.safetensors").exists()
    workers = 2 if name == "two workers" else 0
    trainer = tiny_run.make_trainer(
        killed / name, **RESUMABLE | {"save_strategy": "no"}, dataloader_num_workers=workers
    )
    trainer.train(resume_from_checkpoint=True)
    assert logged(trainer)[checkpoint:] == expected_losses[checkpoint:]
    for key, value in weights(trainer).items():
        assert torch.equal(value, expected_weights[key]), key


def test_resuming_from_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        tiny_run.make_trainer(tmp_path).train(resume_from_checkpoint=True)


def test_loss_is_computed_in_float32_under_bf16(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, max_steps=1, bf16=True, config={"mining_features": None})
    contrast, seen = trainer.model.contrast, []

    def watch(embeddings, **targets):
        result = contrast(embeddings, **targets)
        seen.append((embeddings.image_embeds.detach(), embeddings.text_embeds.detach(), result))
        return result

    trainer.model.contrast = watch
    scale, bias = trainer.model.logit_scale.detach().clone(), trainer.model.logit_bias.detach().clone()
    trainer.train()
    images, texts, result = seen[0]
    assert result["loss"].dtype == torch.float32
    expected = sigmoid_loss(images.double(), texts.double(), result["positives"], scale.double(), bias.double())
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-5)  # bf16 would be off by 1e-3
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_a_batch_of_one_trains(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, max_steps=2, per_device_train_batch_size=1)
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer))


def test_stock_trainer_trains_and_evaluates_the_model(tmp_path):
    ours = tiny_run.make_trainer(tmp_path / "ours", max_steps=2, max_logit_scale=1e6, **SGD)
    stock = tiny_run.make_trainer(tmp_path / "stock", max_steps=2, trainer_class=Trainer, **SGD)
    for trainer in (ours, stock):
        trainer.train()
    assert logged(stock) == logged(ours)
    assert all(torch.equal(value, weights(ours)[name]) for name, value in weights(stock).items())
    assert math.isfinite(stock.evaluate(stock.train_dataset)["eval_loss"])


def test_half_precision_weights_are_not_trained(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"weights to be trained are float16 \(.*dtype=torch.float32"):
        type(trainer)(trainer.model.half(), trainer.args)
    trainer.model.requires_grad_(False)
    trainer.model.logit_bias.data = trainer.model.logit_bias.data.float()
    trainer.model.logit_bias.requires_grad_(True)
    type(trainer)(trainer.model, trainer.args)  # a frozen part may be
