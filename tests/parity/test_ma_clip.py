"""Replays the MA-CLIP fixtures through the public classes; sizes, cases and names come from the files.

`aim.*` and the metrics (also in `test_alignment_metrics.py`) are of published code, the rest is this project's
specification computed independently: MA-CLIP's authors published no code.
"""

import json
from functools import cache, partial

import pytest
import torch
from replay import PARITY, assert_known, names_of, part
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hf_clipplus import MACLIPConfig, MACLIPForFewShotVideoClassification
from hf_clipplus.models.ma_clip.adapters_ma_clip import AdapterSettings, adapt_tower
from hf_clipplus.models.ma_clip.convert_ma_clip import aim_adapters
from hf_clipplus.ops.few_shot_video import mixed_log_scores, video_and_text_losses
from hf_clipplus.ops.multimodal_adapters import (
    global_temporal,
    joint_adaptation,
    local_adaptation,
    with_extra_tokens,
)
from hf_clipplus.tuners.ma_clip import attach_ma_clip, export_ma_clip, seed_from_aim

FOLDER = PARITY / "ma_clip"
files = partial(names_of, FOLDER)
KINDS = ("head", "layer", "metrics", "tower")
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = CLIPTextConfig(**SMALL, vocab_size=16, bos_token_id=0, eos_token_id=1).to_dict()


@cache
def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text())["config"], load_file(FOLDER / f"{name}.safetensors")


def assert_close(actual, expected, name, relative=1e-4):
    limit = relative * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit, msg=lambda text: f"{name}: {text}")


def test_every_file_is_known():
    assert_known(FOLDER, KINDS)


# the layer


def vision_config(width, heads, mlp, *, layers=1, **sizes):
    return CLIPVisionConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        hidden_act="quick_gelu",
        **{"image_size": 8, "patch_size": 8} | sizes,
    )


def official_layer(c, weights):
    """CLIP's layer from AIM's names."""
    mlp = weights["mlp.c_fc.weight"].shape[0]
    layer = CLIPEncoderLayer(vision_config(c["D"], c["heads"], mlp, attn_implementation="sdpa"))
    state = {}
    for end in ("weight", "bias"):
        stacked = weights[f"attn.in_proj_{end}"].chunk(3)
        state |= {f"self_attn.{kind}_proj.{end}": value for kind, value in zip("qkv", stacked, strict=True)}
        for theirs, ours in (
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            state[f"{ours}.{end}"] = weights[f"{theirs}.{end}"]
    layer.load_state_dict(state)
    return layer


def linears(weights):
    """Linear layers by name from their weights and biases."""
    found = {}
    for name in {key.rpartition(".")[0] for key in weights}:
        out, wide = weights[f"{name}.weight"].shape
        found[name] = torch.nn.Linear(wide, out)
        found[name].load_state_dict(part(weights, f"{name}."))
    return found


def pair(found, name):
    return found[f"{name}_down"], found[f"{name}_up"]


@torch.no_grad()
@pytest.mark.parametrize("name", files("layer"))
def test_published_block_of_aim(name):
    c, t = read(name)
    weights = part(t, "aim.weights.")
    layer = official_layer(c, weights)
    seeds = aim_adapters({f"backbone.transformer.resblocks.0.{key}": value for key, value in weights.items()})
    own = linears({key.removeprefix("0."): value for key, value in seeds.items()})
    count, frames = len(t["aim.inputs.x"]), c["T"]

    def attend(x):
        return layer.self_attn(hidden_states=x, attention_mask=None)[0]

    x = t["aim.inputs.x"].unflatten(1, (-1, frames))  # [N, B, T, D], the temporal branch of AIM takes every token
    flat = x.flatten(0, 1)
    x = (flat + global_temporal(flat, attend, layer.layer_norm1, pair(own, "temporal"))).unflatten(0, (count, -1))
    assert_close(x.flatten(1, 2), t["aim.outputs.after_temporal"], "after the temporal branch")
    x = local_adaptation(x.flatten(1, 2).transpose(0, 1), attend, layer.layer_norm1, pair(own, "local"))
    assert_close(x.transpose(0, 1), t["aim.outputs.after_spatial"], "after the spatial branch")
    x = joint_adaptation(x, layer.mlp, layer.layer_norm2, pair(own, "joint"), scale=c["s"])
    assert_close(x.transpose(0, 1), t["aim.outputs.y"], "output")


def settings_of(c):
    return {"adapter_ratio": c["ratio"], "joint_scale": c["s"], "num_frames": c["T"], "text_dim": c["C"]}


def load_linears(layer, weights, name="default"):
    """Fill the containers of a `MACLIPLayer`."""
    for key, value in weights.items():
        stem, _, end = key.rpartition(".")
        getattr(getattr(layer, f"ma_clip_{stem}")[name], end).data.copy_(value)


@pytest.mark.parametrize("name", files("layer"))
def test_layer_with_adapters_of_peft(name):
    c, t = read(name)
    base = part(t, "ma.weights.base.")
    tower = CLIPVisionModel(vision_config(c["D"], c["heads"], len(base["mlp.fc1.bias"]))).eval()
    tower.encoder.layers[0].load_state_dict(base)
    attach_ma_clip(tower, **settings_of(c))
    layer = tower.encoder.layers[0]
    load_linears(layer, part(t, "ma.weights.adapter."))
    branches = {key.split(".")[2] for key in t if key.startswith("ma.outputs.")}
    assert branches == {"support", "query"}
    for branch in branches:
        layer.zero_grad()
        x, text = (t[f"ma.inputs.{each}"].clone().requires_grad_() for each in ("x", "text"))
        given = {"text_tokens": text} if branch == "support" else {}
        y = layer(x.flatten(0, 1), None, num_frames=c["T"], **given).unflatten(0, x.shape[:2])
        out = part(t, f"ma.outputs.{branch}.")
        assert_close(y, out["y"], f"{branch} output")
        grads = part(out, "grad.")
        if not grads:
            continue
        (y * t["ma.inputs.probe"]).sum().backward()
        for key, expected in grads.items():
            stem, _, end = key.removeprefix("adapter.").rpartition(".")
            own = {"x": x, "text": text}.get(key)
            own = getattr(getattr(layer, f"ma_clip_{stem}")["default"], end) if own is None else own
            assert_close(own.grad, expected, f"{branch} gradient of {key}")


@torch.no_grad()
@pytest.mark.parametrize("name", files("layer"))
def test_steps_of_the_layer(name):
    c, t = read(name)
    base, own = part(t, "ma.weights.base."), linears(part(t, "ma.weights.adapter."))
    layer = CLIPEncoderLayer(
        vision_config(c["D"], c["heads"], len(base["mlp.fc1.bias"]), attn_implementation="sdpa")
    ).eval()
    layer.load_state_dict(base)
    x = t["ma.inputs.x"]

    def attend(values):
        return layer.self_attn(hidden_states=values, attention_mask=None)[0]

    for branch in ("support", "query"):
        out = part(t, f"ma.outputs.{branch}.")
        x_ta = global_temporal(x[:, :, 0], attend, layer.layer_norm1, pair(own, "temporal"))
        assert_close(x_ta, out["x_ta"], f"{branch} x_ta")
        text = own["text_proj"](t["ma.inputs.text"]) if branch == "support" else None
        z = with_extra_tokens(x, x_ta, text)
        assert_close(z.unflatten(0, x.shape[:2]), out["z_in"], f"{branch} tokens")
        z = local_adaptation(z, attend, layer.layer_norm1, pair(own, "local"))
        assert_close(z.unflatten(0, x.shape[:2]), out["z_out"], f"{branch} after the attention")
        z = z[:, : x.shape[2]]
        assert_close(z.unflatten(0, x.shape[:2]), out["selected"], f"{branch} selected")
        y = joint_adaptation(z, layer.mlp, layer.layer_norm2, pair(own, "joint"), scale=c["s"])
        assert_close(y.unflatten(0, x.shape[:2]), out["y"], f"{branch} output")


# the tower


def tower_model(c, t, **fields):
    """The zoo's model with the fixture's vision tower."""
    weights = part(t, "weights.")
    mlp = len(weights["vision_model.encoder.layers.0.mlp.fc1.bias"])
    sizes = {"layers": c["layers"], "image_size": c["image"], "patch_size": c["patch"]}
    vision = vision_config(c["D"], c["heads"], mlp, **sizes).to_dict()
    head = {"temporal_heads": 1, "temporal_ffn_dim": 8, "num_frames": c["T"], "projection_dim": c["C"]}
    config = MACLIPConfig(text_config=TEXT, vision_config=vision, **head, **fields)
    model = MACLIPForFewShotVideoClassification(config).eval()
    own = {key: value for key, value in weights.items() if key.startswith(("vision_model.", "visual_projection."))}
    left = model.load_state_dict(own, strict=False)
    assert not left.unexpected_keys
    assert not [key for key in left.missing_keys if key.startswith("vis")]
    return model


def fill_tower(model, c, t):
    for number, layer in enumerate(model.vision_model.encoder.layers):
        load_linears(layer, part(t, f"weights.adapters.{number}."))
    load_linears(model.vision_model.encoder.layers[0], {key: t[f"weights.{key}"] for key in text_proj(t)})


def text_proj(t):
    return [key.removeprefix("weights.") for key in t if key.startswith("weights.text_proj.")]


@torch.no_grad()
@pytest.mark.parametrize("name", files("tower"))
def test_tower(name):
    c, t = read(name)
    pixels, text = t["inputs.pixel_values"], t["inputs.text_features"]
    model = tower_model(c, t)
    assert_close(model.frame_features(pixels), t["outputs.plain_clip_frame_features"], "plain")
    adapted = attach_ma_clip(model, **settings_of(c))
    fill_tower(model, c, t)
    exported = export_ma_clip(adapted)
    for branch, given in (("support", {"text_embeds": text}), ("query", {})):
        expected = t[f"outputs.{branch}_frame_features"]
        for each, what in ((model, "PEFT"), (exported, "exported")):
            assert_close(each.frame_features(pixels, **given), expected, f"{branch}, {what}")
        tokens = {"num_frames": c["T"]} | ({"text_tokens": text} if given else {})
        hidden = model.vision_model(pixels.flatten(0, 1), output_hidden_states=True, **tokens).hidden_states
        stored = sorted(key for key in t if key.startswith(f"outputs.{branch}_layer"))
        assert len(stored) == len(hidden) - 1 == c["layers"]
        for number, states in enumerate(hidden[1:]):
            classes = states[:, 0].unflatten(0, pixels.shape[:2])
            assert_close(classes, t[f"outputs.{branch}_layer{number}_cls"], f"{branch}, layer {number}")
    with adapted.disable_adapter():
        assert_close(model.frame_features(pixels, text), t["outputs.plain_clip_frame_features"], "disabled")


@torch.no_grad()
@pytest.mark.parametrize("name", files("tower"))
def test_tower_of_transformers_own_classes(name):
    """The same numbers from `CLIPModel.get_image_features`, and adapters seeded from a checkpoint in AIM's names."""
    c, t = read(name)
    own = tower_model(c, t)
    text = CLIPTextConfig(**SMALL).to_dict()
    sizes = {"vision_config": own.config.vision_config.to_dict(), "projection_dim": c["C"]}
    clip = CLIPModel(CLIPConfig(text_config=text, **sizes)).eval()
    clip.vision_model.load_state_dict(own.vision_model.state_dict())
    clip.visual_projection.load_state_dict(own.visual_projection.state_dict())
    adapted = attach_ma_clip(clip, **settings_of(c))
    theirs = {"temporal": "T_Adapter", "local": "S_Adapter", "joint": "MLP_Adapter", "down": "D_fc1", "up": "D_fc2"}
    aim = {}
    for key, value in part(t, "weights.adapters.").items():
        number, stem, end = key.split(".")
        kind, place = stem.split("_")
        aim[f"transformer.resblocks.{number}.{theirs[kind]}.{theirs[place]}.{end}"] = value
    left = seed_from_aim(adapted, aim)
    assert left == ["0.text_proj.bias", "0.text_proj.weight"]
    load_linears(clip.vision_model.encoder.layers[0], {key: t[f"weights.{key}"] for key in text_proj(t)})
    pixels = t["inputs.pixel_values"]
    for branch, given in (("support", {"text_tokens": t["inputs.text_features"]}), ("query", {})):
        found = adapted.get_image_features(pixels.flatten(0, 1), num_frames=c["T"], **given).pooler_output
        assert_close(found.unflatten(0, pixels.shape[:2]), t[f"outputs.{branch}_frame_features"], branch)


@torch.no_grad()
@pytest.mark.parametrize("name", files("tower"))
def test_tower_that_owns_its_adapters(name):
    c, t = read(name)
    tower = tower_model(c, t).vision_model
    adapt_tower(tower, AdapterSettings(**settings_of(c)))
    for number, layer in enumerate(tower.encoder.layers):
        layer.load_state_dict(
            {f"adapters.{key}": value for key, value in part(t, f"weights.adapters.{number}.").items()}, strict=False
        )
    tower.encoder.layers[0].adapters["text_proj"].load_state_dict(part(t, "weights.text_proj."))
    pooled = tower(t["inputs.pixel_values"].flatten(0, 1), text_tokens=t["inputs.text_features"]).pooler_output
    found = pooled @ t["weights.visual_projection.weight"].T
    assert_close(found.unflatten(0, (c["V"], c["T"])), t["outputs.support_frame_features"], "support")


# the head


def head_model(width, frames, **fields):
    """A model whose towers are not used."""
    vision = vision_config(16, 2, 16).to_dict()
    sizes = {"projection_dim": width, "num_frames": frames, "attention_dropout": 0.0, "ffn_dropout": 0.0}
    defaults = {"temporal_heads": 1, "temporal_ffn_dim": 8, "trx_width": 8}
    config = MACLIPConfig(text_config=TEXT, vision_config=vision, **defaults | sizes | fields)
    return MACLIPForFewShotVideoClassification(config)


@pytest.mark.parametrize("name", files("head"))
def test_head_losses_and_prediction(name):
    c, t = read(name)
    fields = {"temporal_heads": c["heads"], "temporal_ffn_dim": c["mlp"], "alpha": c["alpha"], "cosine_eps": 0.0}
    alignments = sorted({key.split(".")[1] for key in t if key.endswith(".distance")})
    assert alignments
    for alignment in alignments:
        model = head_model(c["C"], c["T"], alignment=alignment, otam_lambda=0.5, **fields).train()
        state = {key.removeprefix("attn.").removeprefix("ffn."): v for key, v in part(t, "weights.").items()}
        model.prototype_module.layer.load_state_dict(state)
        model.logit_scale.data.fill_(c["temperature"]).log_()
        support, query, text = (t[f"inputs.{each}"].clone().requires_grad_() for each in ("support", "query", "text"))
        inputs = {
            "support_features": support,
            "query_features": query,
            "support_labels": t["inputs.support_labels"],
            "query_labels": t["inputs.query_labels"],
            "class_embeds": text,
            "support_class_ids": t["inputs.support_labels"],
        }
        out, stored = model(**inputs), part(t, f"outputs.{alignment}.")
        represented = model.represent_supports(support, text[inputs["support_labels"]], shots=c["shot"])
        assert_close(represented, t["outputs.support_enhanced"], "supports")
        assert_close(out.query_features, t["outputs.query_enhanced"], "queries")
        assert_close(out.prototypes, t["outputs.prototypes"], "prototypes")
        texts = out.class_logits.split([len(support), len(query)])
        for found, side in zip(texts, ("support", "query"), strict=True):
            assert_close(found, t[f"outputs.{side}_text_logits"], f"{side} text logits")
        assert_close(-out.logits, stored["distance"], f"{alignment} distances")
        labels = (inputs["query_labels"], *texts, inputs["support_labels"])
        parts = video_and_text_losses(out.logits, *labels, alpha=c["alpha"])
        for found, key in zip(parts, ("loss", "loss_q2s", "loss_s2t", "loss_q2t"), strict=True):
            expected = stored.get(key, t.get(f"outputs.{key}"))
            assert_close(found.reshape(1), expected, f"{alignment} {key}")
        assert_close(out.loss.reshape(1), stored["loss"], f"{alignment} loss")
        mixed = mixed_log_scores(texts[1], -out.logits, alpha=c["alpha"])
        assert_close(mixed.exp(), stored["probabilities"], f"{alignment} probabilities")
        out.loss.backward()
        own = dict(model.prototype_module.layer.named_parameters()) | {
            "support": support,
            "query": query,
            "text": text,
        }
        for key, expected in part(stored, "grad.").items():
            grad = own[key.removeprefix("attn.").removeprefix("ffn.")].grad
            assert_close(grad, expected, f"{alignment} gradient of {key}")
        model.eval()
        with torch.no_grad():
            probabilities = model(**inputs).logits.exp()
        assert_close(probabilities, stored["probabilities"], f"{alignment} probabilities of the model")


# the metrics as the model takes them


@torch.no_grad()
@pytest.mark.parametrize("name", files("metrics"))
def test_metrics_of_the_model(name):
    c, t = read(name)
    model = head_model(c["D"], c["T"], prototype_mode="none", trx_width=c["O"], trx_cardinalities=c["temp_set"])
    labels, way = t["inputs.support_labels"], c["way"]

    def logits(**fields):
        for field, value in fields.items():
            setattr(model.config, field, value)
        shots = int(torch.bincount(labels).max())
        rows = model.represent_supports(t["inputs.support"], None, shots=shots)
        prototypes = model.build_prototypes(rows, labels, None, way, shots=shots)
        queries = model.represent_queries(t["inputs.query"])
        return model.score(queries, prototypes, model.prototype_labels(labels, way), mode="visual")

    stored = {key.removeprefix("otam.outputs.lambda"): key for key in t if key.startswith("otam.outputs.lambda")}
    for merge, suffix in (("distances", "logits"), ("after", "logits_prototype_first")):
        keys = {key for key in stored if key.endswith(f".{suffix}")}
        assert keys
        for key in keys:
            found = logits(alignment="otam", merge=merge, otam_lambda=float(key.removesuffix(f".{suffix}")))
            assert_close(found, t[stored[key]], f"OTAM {key}")
    bimhm = part(t, "bimhm.outputs.")
    assert_close(logits(alignment="bimhm", merge="distances"), bimhm["logits_eps_cosine"], "Bi-MHM")
    first = bimhm["logits_eps_cosine_prototype_first"]
    assert_close(logits(alignment="bimhm", merge="after"), first, "Bi-MHM of prototypes")
    model = head_model(
        c["D"], c["T"], prototype_mode="none", alignment="trx", trx_width=c["O"], trx_cardinalities=c["temp_set"]
    ).eval()
    weights = {
        key: value for key, value in part(t, "trx.weights.").items() if "norm_v" not in key and ".pe." not in key
    }
    model.temporal_cross_transformer.load_state_dict(weights)
    assert_close(logits(), t["trx.outputs.logits"], "TRX", 1e-3)
