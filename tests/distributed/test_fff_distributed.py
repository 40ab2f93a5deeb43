"""Several gloo processes give the loss, the gradients and the training of one process with the whole batch."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

LOSSES_WORKER = Path(__file__).with_name("losses_worker.py")
TINY_RUN = Path(__file__).parents[1] / "training" / "tiny_run.py"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


losses, tiny_run = load(LOSSES_WORKER), load(TINY_RUN)


@pytest.fixture(scope="module")
def on_ranks(torchrun, tmp_path_factory):
    output = tmp_path_factory.mktemp("losses")
    torchrun(LOSSES_WORKER, max(losses.IMAGES), output)
    return {
        world: [torch.load(output / f"world{world}_rank{r}.pt", weights_only=True) for r in range(world)]
        for world in losses.IMAGES
    }


@pytest.mark.parametrize("world", losses.IMAGES)
@pytest.mark.parametrize("kind", losses.KINDS)
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_ranks_give_the_loss_of_the_whole_batch(on_ranks, world, kind, loss):
    ranks = on_ranks[world]
    assert [rank["world"] for rank in ranks] == [world] * world
    without_ids = sum(losses.IMAGES[world][:-1]) if kind == "ids of some ranks" else 0
    expected = losses.compute(1, 0, loss, kind, None, without_ids=without_ids)
    for tile in losses.TILES:
        parts = [rank["results"][loss, kind, tile] for rank in ranks]
        starts = torch.tensor([0, *losses.IMAGES[world]]).cumsum(0)
        shifts = torch.stack([starts[:-1], torch.zeros(world, dtype=torch.long)], 1)[:, :, None]
        pairs = torch.cat([part["positives"] + shift for part, shift in zip(parts, shifts, strict=True)], 1)
        assert torch.equal(pairs, expected["positives"])
        for name in ("loss", "grad_log_scale", "grad_bias"):
            mean = torch.stack([part[name] for part in parts]).mean(0)
            torch.testing.assert_close(mean, expected[name], rtol=1e-10, atol=1e-12)
        for name in ("grad_images", "grad_texts", "grad_negatives"):
            found = torch.cat([part[name] for part in parts]) / world
            torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-12)
    assert (expected["grad_negatives"] != 0).any() == (kind == "hard negatives")


@pytest.mark.parametrize("world", losses.IMAGES)
@pytest.mark.parametrize("name", losses.SLOT_LOSSES)
def test_ranks_give_dreamlips_losses_with_hard_negatives(on_ranks, world, name):
    parts, expected = [rank["results"][name] for rank in on_ranks[world]], losses.compute_slots(1, 0, name)
    torch.testing.assert_close(sum(part["loss"] for part in parts) / world, expected["loss"], rtol=1e-10, atol=0)
    for key in ("grad_images", "grad_texts", "grad_negatives"):
        found = torch.cat([part[key] for part in parts]) / world
        torch.testing.assert_close(found, expected[key], rtol=1e-10, atol=1e-12)
        assert (expected[key] != 0).any()


def test_the_cases_have_positives_across_ranks():
    batch = losses.make_batch()
    for world, counts in losses.IMAGES.items():
        rank_of = torch.repeat_interleave(torch.tensor(counts))
        for kind in ("ids", "mined", "given"):
            rows, cols = losses.compute(1, 0, "per_image", kind, None)["positives"]
            remote = rank_of[rows] != rank_of[batch["owner"][cols]]
            assert remote.any(), (world, kind)
    rows, cols = losses.compute(1, 0, "per_image", "ids", None)["positives"]
    assert losses.rank_rows(3, 1, batch["owner"])[0] == slice(losses.LONELY, losses.LONELY + 1)
    assert set(batch["owner"][cols[rows == losses.LONELY]].tolist()) == {losses.LONELY}


RUNS = {
    "plain": {},
    "gradient cache": {"gradient_cache_chunk_size": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "cache and accumulation": {"gradient_cache_chunk_size": 2, "gradient_accumulation_steps": 2},
    "labels and accumulation": {
        "self_labels": ["colour=1", "clusters=1"],
        "label_clusters": 4,
        "label_cluster_steps": 2,
        "gradient_accumulation_steps": 2,
    },
    "adversarial pixels": {"adversarial": "pixel", "adversarial_steps": 1},
    "adversarial embeddings": {"adversarial": "embedding", "adversarial_steps": 1},
}
THRESHOLDS = {"p1": 0.4, "p1_gate": 0.1, "p2": 0.3, "p3": 0.4}
FINER = {"scales": [1, 2], "fusion": "projection"}
RUNS["finer vision"] = {"config": THRESHOLDS | {"finer_vision": FINER}, "gradient_cache_chunk_size": 3}


def run_settings(output, run, batch):
    """SGD in two epochs of augmented pictures, the order of the global batches being the same for any world size."""
    return {
        "output": str(output),
        "config": THRESHOLDS,
        "per_device_train_batch_size": batch,
        "max_steps": 6,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        **RUNS[run],
    }


@pytest.fixture(scope="module")
def two_processes(torchrun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = folder / "settings.json"
    outputs = {run: folder / run for run in RUNS}
    settings.write_text(json.dumps([run_settings(output, run, batch=3) for run, output in outputs.items()]))
    torchrun(TINY_RUN, 2, settings)
    return outputs


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_like_one(run, two_processes, tmp_path):
    results = [torch.load(two_processes[run] / f"result{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [(result["world"], result["mode"]) for result in results] == [(2, "distributed")] * 2
    trainer = tiny_run.make_trainer(**run_settings(tmp_path, run, batch=6))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = 0.0
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(results[0]["weights"][name], results[1]["weights"][name]), name
        if value.is_floating_point():
            torch.testing.assert_close(results[0]["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)
            moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 0.05
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    torch.testing.assert_close(results[0]["losses"], [entry["loss"] for entry in logged], rtol=1e-3, atol=2e-4)
    assert any(entry["mined"] > 0 for entry in logged)
    assert trainer.state.epoch > 1.0
