"""Adversarial batches: within their ball, worse for the model, without a trace elsewhere; GroupViT's too."""

import importlib.util
from pathlib import Path

import pytest
import torch

from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.pixel_scale import PixelScale
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification
from hf_clipplus.models.groupvit import GroupViTPlusConfig, GroupViTPlusModel
from hf_clipplus.ops.attack import row_norms
from hf_clipplus.training.adversary import Adversary, _Changes

TINY_RUN = Path(__file__).with_name("tiny_run.py")
spec = importlib.util.spec_from_file_location("tiny_run", TINY_RUN)
tiny_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_run)

RADIUS = {"pixel": 8.0, "embedding": 0.1}


@pytest.fixture(scope="module")
def start():
    """A model with dropout, a batch and the way back to pixels."""
    model, processor = tiny_run.make_model(attention_dropout=0.3, mining_features=None)
    batch = ContrastiveCollator(processor)([{**row, "index": i} for i, row in enumerate(tiny_run.make_rows(6))])
    batch.pop("example_index")
    return model, dict(batch), PixelScale.of(processor)


def adversary(kind, scale, steps=3, seed=0):
    return Adversary(kind, radius=RADIUS[kind], steps=steps, seed=seed, scale=scale)


def loss_of(model, inputs):
    was, _ = model.training, model.eval()
    with torch.no_grad():
        loss = model(**inputs)["loss"].item()
    model.train(was)
    return loss


@pytest.mark.parametrize("kind", RADIUS)
def test_an_attack_raises_the_loss_and_leaves_no_trace(start, kind):
    model, batch, scale = start
    clean = loss_of(model, batch)
    model.train()
    model.vision_model.eval()  # a mode of its own
    flags = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected_next = torch.rand(1)
    torch.manual_seed(3)
    with adversary(kind, scale).against(model, batch, step=5) as attacked:
        assert torch.equal(torch.rand(1), expected_next)
        assert [module.training for module in model.modules()] == flags
        assert loss_of(model, attacked) > clean + 0.05
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.vision_model.embeddings._forward_hooks
    model.train()


def test_pixels_stay_in_the_ball_and_in_their_range(start):
    model, batch, scale = start
    dark = dict(batch, pixel_values=batch["pixel_values"].clone())
    dark["pixel_values"][0] = scale.from_unit(torch.zeros(3, tiny_run.SIDE, tiny_run.SIDE))
    with adversary("pixel", scale).against(model, dark, step=0) as attacked:
        pass
    mean, std = (torch.tensor(part)[:, None, None] for part in (scale.mean, scale.std))
    before, after = (values * std + mean for values in (dark["pixel_values"], attacked["pixel_values"]))
    change = (after - before).abs().amax((1, 2, 3)) * 255
    assert (change > 7.5).all()
    assert (change < 8.01).all()
    assert after.min() > -1e-5
    assert after.max() < 1 + 1e-5
    assert all(attacked[key] is dark[key] for key in dark if key != "pixel_values")


def test_embeddings_stay_in_the_ball_and_padding_alone(start):
    model, batch, scale = start
    model.eval()
    with _Changes(model) as plain:
        model(**batch, output_attentions=False)
    clean = plain.seen
    with adversary("embedding", scale).against(model, batch, step=0) as attacked, _Changes(model) as seen:
        model(**attacked)
    images, texts = (after - before for after, before in zip(seen.seen, clean, strict=True))
    mask = batch["attention_mask"][:, : texts.shape[1], None]
    assert not (mask == 1).all()
    assert not (texts * (1 - mask)).any()
    for change, whole in ((images, clean[0]), (texts, clean[1] * mask)):
        share = (row_norms(change) / row_norms(whole)).flatten()
        assert (share < 0.1 + 1e-4).all()
        assert (share > 0.05).all()


@pytest.mark.parametrize("kind", RADIUS)
def test_the_start_depends_on_seed_and_step(start, kind):
    model, batch, scale = start

    def found(seed, step):
        with adversary(kind, scale, steps=1, seed=seed).against(model, batch, step) as attacked, torch.no_grad():
            return model.eval()(**attacked)["image_embeds"]

    assert torch.equal(found(0, 1), found(0, 1))
    assert not torch.equal(found(0, 1), found(0, 2))
    assert not torch.equal(found(0, 1), found(1, 1))


def test_texts_in_segments_are_refused(start):
    model, batch, scale = start
    with (
        pytest.raises(ValueError, match="text_mode"),
        adversary("embedding", scale).against(model, batch | {"segment_owner": torch.arange(3)}, step=0),
    ):
        pass


@pytest.mark.parametrize("kind", RADIUS)
def test_group_vit_keeps_its_running_statistics(kind):
    torch.manual_seed(0)
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {
        "vocab_size": 30,
        "eos_token_id": 29,
        "bos_token_id": 28,
        "pad_token_id": 29,
        "max_position_embeddings": 8,
    }
    vision = {"hidden_size": 8, "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "depths": (1, 1)}
    vision |= {"num_group_tokens": (2, 0), "num_output_groups": (2,)}
    config = GroupViTPlusConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=8,
        projection_intermediate_dim=8,
        prompts_per_image=1,
    )
    model = GroupViTPlusModel(config).train()
    ids = torch.randint(0, 28, (4, 2, 6))
    ids[..., -1] = 29
    batch = {"pixel_values": torch.randn(4, 3, 16, 16).clamp(-1, 1), "input_ids": ids, "return_loss": True}
    batch["attention_mask"] = torch.ones_like(ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clean = loss_of(model, batch)
    scale = PixelScale((0.5,) * 3, (0.5,) * 3)
    with adversary(kind, scale).against(model, batch, step=0) as attacked:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert loss_of(model, attacked) > clean + 1e-4
        model(**attacked)["loss"].backward()
    assert model.visual_projection[0].weight.grad.any()


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.slow
def test_training_on_both_batches_and_on_the_adversarial_alone(tmp_path):
    options = {"max_steps": 3, "config": {"mining_features": None}, "optim": "sgd", "max_grad_norm": 0.0}
    plain = tiny_run.make_trainer(tmp_path / "plain", **options)
    attack = {"adversarial": "pixel", "adversarial_radius": 8.0, "adversarial_steps": 2}
    both = tiny_run.make_trainer(tmp_path / "both", **options, **attack, adversarial_share=0.25)
    alone = tiny_run.make_trainer(tmp_path / "alone", **options, **attack, adversarial_share=1.0)
    for trainer in (plain, both, alone):
        trainer.train()
    assert logged(both, "loss_contrastive")[0] == logged(plain, "loss")[0]
    clean, attacked = logged(both, "loss_contrastive"), logged(both, "loss_adversarial")
    assert logged(both, "loss") == pytest.approx([0.75 * a + 0.25 * b for a, b in zip(clean, attacked, strict=True)])
    assert all(b > a for a, b in zip(clean, attacked, strict=True))
    assert logged(alone, "loss") == logged(alone, "loss_adversarial")
    assert logged(alone, "loss")[0] == attacked[0]
    assert not torch.equal(both.model.visual_projection.weight, plain.model.visual_projection.weight)


def test_what_a_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="gradient_cache_chunk_size: an attack needs"):
        tiny_run.make_trainer(tmp_path, adversarial="pixel", gradient_cache_chunk_size=2)


def test_evaluation_under_attack_is_asked_for_by_an_argument(tmp_path):
    rows = [{"image": row["image"], "label": i % 2} for i, row in enumerate(tiny_run.make_rows(4))]
    evaluator = ZeroShotClassification(rows, ["cat", "boat"], ["a {}"])
    _, processor = tiny_run.make_model()
    options = {"evaluators": [evaluator], "processing_class": processor}
    trainer = tiny_run.make_trainer(tmp_path, eval_attack_radius=3.0, trainer=options)
    found = trainer.evaluate()
    assert found["eval_zero_shot_attack_radius"] == 3.0
    assert found["eval_zero_shot_attacked_top1"] <= found["eval_zero_shot_top1"]
    with pytest.raises(ValueError, match="no evaluator here does that"):
        tiny_run.make_trainer(tmp_path, eval_attack_radius=3.0)
