"""Replays MA-CLIP's fixture of metrics: TRX, OTAM and Bi-MHM, logits and gradients."""

import json

import pytest
import torch
import torch.nn.functional as F
from replay import PARITY
from safetensors.torch import load_file

from hf_clipplus.models.temporal_cross_transformer import TemporalCrossTransformer
from hf_clipplus.ops.alignment import average_by_class, bi_mhm, frame_distances, otam

FOLDER = PARITY / "ma_clip"
FILES = sorted(path.stem for path in FOLDER.glob("metrics*.json"))


def assert_close(actual, expected, name, relative=1e-4):
    limit = relative * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit, msg=lambda text: f"{name}: {text}")


@pytest.fixture(params=FILES or ["no fixture"])
def fixture(request):
    assert FILES, f"no metrics*.json in {FOLDER}"
    info = json.loads((FOLDER / f"{request.param}.json").read_text())
    return info["config"], load_file(FOLDER / f"{request.param}.safetensors")


@pytest.fixture
def features(fixture):
    _, t = fixture
    sides = (t[f"inputs.{side}"].clone().requires_grad_() for side in ("support", "query"))
    return *sides, t["inputs.support_labels"], t["inputs.query_labels"]


def test_trx(fixture, features):
    config, t = fixture
    support, query, labels, targets = features
    model = TemporalCrossTransformer(config["D"], tuple(config["temp_set"]), width=config["O"]).eval()
    weights = {key.removeprefix("trx.weights."): value for key, value in t.items() if key.startswith("trx.weights.")}
    left = model.load_state_dict(weights, strict=False)
    assert not left.missing_keys
    assert all("norm_v" in key or key.endswith("pe.pe") for key in left.unexpected_keys)
    for cardinality, distances in zip(
        config["temp_set"], model.by_cardinality(query, support, labels, config["way"]), strict=True
    ):
        assert_close(-distances, t[f"trx.outputs.logits_card{cardinality}"], f"cardinality {cardinality}", 1e-3)
    logits = -model(query, support, labels, config["way"])
    assert_close(logits, t["trx.outputs.logits"], "logits", 1e-3)
    loss = F.cross_entropy(logits, targets)
    assert_close(loss.reshape(1), t["trx.outputs.ce_loss"], "loss")
    loss.backward()
    own = dict(model.named_parameters())
    for key in (key for key in t if key.startswith("trx.outputs.grad_")):
        name = key.removeprefix("trx.outputs.grad_")
        grad = {"support": support, "query": query}.get(name, own.get(name)).grad
        assert_close(grad, t[key], name, 1e-3)


def by_class(distances, labels, way):
    """Mean over the videos of each class: `[Q, S]` to `[Q, N]`."""
    return average_by_class(distances.T, labels, way).T


def assert_loss(logits, features, t, prefix):
    """Cross-entropy and its gradients."""
    support, query, _, targets = features
    loss = F.cross_entropy(logits, targets)
    assert_close(loss.reshape(1), t[f"{prefix}.ce_loss"], f"{prefix} loss")
    for side, grad in zip(("support", "query"), torch.autograd.grad(loss, (support, query)), strict=True):
        assert_close(grad, t[f"{prefix}.grad_{side}"], f"{prefix} gradient of {side}")


def test_otam(fixture, features):
    config, t = fixture
    support, query, labels, _ = features
    distances = frame_distances(query, support)
    assert_close(distances, t["align.outputs.frame_dists"], "frame distances")
    means = average_by_class(support, labels, config["way"])
    lambdas = {key.split("lambda")[1].rsplit(".", 1)[0] for key in t if key.startswith("otam.outputs.lambda")}
    assert lambdas
    losses = 0
    for lam in lambdas:
        prefix, options = f"otam.outputs.lambda{lam}", {"lam": float(lam)}
        logits = -by_class(otam(distances, **options), labels, config["way"])
        found = {
            "query_to_support": otam(distances, both_directions=False, **options),
            "support_to_query": otam(distances.transpose(-1, -2), both_directions=False, **options),
            "logits": logits,
            "logits_prototype_first": -otam(frame_distances(query, means), **options),
        }
        for name in (name for name in found if f"{prefix}.{name}" in t):
            assert_close(found[name], t[f"{prefix}.{name}"], f"{prefix}.{name}")
        if f"{prefix}.ce_loss" in t:
            assert_loss(logits, features, t, prefix)
            losses += 1
    assert losses


def test_bi_mhm(fixture, features):
    config, t = fixture
    support, query, labels, _ = features
    means, way, prefix = average_by_class(support, labels, config["way"]), config["way"], "bimhm.outputs"
    found = {
        "logits_eps_cosine": -by_class(bi_mhm(frame_distances(query, support)), labels, way),
        "logits_eps_cosine_prototype_first": -bi_mhm(frame_distances(query, means)),
        "logits_normalised_cosine": -by_class(bi_mhm(frame_distances(query, support, eps=0.0)), labels, way),
    }
    for name, logits in found.items():
        assert_close(logits, t[f"{prefix}.{name}"], name)
    assert_loss(found["logits_normalised_cosine"], features, t, prefix)
