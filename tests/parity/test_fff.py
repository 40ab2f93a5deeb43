"""Replays the FFF fixtures through the functions and the model of users; sizes and cases come from the files."""

import importlib.util
import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from replay import PARITY, assert_known, names_of
from safetensors.torch import load_file

from hf_clipplus.ops.contrastive import sigmoid_loss, softmax_loss
from hf_clipplus.ops.positives import Positives, mine_positives, mining_similarities

FOLDER = PARITY / "fff"
files = partial(names_of, FOLDER)
WORKER = Path(__file__).with_name("fff_worker.py")
KINDS = (
    "baseline_losses",
    "siglip_distributed",
    "multipositive_loss",
    "mining",
    "end_to_end_sharded",
    "trajectory",
)


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def load_worker():
    spec = importlib.util.spec_from_file_location("fff_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    return worker


def leaf(tensor, dtype=torch.float64):
    return tensor.to(dtype).clone().requires_grad_()


def scalar(value, dtype=torch.float64):
    return torch.tensor(float(value), dtype=dtype, requires_grad=True)


def assert_close(actual, expected, *, rtol, atol=0.0):
    """Error relative to the largest expected element, as the fixture's README states it."""
    expected = expected.to(actual.dtype).reshape(actual.shape)
    limit = rtol * expected.abs().max().clamp(min=1e-30) + atol
    error = (actual - expected).abs().max()
    assert error <= limit, f"error {error:.3e} > {limit:.3e}"  # not so when anything is NaN


def test_every_fixture_is_of_a_known_kind():
    assert_known(FOLDER, KINDS)


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("name", files("baseline_losses"))
def test_baseline_losses(name, tile_size):
    info, tensors = read(name)
    for case in info["cases"]:
        key = f"case{case['case']}"
        loss_names = {k.split(".")[1] for k in tensors if k.startswith(f"{key}.") and k.endswith(".loss")}
        assert loss_names, f"{name}: no losses for {key}"
        for loss_name in loss_names:
            images = leaf(tensors[f"{key}.image_unit"], torch.float32)
            texts = leaf(tensors[f"{key}.text_unit"], torch.float32)
            log_scale, bias = scalar(case["log_scale"], torch.float32), scalar(case["bias"], torch.float32)
            owner = torch.arange(case["N"])
            if loss_name.startswith("clip"):
                loss = softmax_loss(images, texts, owner, log_scale, tile_size=tile_size)
            else:
                loss = sigmoid_loss(images, texts, owner, log_scale, bias, tile_size=tile_size)
            loss.backward()
            expected = {k.split(".")[2]: v for k, v in tensors.items() if k.startswith(f"{key}.{loss_name}.")}
            assert_close(loss.detach(), expected["loss"], rtol=1e-4)
            grads = {
                "grad_image_unit": images.grad,
                "grad_text_unit": texts.grad,
                "grad_log_scale": log_scale.grad,
                "grad_bias": bias.grad,
            }
            for grad_name, value in expected.items():
                if grad_name != "loss":
                    assert_close(grads[grad_name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tile_size", [None, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", files("multipositive_loss"))
def test_multipositive_loss(name, dtype, tile_size):
    info, tensors = read(name)
    rtol, atol = (1e-9, 0.0) if dtype == torch.float64 else (1e-4, 1e-6)
    for case in info["cases"]:
        key = case["name"]
        mask = tensors[f"{key}.M"].bool()
        anchored = case["kind"] == "peranchor"
        weights = None if anchored else tensors.get(f"{key}.pair_weight")
        for normalizer in ("per_image", "per_pair"):
            for positives in (mask, torch.stack(mask.nonzero(as_tuple=True)), Positives.coerce(mask, mask.shape)):
                images, texts = leaf(tensors[f"{key}.image_unit"], dtype), leaf(tensors[f"{key}.text_unit"], dtype)
                log_scale, bias = scalar(case["log_scale"], dtype), scalar(case["bias"], dtype)
                # the anchor weighting is published with the divisor N C; N C / N undoes it for the other divisor
                loss = sigmoid_loss(
                    images,
                    texts,
                    positives,
                    log_scale,
                    bias,
                    weights=weights,
                    normalizer="per_anchor" if anchored else normalizer,
                    tile_size=tile_size,
                )
                if anchored and normalizer == "per_image":
                    loss = loss * mask.shape[1]
                loss.backward()
                expected = {k.split(".")[2]: v for k, v in tensors.items() if k.startswith(f"{key}.{normalizer}.")}
                assert {"loss", "grad_image", "grad_text", "grad_log_scale", "grad_bias"} <= set(expected)
                assert_close(loss.detach(), expected["loss"], rtol=rtol)
                assert_close(images.grad, expected["grad_image"], rtol=rtol, atol=atol)
                assert_close(texts.grad, expected["grad_text"], rtol=rtol, atol=atol)
                assert_close(log_scale.grad, expected["grad_log_scale"], rtol=rtol, atol=atol)
                assert_close(bias.grad, expected["grad_bias"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("tile_size", [256, 2])
@pytest.mark.parametrize("name", files("mining"))
def test_mining(name, tile_size):
    info, tensors = read(name)
    for case in info["cases"]:
        key = case["name"]
        images, texts = tensors[f"{key}.image_frozen"], tensors[f"{key}.text_frozen"]
        owner, own = tensors[f"{key}.owner"], tensors[f"{key}.owner"][None] == torch.arange(case["N"])[:, None]
        for stt in ("group_mean", "caption_mean"):
            similarity = mining_similarities(images, texts, owner, stt=stt)
            assert_close(similarity.image_text, tensors[f"{key}.Sit"], rtol=0, atol=1e-5)
            assert_close(similarity.image_image, tensors[f"{key}.Sii"], rtol=0, atol=1e-5)
            assert_close(similarity.text_text, tensors[f"{key}.Stt.{stt}"], rtol=0, atol=1e-5)
            for rule in ("gated", "plain"):
                pairs, counts = mine_positives(
                    images, texts, owner, rule=rule, stt=stt, tile_size=tile_size, **case["thresholds"]
                )
                expected = tensors[f"{key}.M.{rule}.{stt}"].bool()
                assert torch.equal(pairs.to_mask(), expected)
                assert int(counts["total"]) == case["mined_positives"][f"{rule}.{stt}"] == int((expected & ~own).sum())


def worlds(tensors):
    found = sorted(int(match[1]) for key in tensors if (match := re.fullmatch(r"world(\d+)\.image_unit", key)))
    assert found, "no world size in the fixture"
    return found


def mined_pair(info, tensors):
    """The first image and caption owner of a positive pair that is not own."""
    rows, cols = tensors["M"].bool().nonzero(as_tuple=True)
    others = [(i, j) for i, j in zip(rows.tolist(), tensors["owner"][cols].tolist(), strict=True) if i != j]
    assert others, "the fixture has no mined pair"
    return others[0]


def orders(info, tensors):
    """How images are dealt to ranks: as published, and so that a mined pair certainly lies across two ranks."""
    first, last = mined_pair(info, tensors)
    between = [i for i in range(info["N"]) if i not in (first, last)]
    return {"published": list(range(info["N"])), "pair across ranks": [first, *between, last]}


@pytest.fixture(scope="module")
def on_ranks(torchrun, tmp_path_factory):
    """`on_ranks(**job)`: what every rank saved for that job; one torchrun computes all jobs of the module."""
    output, jobs = tmp_path_factory.mktemp("ranks"), []
    for name in files("siglip_distributed"):
        for world in worlds(read(name)[1]):
            jobs += [{"name": name, "world": world, "tile_size": tile_size} for tile_size in (None, 1)]
    for name in files("end_to_end_sharded"):
        info, tensors = read(name)
        for order in orders(info, tensors).values():
            for dtype in ("float64", "float32"):
                jobs.append({"name": name, "world": info["world"], "order": order, "dtype": dtype})
    (output / "jobs.json").write_text(json.dumps(jobs))
    torchrun(WORKER, max(job["world"] for job in jobs), FOLDER, output)

    def results(**job):
        number = jobs.index(job)
        found = [torch.load(output / f"job{number}_rank{rank}.pt", weights_only=True) for rank in range(job["world"])]
        assert all(result["world"] == job["world"] for result in found)
        return found

    return results


@pytest.mark.parametrize("tile_size", [None, 1])
@pytest.mark.parametrize("name", files("siglip_distributed"))
def test_siglip_distributed(name, tile_size, on_ranks):
    info, tensors = read(name)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for world in worlds(tensors):
        ranks = on_ranks(name=name, world=world, tile_size=tile_size)
        assert len(tensors[f"world{world}.image_unit"]) == world * info["per_rank_batch"]
        ours = {key: torch.stack([rank[key].squeeze() for rank in ranks]) for key in ranks[0] if key != "world"}
        expected = {k.split(".")[2]: v for k, v in tensors.items() if k.startswith(f"world{world}.global.")}
        assert set(expected) == set(ours)
        for key in ("loss", "grad_log_scale", "grad_bias"):
            assert_close(ours[key].mean(), expected[key], **close)
        for key in ("grad_image", "grad_text"):
            assert_close(ours[key].flatten(0, 1), world * expected[key], **close)
        keys = {k.split(".")[1] for k in tensors if k.startswith(f"world{world}.") and k.endswith(".loss")} - {
            "global"
        }
        assert keys, f"{name}: no run of the published code with {world} processes"
        for implementation in keys:
            for key, value in ours.items():
                assert_close(value, tensors[f"world{world}.{implementation}.{key}"], **close)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float64", 1e-9, 0.0), ("float32", 1e-4, 1e-6)])
@pytest.mark.parametrize("name", files("end_to_end_sharded"))
def test_end_to_end_in_one_process(name, dtype, rtol, atol):
    info, tensors = read(name)
    found = load_worker().contrast(info, tensors, torch.arange(info["N"]), getattr(torch, dtype))
    mask = torch.zeros(info["N"], info["C"], dtype=torch.bool)
    mask[tuple(found["positives"])] = True
    assert torch.equal(mask, tensors["M"].bool())
    for key in ("loss", "grad_image", "grad_text", "grad_log_scale", "grad_bias"):
        assert_close(found[key], tensors[f"global.{key}"], rtol=rtol, atol=atol)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float64", 1e-9, 0.0), ("float32", 1e-4, 1e-6)])
@pytest.mark.parametrize("name", files("end_to_end_sharded"))
def test_end_to_end_sharded(name, dtype, rtol, atol, on_ranks):
    info, tensors = read(name)
    world, count, mask, owner = info["world"], info["images_per_rank"], tensors["M"].bool(), tensors["owner"]
    assert world * count == info["N"]
    for layout, order in orders(info, tensors).items():
        ranks = on_ranks(name=name, world=world, order=order, dtype=dtype)
        captions = torch.cat(
            [rank["captions"] for rank in ranks]
        )  # the fixture's number of each caption, rank by rank
        assert sorted(captions.tolist()) == list(range(info["C"]))
        rank_of_image = torch.tensor(order).argsort() // count
        found, across = torch.zeros_like(mask), 0
        for r, rank in enumerate(ranks):
            rows, cols = torch.tensor(order)[r * count + rank["positives"][0]], captions[rank["positives"][1]]
            found[rows, cols] = True
            across += int((rank_of_image[owner[cols]] != r).sum())
        assert torch.equal(found, mask)
        assert across == info["positives_across_ranks"] if layout == "published" else across > 0
        for key in ("loss", "grad_log_scale", "grad_bias"):
            mean = torch.stack([rank[key] for rank in ranks]).mean()
            assert_close(mean, tensors[f"global.{key}"], rtol=rtol, atol=atol)
        for r, rank in enumerate(ranks):
            own = torch.tensor(order[r * count : (r + 1) * count])
            for key, rows in (("grad_image", own), ("grad_text", rank["captions"])):
                assert_close(rank[key], world * tensors[f"global.{key}"][rows], rtol=rtol, atol=atol)
            if layout == "published":
                assert_close(rank["loss"], tensors["shard.rank_loss"][r], rtol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", files("end_to_end_sharded"))
def test_block_sums(name, dtype, rtol):
    info, tensors = read(name)
    world, count = info["world"], info["images_per_rank"]
    log_scale, bias = scalar(info["log_scale"], dtype), scalar(info["bias"], dtype)
    blocks = torch.zeros(world, world, dtype=dtype)
    for a in range(world):
        rows = slice(a * count, (a + 1) * count)
        for b in range(world):
            captions = tensors["owner"] // count == b
            images, texts = tensors["image_unit"][rows].to(dtype), tensors["text_unit"][captions].to(dtype)
            mask = tensors["M"].bool()[rows][:, captions]
            blocks[a, b] = sigmoid_loss(images, texts, mask, log_scale, bias).detach()
    assert_close(blocks, tensors["shard.block_loss"], rtol=rtol)
    assert_close(blocks.sum(1), tensors["shard.rank_loss"], rtol=rtol)
    assert_close(blocks.sum(1).mean(), tensors["global.loss"], rtol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("name", files("trajectory"))
def test_trajectory(name, dtype, rtol):
    info, tensors = read(name)
    images, texts, mask = tensors["image_input"].to(dtype), tensors["text_input"].to(dtype), tensors["M"].bool()
    w_image, w_text = leaf(tensors["W_image_init"], dtype), leaf(tensors["W_text_init"], dtype)
    first_scale = torch.tensor(math.log(info["scale_init"]))  # the reference starts from the float32 number
    log_scale, bias = scalar(first_scale, dtype), scalar(info["bias_init"], dtype)
    optimizer = torch.optim.SGD([w_image, w_text, log_scale, bias], lr=info["lr"])
    losses, scales, biases = [], [], []
    for _ in range(info["steps"]):
        optimizer.zero_grad()
        embeds = F.normalize(images @ w_image, dim=-1), F.normalize(texts @ w_text, dim=-1)
        loss = sigmoid_loss(*embeds, mask, log_scale, bias)
        loss.backward()
        optimizer.step()
        for values, value in ((losses, loss), (scales, log_scale), (biases, bias)):
            values.append(value.detach().clone())
    for step, (loss, expected) in enumerate(zip(losses, tensors["losses"], strict=True)):
        assert abs(loss - expected) <= rtol * abs(expected), f"loss of step {step}: {loss} instead of {expected}"
    assert_close(torch.stack(scales), tensors["log_scale_after"], rtol=rtol)
    assert_close(torch.stack(biases), tensors["bias_after"], rtol=rtol)
    assert_close(w_image.detach(), tensors["W_image_final"], rtol=rtol)
    assert_close(w_text.detach(), tensors["W_text_final"], rtol=rtol)
