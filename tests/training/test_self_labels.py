"""Labels that images bring along: what they train, what a checkpoint keeps, what is saved, and what is refused."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel

import hf_clipplus  # noqa: F401  registers the zoo's models
from hf_clipplus.data.pixel_scale import PixelScale
from hf_clipplus.models.fff import FFFModel
from hf_clipplus.training import ContrastiveTrainingArguments
from hf_clipplus.training.enhanced_trainer import STATE_FILE
from hf_clipplus.training.self_labels import ClusterLabels, SelfLabels, histogram_divergence, parse_self_labels

TINY_RUN = Path(__file__).with_name("tiny_run.py")
spec = importlib.util.spec_from_file_location("tiny_run", TINY_RUN)
tiny_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_run)

LABELS = {"self_labels": ["colour=0.5", "clusters=0.5"], "label_clusters": 4, "label_cluster_steps": 2}
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def train_step(trainer):
    """Gradients of the model and of the heads for the first batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    named = [*trainer.model.named_parameters(), *trainer.self_labels.heads.named_parameters()]
    return {name: parameter.grad for name, parameter in named}


def test_gradients_reach_the_vision_tower_and_the_heads_alone(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, self_labels=["colour=1", "texture=1"])
    contrast = trainer.model.contrast
    trainer.model.contrast = lambda *args, **kwargs: contrast(*args, **kwargs) | {"loss": torch.zeros(())}
    found = train_step(trainer)
    reached = {name for name, gradient in found.items() if gradient is not None and gradient.any()}
    vision = {name for name in found if name.startswith(("vision_model.", "visual_projection."))}
    without = {name for name in vision if name.endswith("k_proj.bias")}  # softmax does not see them
    assert reached - without == {"colour.weight", "colour.bias", "texture.weight", "texture.bias"} | vision - without


def test_objectives_are_learned_and_logged_apart(tmp_path):
    settings = {"max_steps": 24, "learning_rate": 5e-3, "augment": False}
    labels = {"self_labels": ["colour=1", "texture=1", "clusters=1"], "label_clusters": 4, "label_cluster_steps": 3}
    trainer = tiny_run.make_trainer(tmp_path, **settings, **labels)
    trainer.train()
    for name in ("loss_colour", "loss_texture"):
        losses = logged(trainer, name)
        assert len(losses) == 24
        assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4]), name
    clusters = logged(trainer, "loss_clusters")
    assert len(clusters) == 24 - 3  # none before the first clusters
    assert clusters[0] == pytest.approx(math.log(4), abs=0.8)
    parts = [logged(trainer, f"loss_{name}")[-1] for name in ("contrastive", "colour", "texture", "clusters")]
    assert logged(trainer, "loss")[-1] == pytest.approx(sum(parts), abs=1e-3)


def test_nothing_else_changes_until_a_weight_counts(tmp_path):
    """With labels of next to no weight a run is the run without: no random number is taken from it."""
    options = {"dropout": 0.2, "max_steps": 4, **SGD}
    labels = LABELS | {"self_labels": ["colour=1e-30", "clusters=1e-30"]}
    plain = tiny_run.make_trainer(tmp_path / "plain", **options)
    plain.train()
    with_labels = tiny_run.make_trainer(tmp_path / "labels", **options, **labels)
    with_labels.train()
    for name, value in weights(with_labels).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=0, atol=1e-25, msg=name)


def test_heads_are_not_saved_with_the_model(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path, **LABELS, max_steps=2, save_strategy="steps", save_steps=2)
    before = {name: value.clone() for name, value in trainer.self_labels.heads.state_dict().items()}
    trainer.train()
    assert not torch.equal(trainer.self_labels.heads.state_dict()["colour.weight"], before["colour.weight"])
    trainer.save_model(tmp_path / "final")
    plain = set(tiny_run.make_model()[0].state_dict())
    for folder in (tmp_path / "final", tmp_path / "checkpoint-2"):
        assert set(load_file(folder / "model.safetensors")) == plain
    assert not (tmp_path / "final" / STATE_FILE).exists()
    _, info = FFFModel.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


def test_resuming_is_bit_equal(tmp_path):
    """Across a refresh of the clusters, from a checkpoint between two of them."""
    options = LABELS | {"dropout": 0.2, "label_cluster_steps": 3, "max_steps": 7}
    straight = tiny_run.make_trainer(tmp_path / "a", **options)
    straight.train()
    stopped = tiny_run.make_trainer(tmp_path / "b", **options | {"max_steps": 4}, save_strategy="steps", save_steps=4)
    stopped.train()
    resumed = tiny_run.make_trainer(tmp_path / "c", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    for name in ("loss", "loss_colour", "loss_clusters"):
        assert logged(resumed, name) == logged(straight, name), name
    for key, value in weights(resumed).items():
        assert torch.equal(value, weights(straight)[key]), key
    for key, value in resumed.self_labels.heads.state_dict().items():
        assert torch.equal(value, straight.self_labels.heads.state_dict()[key]), key
    clusters = straight.self_labels.clusters.state_dict()
    for key, value in resumed.self_labels.clusters.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(clusters[key])), key


@pytest.mark.slow
def test_a_checkpoint_of_other_labels_is_refused(tmp_path):
    tiny_run.make_trainer(tmp_path, **LABELS, max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="of a run with self_labels, this one is without"):
        tiny_run.make_trainer(tmp_path / "x").train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"other labels than self_labels=\['texture=1'\]"):
        tiny_run.make_trainer(tmp_path / "x", self_labels=["texture=1"]).train(resume_from_checkpoint=checkpoint)


def test_gradient_cache_gives_the_same_run(tmp_path):
    options = {"max_steps": 4, **SGD, **LABELS}
    plain = tiny_run.make_trainer(tmp_path / "plain", **options)
    cached = tiny_run.make_trainer(tmp_path / "cached", **options, gradient_cache_chunk_size=3)
    for trainer in (plain, cached):
        trainer.train()
    for name in ("loss", "loss_colour", "loss_clusters", "loss_contrastive"):
        assert logged(cached, name) == pytest.approx(logged(plain, name), rel=1e-3), name
    for name, value in weights(cached).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_frozen_features_come_from_the_columns_or_the_model(tmp_path):
    options = {**LABELS, "label_cluster_features": "frozen_model", "max_steps": 3}
    trainer = tiny_run.make_trainer(tmp_path / "columns", **options)
    trainer.train()
    features = trainer.self_labels.clusters.features
    assert features.shape == (12, tiny_run.WIDTH)
    given = normalize(torch.tensor(np.stack([row["mining_image_features"] for row in tiny_run.make_rows(24)])), dim=-1)
    assert torch.cdist(features, given).min(1).values.max() < 1e-5

    columns = ["image", "caption", "pseudo_captions"]
    miner, processor = tiny_run.make_model(seed=5)
    settings = {"columns": columns, "config": {"mining_features": None}, "collator": {"mining_processor": processor}}
    trainer = tiny_run.make_trainer(tmp_path / "model", **options, **settings, trainer={"mining_model": miner})
    trainer.train()
    images = [row["image"] for row in tiny_run.make_rows(24)]
    with torch.no_grad():
        given = miner.encode_image(processor(images=images, return_tensors="pt")["pixel_values"])
    assert torch.cdist(trainer.self_labels.clusters.features, given).min(1).values.max() < 1e-5

    trainer = tiny_run.make_trainer(tmp_path / "none", **options, columns=columns)
    with pytest.raises(ValueError, match="mining_model"):
        trainer.train()


def test_clusters_wait_label_and_keep_the_last_images():
    draw = torch.Generator().manual_seed(0)
    labels = ClusterLabels(2, refresh_steps=10, seed=0)
    truth = torch.arange(40) % 2
    rows = torch.eye(3)[truth] + 0.1 * torch.randn(40, 3, generator=draw)
    assert labels.label(rows) is None
    assert not labels.refresh_if_due(9)
    assert labels.refresh_if_due(10)
    assert not labels.refresh_if_due(10)  # once a step, however many batches it accumulates
    found = labels.label(rows)
    assert torch.equal(found, truth) or torch.equal(found, 1 - truth)
    labels.label(rows[:5] * 7)
    assert len(labels.features) == 64
    torch.testing.assert_close(labels.features[-5:], normalize(rows[:5], dim=-1))
    assert labels.refresh_if_due(20)
    assert torch.equal(labels.label(rows), found)  # numbers stay


def test_clusters_that_saw_too_few_images():
    labels = ClusterLabels(8, refresh_steps=3, seed=0)
    labels.label(torch.randn(4, 5))
    with pytest.raises(ValueError, match="label_clusters=8 but only 4 images were seen in 3 steps"):
        labels.refresh_if_due(3)


def test_divergence():
    target = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert histogram_divergence((target + 1e-12).log(), target).abs().max() < 1e-5
    expected = (target[1] * (target[1] * 3).log()).sum()
    torch.testing.assert_close(histogram_divergence(torch.zeros(2, 3), target)[1], expected)
    assert histogram_divergence(torch.zeros(2, 4, 3), target[:, None].expand(2, 4, 3)).shape == (2,)


def test_weights_are_read():
    assert parse_self_labels(["colour=0.1", "clusters=2"]) == {"colour": 0.1, "clusters": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"self_labels": ["shape=1"]}, "unknown label 'shape'; choose among colour, texture, clusters"),
        ({"self_labels": ["colour"]}, "expected colour=<weight>"),
        ({"self_labels": ["colour=-1"]}, "must be positive, got -1"),
        ({"self_labels": ["colour=nan"]}, "must be positive"),
        ({"self_labels": ["colour=1", "colour=2"]}, "given twice"),
        ({"label_cluster_steps": 0}, "label_cluster_steps=0: expected at least 1"),
        ({"label_clusters": 1}, "label_clusters=1: expected at least 2"),
        ({"label_cluster_features": "theirs"}, r"'theirs' is unknown: choose one of \('own', 'frozen_model'\)"),
        ({"adversarial": "text"}, "'text' is unknown: choose one of"),
        ({"adversarial": "pixel", "adversarial_radius": 0.0}, "adversarial_radius=0.0: expected a positive"),
        ({"adversarial": "pixel", "adversarial_radius": -2.0}, "adversarial_radius=-2.0: expected a positive"),
        ({"adversarial_radius": 2.0}, "adversarial_radius without adversarial"),
        ({"adversarial": "pixel", "adversarial_steps": 0}, "adversarial_steps=0"),
        ({"adversarial": "pixel", "adversarial_share": 0.0}, "adversarial_share=0.0"),
        ({"eval_attack_radius": 0.0}, "eval_attack_radius=0.0"),
    ],
)
def test_wrong_arguments(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_what_a_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="label_clusters=25, but the data set has 24 images"):
        tiny_run.make_trainer(tmp_path, self_labels=["clusters=1"], label_clusters=25)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="leave the optimizer"):
        tiny_run.make_trainer(tmp_path, **LABELS, trainer={"optimizers": (optimizer, None)})


TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = {"vocab_size": 30, "eos_token_id": 29, "bos_token_id": 28, "pad_token_id": 29, "max_position_embeddings": 8}
SIGLIP = {"model_type": "siglip_text_model"}, {"model_type": "siglip_vision_model"}
GROUPS = {"hidden_size": 8, "num_attention_heads": 2, "depths": (1, 1), "num_group_tokens": (2, 0)}
VARIANTS = {
    "clipplus_fff": {},
    "clipplus_fff siglip": {"mining_features": None},
    "clipplus_dreamlip": {},
    "clipplus_longclip": {"components": 1},
    "clipplus_groupvit": {"projection_intermediate_dim": 8, "prompts_per_image": 0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_contrastive_model_takes_labels(name):
    """Without a word about the model: by its embeddings and the fields of its configuration."""
    torch.manual_seed(0)
    kind, *towers = name.split()
    size = {"image_size": 16, "patch_size": 8}
    text, vision = TEXT | IDS, TEXT | size
    if towers:
        text, vision = text | SIGLIP[0], vision | SIGLIP[1]
    if kind == "clipplus_groupvit":
        vision = GROUPS | size | {"num_output_groups": (2,)}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, projection_dim=12, **VARIANTS[name])
    model = AutoModel.from_config(config).train()
    ids = torch.randint(0, 28, (4, 6))
    ids[:, -1] = 29
    pixel_values = torch.randn(4, 3, 16, 16)
    outputs = model(pixel_values=pixel_values, input_ids=ids, attention_mask=torch.ones_like(ids), return_loss=True)
    options = {"clusters": 2, "refresh_steps": 1, "seed": 0, "device": torch.device("cpu")}
    labels = SelfLabels({"colour": 1.0, "clusters": 1.0}, config, PixelScale((0.5,) * 3, (0.5,) * 3), **options)
    labels.clusters.label(outputs["image_embeds"])
    loss, logged = labels.losses(outputs["image_embeds"], pixel_values, None, step=1)
    assert loss.item() == pytest.approx(sum(logged.values()).item())
    loss.backward()
    assert set(logged) == {"loss_colour", "loss_clusters"}
    reached = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert reached
    assert all(name.startswith(("vision_model.", "visual_projection.")) for name in reached)
