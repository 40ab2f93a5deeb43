"""Replays the DreamLIP fixtures through the functions and classes of users; sizes and cases come from the files."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from replay import PARITY
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from hf_clipplus.data.sub_captions import SubCaptions, caption_column
from hf_clipplus.models.dreamlip.convert_dreamlip import dreamlip_from_open_clip, dreamlip_to_open_clip
from hf_clipplus.models.dreamlip.modeling_dreamlip import DreamLIPModel
from hf_clipplus.models.dreamlip.processing_dreamlip import DreamLIPProcessor
from hf_clipplus.models.open_clip_layout import from_open_clip, read_checkpoint
from hf_clipplus.ops.contrastive import slot_softmax_loss, softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss, group_patches, grouping_loss, within_image_loss
from hf_clipplus.ops.sentences import split_sentences
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments
from hf_clipplus.training.schedules import open_clip_schedule

FOLDER = PARITY / "dreamlip"
KINDS = {"losses", "losses_ddp", "model", "text_pipeline"}
WORKER = Path(__file__).with_name("dreamlip_worker.py")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@cache
def info_of(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def tensors_of(name):
    return load_file(FOLDER / f"{name}.safetensors")


def assert_close(actual, expected, name, **tolerance):
    torch.testing.assert_close(actual, expected, msg=lambda text: f"{name}: {text}", **(CLOSE | tolerance))


def test_every_file_is_known():
    found = {path.stem for path in FOLDER.iterdir() if path.suffix in (".json", ".safetensors")}
    assert found == KINDS


def loss_inputs():
    """Leaves of the losses, by name."""
    stored = tensors_of("losses").items()
    return {key.removeprefix("in."): value.clone().requires_grad_() for key, value in stored if key.startswith("in.")}


def assert_gradients(leaves, prefix, tensors):
    compared = 0
    for name, leaf in leaves.items():
        if f"{prefix}.grad.{name}" in tensors:
            assert_close(leaf.grad, tensors[f"{prefix}.grad.{name}"], f"{prefix} {name}")
            compared += 1
    assert compared == sum(key.startswith(f"{prefix}.grad.") for key in tensors)


@pytest.mark.parametrize("tile_size", [None, 2])
def test_multi_caption_loss(tile_size):
    config, t = info_of("losses")["config"], tensors_of("losses")
    leaves = loss_inputs()
    images, texts, scale = leaves["image_features"], leaves["text_features"], leaves["logit_scale"].log()
    weight, captions = config["clip_lossweight"], texts.shape[1]
    loss = weight * slot_softmax_loss(images, texts, scale, tile_size=tile_size)
    loss.backward()
    assert_close(loss, t["global.loss"], "loss")
    assert_gradients(leaves, "global", t)
    first = slot_softmax_loss(images, texts[:, :1], scale)
    others = (captions - 1) * slot_softmax_loss(images, texts[:, 1:], scale) if captions > 1 else torch.zeros(())
    assert_close(weight * first / captions, t["global.raw_term"], "raw term")
    assert_close(weight * others / captions, t["global.other_terms"], "other terms")
    single = softmax_loss(images, texts[:, 0], torch.arange(len(images)), scale)
    assert_close(single, t["single_caption.loss"], "one caption")


@pytest.mark.parametrize("tile_size", [None, 1, 2])
def test_circle_loss(tile_size):
    config, t = info_of("losses")["config"], tensors_of("losses")
    leaves = loss_inputs()
    options = {"gamma": config["circle_gamma"], "margin": config["circle_margin"]}
    loss = circle_loss(leaves["image_features"], leaves["text_features"], tile_size=tile_size, **options)
    loss.backward()
    assert_close(loss, t["circle.loss"], "circle")
    assert_gradients(leaves, "circle", t)


def grouping_cases():
    found = sorted({key.split(".")[1] for key in tensors_of("losses") if key.startswith("sgl.")} - {"k1"})
    assert found, "no case of the grouping loss in the fixture"
    return found


def grouping_options(case):
    """What a case's name says: normalisation, and the threshold (deltaNeg: negative, 0p6: 0.6)."""
    normalization, delta = re.fullmatch(r"(minmax|softmax)_delta(Neg|[\dp]+)", case).groups()
    return {"normalization": normalization, "threshold": -1.0 if delta == "Neg" else float(delta.replace("p", "."))}


@pytest.mark.parametrize("case", grouping_cases())
def test_grouping_loss(case):
    weight, t, options = info_of("losses")["config"]["sgl_lossweight"], tensors_of("losses"), grouping_options(case)
    leaves = loss_inputs()
    # the published grouping loss normalises both sides itself, so its gradients go through that
    texts, patches = (F.normalize(leaves[name], dim=-1) for name in ("text_features", "patch_features"))
    scale = leaves["logit_scale_local"].log()
    groups = group_patches(texts, patches, **options)
    assert_close(groups.similarity, t[f"sgl.{case}.similarity"], "similarity")
    assert_close(groups.weights, t[f"sgl.{case}.weights"], "weights")
    assert_close(groups.embeds, t[f"sgl.{case}.grouped"], "grouped")
    loss = weight * grouping_loss(texts, patches, scale, **options)
    loss.backward()
    assert_close(loss, t[f"sgl.{case}.loss"], "loss")
    assert_gradients(leaves, f"sgl.{case}", t)
    within = grouping_loss(texts, patches, scale, negatives="within_image", **options)
    assert_close(within, t[f"sgl.{case}.within_image.text_to_group"], "within image")
    back = within_image_loss(groups.embeds, texts, scale)
    assert_close(back, t[f"sgl.{case}.within_image.group_to_text"], "within image, groups to texts")


@pytest.mark.parametrize("case", grouping_cases())
def test_the_released_pairing_is_not_ours(case):
    """The published code views captions stacked as [K, B] as [B, K]; doing the same gives its number, and only so."""
    weight, t = info_of("losses")["config"]["sgl_lossweight"], tensors_of("losses")
    texts, patches = t["in.text_features"], F.normalize(t["in.patch_features"], dim=-1)
    scale, released = t["in.logit_scale_local"].log(), t[f"sgl.{case}.released_mispaired_loss"]
    right = weight * grouping_loss(texts, patches, scale, **grouping_options(case))
    mispaired = texts.transpose(0, 1).reshape(texts.shape)
    wrong = weight * grouping_loss(mispaired, patches, scale, **grouping_options(case))
    assert_close(wrong, released, "the published pairing")
    assert abs(right - released) > 100 * (1e-5 + 1e-4 * abs(released))


def test_grouping_loss_of_one_caption():
    weight, t = info_of("losses")["config"]["sgl_lossweight"], tensors_of("losses")
    patches = F.normalize(t["in.patch_features"], dim=-1)
    loss = weight * grouping_loss(t["in.text_features"][:, :1], patches, t["in.logit_scale_local"].log())
    assert_close(loss, t["sgl.k1.loss"], "one caption")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What every rank of dreamlip_worker.py saved, and what one process makes of the whole batch."""
    folder = tmp_path_factory.mktemp("processes")
    here = {"CLIPPLUS_PARITY_DIR": str(FOLDER.parent), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | here
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    world = info_of("losses_ddp")["config"]["world_size"]
    names = [*(f"rank{rank}" for rank in range(world)), "alone"]
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}


def test_losses_over_processes(processes):
    """Ours: the mean over ranks is the loss, and a rank's gradient is that of the sum over ranks (differentiable)."""
    config, t = info_of("losses_ddp")["config"], tensors_of("losses_ddp")
    ranks = [processes[f"rank{rank}"]["fixture"] for rank in range(config["world_size"])]
    compared = set()
    for name, key in (("global", "global_loss"), ("circle", "circle_loss"), ("sgl_k1", "sgl_k1_loss")):
        mean = torch.stack([rank[f"{name}.loss"] for rank in ranks]).mean()
        for r, rank in enumerate(ranks):
            for gather in ("gradgather", "localgrad"):
                assert_close(mean, t[f"rank{r}.{gather}.{key}"], f"{key} of rank {r}")
            prefix = f"rank{r}.gradgather.{name}.grad."
            for stored in (stored for stored in t if stored.startswith(prefix)):
                assert_close(rank[f"{name}.grad.{stored.removeprefix(prefix)}"], t[stored], stored)
                compared.add(stored)
    assert compared == {key for key in t if ".gradgather." in key and ".grad." in key}


def test_a_batch_cut_over_processes_is_the_batch(processes):
    """Every kind of negatives and the circle loss through the model: value and gradients, uneven shares of images."""
    alone = processes["alone"]
    ranks = [processes[name]["model"] for name in processes if name != "alone"]
    mined = alone.pop("sigmoid.mined")
    assert mined == sum(rank["sigmoid.mined"] for rank in ranks) > 0
    for name, expected in alone.items():
        found = torch.stack([rank[name] for rank in ranks]).mean(0)
        assert_close(found, expected, name, rtol=1e-6, atol=1e-9)
    cases = {"batch", "within_image", "cross_image", "capped", "circle", "sigmoid"}
    assert {name.split(".")[0] for name in alone} == cases


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The fixture's weights as a published file, without and with the parts of the grouping loss."""
    folder, t = tmp_path_factory.mktemp("checkpoint"), tensors_of("model")
    weights = {key.removeprefix("weights."): value for key, value in t.items() if key.startswith("weights.")}
    grouping = {"visual.proj2": t["in.patch_projection"], "logit_scale_local": t["in.log_logit_scale_local"]}
    for name, state in (("released", weights), ("grouping", weights | grouping)):
        save_file(state, folder / f"{name}.safetensors")
    return folder


def build(checkpoint, name, **config):
    facts = info_of("model")["config"]
    heads = {f"{side}_heads": facts[side]["heads"] for side in ("vision", "text")}
    weights = {"multi_caption_weight": facts["clip_lossweight"], "grouping_loss_weight": facts["sgl_lossweight"]}
    return dreamlip_from_open_clip(checkpoint / f"{name}.safetensors", **heads, **weights, **config)


@torch.no_grad()
def test_features(checkpoint):
    t, (model, _) = tensors_of("model"), build(checkpoint, "grouping")
    pixels, ids = t["in.pixel_values"], t["in.input_ids"]
    assert info_of("model")["config"]["text"]["eot_id"] == model.config.text_config.eos_token_id
    vision = model.vision_model(pixels)
    patches = model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:])
    found = {
        "out.image_features": model.encode_image(pixels),
        "out.image_features_unnormalised": model.encode_image(pixels, normalize=False),
        "out.text_features": model.encode_text(ids.flatten(0, 1)).view(*ids.shape[:2], -1),
        "out.text_features_unnormalised": model.encode_text(ids.flatten(0, 1), normalize=False).view(
            *ids.shape[:2], -1
        ),
        "out.patch_tokens_after_ln_post": patches,
        "out.local_image_features_released": F.normalize(patches, dim=-1),
        "out.logit_scale": model.logit_scale.exp(),
        "step2.out.patch_features": model.get_patch_features(pixels),
    }
    for name, value in found.items():
        assert_close(value, t[name], name)
    assert {key for key in t if ".out." in f".{key}" and not key.endswith("patch_features")} <= found.keys()


@pytest.mark.parametrize("step", ["step1", "step2"])
def test_training_step(step, checkpoint):
    t = tensors_of("model")
    model, _ = build(checkpoint, "released" if step == "step1" else "grouping")
    assert model.config.use_grouping_loss == (step == "step2")
    out = model.train()(t["in.pixel_values"], t["in.input_ids"].flatten(0, 1), return_loss=True)
    out.loss.backward()
    assert_close(out.loss, t["step1.loss" if step == "step1" else "step2.total_loss"], "loss")
    if step == "step2":
        assert_close(out.statistics["grouping_loss"], t["step2.grouping_loss"] / model.config.grouping_loss_weight, "")
    stored = {k.removeprefix(f"{step}.grad."): v for k, v in t.items() if k.startswith(f"{step}.grad.")}
    own = {"log_logit_scale_local": model.logit_scale_local, "patch_projection": model.patch_projection}
    for name in own.keys() & stored.keys():
        ours = own[name].grad if name == "log_logit_scale_local" else own[name].weight.grad.T
        assert_close(ours, stored.pop(name), name)
    converted, report = from_open_clip(stored)
    assert not report.unused
    parameters = dict(model.named_parameters())
    for name, grad in converted.items():
        assert_close(parameters[name].grad, grad, name)


def test_weight_decay(checkpoint, tmp_path):
    split = info_of("model")["weight_decay_split"]
    model, _ = build(checkpoint, "released")
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    decayed = set(ContrastiveTrainer.get_decay_parameter_names(_Holder(args), model))
    state = read_checkpoint(checkpoint / "released.safetensors")
    for kind, keys in split.items():
        converted, _ = from_open_clip({key: state[key] for key in keys})
        for name in converted:
            assert (name in decayed) == (kind == "decay"), name
    assert sum(map(len, split.values())) == len(state)


class _Holder(ContrastiveTrainer):
    """Only the arguments of a trainer."""

    def __init__(self, args):
        self.args = args


@pytest.mark.parametrize("name", ["released", "grouping"])
def test_conversion_there_and_back_is_bit_equal(name, checkpoint, tmp_path):
    source = read_checkpoint(checkpoint / f"{name}.safetensors")
    extra = {"multi_classifier.weight": torch.zeros(3, 3)}
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": v for key, v in (source | extra).items()}}, tmp_path / "x.pt"
    )
    facts = info_of("model")["config"]
    model, report = dreamlip_from_open_clip(
        tmp_path / "x.pt", vision_heads=facts["vision"]["heads"], text_heads=facts["text"]["heads"]
    )
    assert list(report.dropped) == list(extra)
    model.save_pretrained(tmp_path / "folder")
    again, _ = dreamlip_to_open_clip(DreamLIPModel.from_pretrained(tmp_path / "folder"))
    assert again.keys() == source.keys()
    for key, value in source.items():
        assert torch.equal(again[key], value), key


def test_sentences():
    cases = info_of("text_pipeline")["split"]
    assert cases
    for case in cases:
        assert split_sentences(case["text"]) == case["sentences"], case["text"]


def row_of(record):
    """A record of the fixture with the published names of columns."""
    names = {f"{length}{source}": caption_column(length, source) for length in ("short", "long")
             for source in ("IB", "SV", "LLA")}  # fmt: skip
    assert record.keys() == names.keys() | {"raw"}
    return {names.get(key, "caption"): text for key, text in record.items()}


@pytest.mark.parametrize("number", range(len(info_of("text_pipeline")["records"])))
def test_released_sampler(number):
    case = info_of("text_pipeline")["records"][number]
    row = row_of(case["record"])
    orders = {"csv": ("IB", "SV", "LLA"), "json": ("IB", "LLA", "SV")}
    pools = {kind: SubCaptions(sources=sources).pool(row) for kind, sources in orders.items()}
    assert pools == {"csv": case["pool_csv_order"], "json": case["pool_json_order"]}
    for draw in case["draws"]:
        sampler = SubCaptions(
            captions_per_image=1 + draw["num_text"], merged_sentences=draw["merged_num"], sampler="released"
        )
        if draw["error"]:
            with pytest.raises(IndexError):
                sampler.released(row["caption"], pools["csv"], random.Random(0))
            continue
        seen = set()
        for seed, expected in draw["python_random_seeds"].items():
            assert sampler.released(row["caption"], pools["csv"], random.Random(int(seed))) == expected
            seen |= set(expected[1:])
        assert sampler.released(row["caption"], pools["json"], random.Random(0)) == draw["json_order_seed0"]
        for seed in range(400):
            seen |= set(sampler.released(row["caption"], pools["csv"], random.Random(seed))[1:])
        assert sorted(seen) == sorted(draw["reachable_after_raw"])


def test_token_ids():
    path = Path(__file__).parents[1] / "common" / "fetch_clip_bpe.py"
    spec = importlib.util.spec_from_file_location("fetch_clip_bpe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    processor = DreamLIPProcessor(CLIPImageProcessorPil(), module.clip_tokenizer())
    for case in info_of("text_pipeline")["tokenizer"]:
        found = processor(text=case["text"], padding="max_length", max_length=len(case["ids"]))
        assert found["input_ids"][0] == case["ids"], case["text"]


def test_learning_rates():
    facts = info_of("text_pipeline")["cosine_lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=facts["base_lr"])
    schedule = open_clip_schedule(optimizer, warmup_steps=facts["warmup_steps"], total_steps=facts["total_steps"])
    rates = []
    for _ in facts["lr"]:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(facts["lr"], rel=1e-6)
