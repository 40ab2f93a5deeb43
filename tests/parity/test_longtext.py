"""Replays the Long-CLIP fixtures through the functions and classes of users; sizes and cases come from the files."""

import json
import re
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from replay import PARITY, assert_known, names_of
from safetensors.torch import load_file, save_file

from hf_clipplus.models.longclip.convert_longclip import longclip_from_open_clip, longclip_to_open_clip
from hf_clipplus.models.open_clip_layout import from_open_clip
from hf_clipplus.ops.components import keep_components
from hf_clipplus.ops.position import stretch_positions

FOLDER = PARITY / "longtext"
names = partial(names_of, FOLDER)
KINDS = ("model_loss", "stretch_pca")
TABLES = ("positional_embedding", "positional_embedding_res")


@cache
def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def cases(kind, pattern):
    """(file, case) of every tensor whose name matches."""
    found = [(name, key[: -len(".in")]) for name in names(kind) for key in read(name)[1] if re.fullmatch(pattern, key)]
    assert found, f"no case {pattern} in {FOLDER}"
    return sorted(found)


def assert_close(actual, expected, name, *, rtol=1e-4):
    """Error relative to the largest expected number: gradients through the decomposition have tiny ones among them."""
    limit = rtol * expected.abs().max().clamp(min=1e-6)
    error = (actual - expected).abs().max()
    assert error <= limit, f"{name}: error {error:.3e} > {limit:.3e}"  # not so when anything is NaN


def test_every_file_is_known():
    assert_known(FOLDER, KINDS)


@pytest.mark.parametrize(("name", "case"), cases("stretch_pca", r"kps\..*\.in"))
def test_stretched_positions(name, case):
    _, t = read(name)
    found = stretch_positions(t[f"{case}.in"])
    torch.testing.assert_close(found, t[f"{case}.out"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "case"), cases("stretch_pca", r"pca\..*\.in"))
def test_principal_components(name, case):
    _, t = read(name)
    embeds = t[f"{case}.in"].clone().requires_grad_()
    found = keep_components(embeds, int(re.search(r"_k(\d+)$", case)[1]))
    assert_close(found, t[f"{case}.out"], "output")
    (found * t[f"{case}.cotangent"]).sum().backward()
    if f"{case}.grad" in t:
        assert_close(embeds.grad, t[f"{case}.grad"], "gradient", rtol=1e-3)
    else:  # as many components as the batch can have: the identity, whose gradient is the cotangent
        assert_close(embeds.grad, t[f"{case}.cotangent"], "gradient of the identity", rtol=1e-3)


@pytest.fixture(scope="module", params=names("model_loss"))
def model_case(request, tmp_path_factory):
    """Facts, tensors and the model that the converter makes of the published weights."""
    info, t = read(request.param)
    weights = {key.removeprefix("weights."): value for key, value in t.items() if key.startswith("weights.")}
    path = tmp_path_factory.mktemp("weights") / "published.safetensors"
    save_file(weights, path)
    config = info["config"]
    model, report = longclip_from_open_clip(
        path,
        vision_heads=config["vision"]["heads"],
        text_heads=config["text"]["heads"],
        frozen_positions=config["keep"],
        components=config["pca_dim"],
        label_smoothing=config["label_smoothing"],
    )
    assert {source.split(",")[0] for source, *_ in report.used} == weights.keys()
    assert model.config.text_config.eos_token_id == config["text"]["eot_id"]
    return info, t, weights, model


@torch.no_grad()
def test_features(model_case):
    _, t, _, model = model_case
    found = {"out.image_features_unnormalised": model.encode_image(t["in.pixel_values"].float(), normalize=False)}
    for kind in ("long", "short"):
        embeds = model.encode_text(t[f"in.input_ids_{kind}"].long(), normalize=False)
        found[f"out.text_features_{kind}_unnormalised"] = embeds
    for name, value in found.items():
        torch.testing.assert_close(value, t[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert {key for key in t if key.startswith("out.") and "loss" not in key} == found.keys()


@pytest.mark.parametrize("frozen", [False, True], ids=["every row is trained", "the first rows are frozen"])
def test_losses_and_gradients(frozen, model_case):
    info, t, _, model = model_case
    kept = info["config"]["keep"]
    model.zero_grad()
    model.config.frozen_positions = kept if frozen else 0
    ids = torch.stack([t["in.input_ids_long"], t["in.input_ids_short"]], dim=1).flatten(0, 1).long()
    out = model.train()(t["in.pixel_values"].float(), ids, return_loss=True)
    out.loss.backward()
    assert_close(out.loss.detach(), t["out.loss_total"], "total")
    for kind in ("long", "short"):
        assert_close(out.statistics[f"{kind}_loss"], t[f"out.loss_{kind}"], kind)
    stored = {key.removeprefix("grad."): value for key, value in t.items() if key.startswith("grad.")}
    first, rest = (stored.pop(name) for name in TABLES)
    ours = model.text_model.embeddings.position_embedding.weight.grad
    assert_close(ours[kept:], rest[kept:], "last rows", rtol=1e-3)
    assert_close(ours[:kept], torch.zeros_like(first[:kept]) if frozen else first[:kept], "first rows", rtol=1e-3)
    converted, report = from_open_clip(stored)
    assert not report.unused
    parameters = dict(model.named_parameters())
    for name, grad in converted.items():
        assert_close(parameters[name].grad, grad, name, rtol=1e-3)


def test_conversion_there_and_back(model_case):
    """Bit-equal, but for the rows of either table that the published model never reads."""
    info, _, weights, model = model_case
    kept, (converted, _) = info["config"]["keep"], longclip_to_open_clip(model)
    assert converted.keys() == weights.keys()
    for key, value in weights.items():
        used = {TABLES[0]: slice(kept), TABLES[1]: slice(kept, None)}.get(key, ...)
        assert torch.equal(converted[key][used], value[used]), key


def test_scores_of_unit_embeddings_are_cosines(model_case):
    _, t, _, model = model_case
    with torch.no_grad():
        out = model.eval()(t["in.pixel_values"].float(), t["in.input_ids_long"].long())
        images, texts = (
            F.normalize(t[f"out.{name}_unnormalised"], dim=-1) for name in ("image_features", "text_features_long")
        )
        torch.testing.assert_close(
            out.logits_per_image, model.logit_scale.exp() * images @ texts.T, rtol=1e-3, atol=1e-3
        )
