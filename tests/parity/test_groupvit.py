"""Replays the GroupViT fixtures through the public classes; sizes, cases and names come from the files."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_clipplus.models.groupvit.configuration_groupvit import GroupViTPlusConfig
from hf_clipplus.models.groupvit.modeling_groupvit import GroupViTPlusModel
from hf_clipplus.ops.grouping import image_text_loss, multi_label_loss

FOLDER = Path(os.environ.get("CLIPPLUS_PARITY_DIR", Path(__file__).parents[1] / "fixtures" / "parity")) / "groupvit"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def rename(key):
    """An official name in ours; the names of q, k and v for a joint matrix."""
    for old, new in (
        ("img_encoder.pos_embed", "vision_model.embeddings.position_embeddings"),
        ("img_encoder.patch_embed.proj", "vision_model.embeddings.patch_embeddings.projection"),
        ("img_encoder.patch_embed.norm", "vision_model.embeddings.layernorm"),
        ("img_encoder.norm", "vision_model.layernorm"),
        ("img_encoder.layers", "vision_model.encoder.stages"),
        ("blocks", "layers"),
        (".pre_assign_attn.attn.proj", ".pre_assign_attn.attn.out_proj"),
        ("text_encoder.transformer.reslayers", "text_model.encoder.layers"),
        ("text_encoder.positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("text_encoder.token_embedding", "text_model.embeddings.token_embedding"),
        ("text_encoder.ln_final", "text_model.final_layer_norm"),
        (".ln_1", ".layer_norm1"),
        (".ln_2", ".layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("img_projector", "visual_projection"),
        ("text_projector", "text_projection"),
        ("linear_hidden.", ""),
        ("linear_out", "3"),
    ):
        key = key.replace(old, new)
    if ".layers." in key and "downsample" not in key:
        key = key.replace(".norm1", ".layer_norm1").replace(".norm2", ".layer_norm2")
        key = key.replace(".attn.proj", ".self_attn.out_proj").replace(".attn.out_proj", ".self_attn.out_proj")
        for joint in ("attn.qkv.", "attn.in_proj_"):
            if joint in key:
                return [key.replace(joint, f"self_attn.{x}_proj.") for x in "qkv"]
    return [key]


def convert(state):
    found = {}
    for key, value in state.items():
        names = rename(key)
        if "project" in names[0] and value.ndim == 3 and names[0].endswith("weight"):
            value = value.squeeze(-1)
        found |= dict(zip(names, value.chunk(len(names)) if len(names) > 1 else [value], strict=True))
    return found


def build(drop_path=0.0):
    info, state = read("weights")
    c = info["config"]
    text = {
        "hidden_size": c["text_width"], "intermediate_size": 4 * c["text_width"], "num_hidden_layers": c["text_layers"],
        "num_attention_heads": c["text_width"] // 64, "vocab_size": c["vocab"], "max_position_embeddings": c["ctx"],
        "hidden_act": "quick_gelu", "eos_token_id": c["vocab"] - 1, "bos_token_id": c["vocab"] - 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": c["embed_dim"], "num_attention_heads": c["num_heads"], "drop_path_rate": drop_path,
        "image_size": c["img_size"],
    } | {key: c[key] for key in ("depths", "num_group_tokens", "num_output_groups", "patch_size")}  # fmt: skip
    config = GroupViTPlusConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=c["output_dim"],
        projection_intermediate_dim=c["proj_inner"],
        prompts_per_image=c["K"],
    )
    model = GroupViTPlusModel(config)
    model.load_state_dict(convert(state), strict=True)
    return model


@torch.no_grad()
def test_model_eval():
    _, t = read("model_eval")
    model = build().eval()
    for name in ("image", "image_other_size"):
        out = model.vision_model(t[f"in.{name}"], output_assignments=True)
        torch.testing.assert_close(out.last_hidden_state, t[f"out.{name}.feat"], **CLOSE)
        for stage, (soft, hard) in enumerate(zip(out.soft_assignments, out.hard_assignments, strict=True)):
            torch.testing.assert_close(soft[:, None], t[f"out.{name}.stage{stage}.attn_soft"], **CLOSE)
            torch.testing.assert_close(hard[:, None], t[f"out.{name}.stage{stage}.attn_hard"], **CLOSE)
    embeddings = model.get_image_features(t["in.image"])
    torch.testing.assert_close(embeddings.pooler_output, t["out.image_x"], **CLOSE)
    torch.testing.assert_close(model.visual_projection(embeddings.last_hidden_state), t["out.image_feat"], **CLOSE)
    torch.testing.assert_close(model.encode_text(t["in.text"], normalize=False), t["out.text_x"], **CLOSE)
    classes = model.class_embeddings(t["in.class_text"])
    torch.testing.assert_close(classes, t["out.class_embedding"], **CLOSE)
    torch.testing.assert_close(model.encode_image(t["in.image"]) @ classes.T, t["out.zero_shot_logits"], **CLOSE)


def test_train_step():
    _, t = read("train_step")
    model = build().train()
    image = t["in.image"].clone().requires_grad_()
    noise = [t[f"in.gumbel.stage{s}"].squeeze(1) for s in range(len(model.config.vision_config.depths) - 1)]
    out = model(image, t["in.text"], gumbel_noise=noise, return_loss=True)
    torch.testing.assert_close(out.image_text_loss, t["out.loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(out.multi_label_loss, t["out.multi_label_loss"], rtol=1e-5, atol=0)
    out.loss.backward()
    torch.testing.assert_close(image.grad, t["out.grad.image"], rtol=1e-3, atol=5e-5)
    grads = convert({k[9:]: v for k, v in t.items() if k.startswith("out.grad.") and k != "out.grad.image"})
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert grads.keys() == ours.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=5e-5, msg=name)
    buffers = dict(model.named_buffers())
    for name, value in convert({k[13:]: v for k, v in t.items() if k.startswith("out.bn_after.")}).items():
        torch.testing.assert_close(buffers[name], value, **CLOSE)


@pytest.mark.parametrize("case", list(read("losses")[0]["cases"]))
def test_losses_in_one_process(case):
    _, t = read("losses")
    leaves = {k.split(".")[2]: v.clone().requires_grad_() for k, v in t.items() if k.startswith(f"{case}.in.")}
    unit = {k: F.normalize(v, dim=-1) for k, v in leaves.items() if v.ndim}
    first = image_text_loss(unit["image"], unit["text"], leaves["logit_scale"])
    second = multi_label_loss(unit["image"], unit["multi_label_text"], leaves["multi_label_logit_scale"])
    (first + second).backward()
    torch.testing.assert_close(first, t[f"{case}.out.loss"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second, t[f"{case}.out.multi_label_loss"], rtol=1e-4, atol=1e-6)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, t[f"{case}.out.grad_{name}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_segmentation(mode):
    info, t = read("segmentation")
    model = build()
    model.logit_scale.data.copy_(t["in.logit_scale"])
    s = info["settings"]
    for threshold in (None, *s["bg_thresh"]):
        key = f"{mode}.bg0" if threshold is None else f"{mode}.bg1.thr{threshold}"
        (found,) = model.segment(
            t["in.image"], t["in.class_embedding"], background_threshold=threshold, mode=mode, output_scores=True,
            crop_size=s["crop_size"], stride=s["stride"], target_sizes=[s["original_size"]],
        )  # fmt: skip
        same = found.labels == t[f"{key}.labels"]
        assert same.float().mean() >= 0.995, (key, same.float().mean())
        close = (found.scores - t[f"{key}.probs_original_size"]).abs().amax(0) <= 1e-4
        assert close.float().mean() >= 0.995, (key, close.float().mean())
