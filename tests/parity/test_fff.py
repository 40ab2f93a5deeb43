"""Replays the FFF fixtures through the functions and the model that users take (sizes and cases come from the files)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_clipplus.ops.contrastive import sigmoid_loss, softmax_loss
from hf_clipplus.ops.positives import Positives, mine_positives, mining_similarities

FOLDER = Path(os.environ.get("CLIPPLUS_PARITY_DIR", Path(__file__).parents[1] / "fixtures" / "parity")) / "fff"
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


def files(kind):
    found = sorted(path.stem for path in FOLDER.glob(f"{kind}*.json"))
    assert found, f"no fixture of kind {kind} in {FOLDER}"
    return found


def leaf(tensor, dtype=torch.float64):
    return tensor.to(dtype).clone().requires_grad_()


def scalar(value, dtype=torch.float64):
    return torch.tensor(float(value), dtype=dtype, requires_grad=True)


def assert_close(actual, expected, *, rtol, atol=0.0):
    """Error relative to the largest expected element, as the fixture's README states it."""
    expected = expected.to(actual.dtype).reshape(actual.shape)
    limit = rtol * expected.abs().max().clamp(min=1e-30) + atol
    error = (actual - expected).abs().max()
    assert torch.isfinite(actual).all() and error <= limit, f"error {error:.3e} > {limit:.3e}"


def test_every_fixture_is_of_a_known_kind():
    unknown = [path.name for path in FOLDER.glob("*.safetensors") if not path.name.startswith(KINDS)]
    assert not unknown, f"no test knows these fixtures: {unknown}"


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("name", files("baseline_losses"))
def test_baseline_losses(name, tile_size):
    info, tensors = read(name)
    for case in info["cases"]:
        key = f"case{case['case']}"
        for loss_name in {k.split(".")[1] for k in tensors if k.startswith(f"{key}.") and k.endswith(".loss")}:
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
