"""Replays the DIVA fixtures through the public classes; sizes, cases and names come from the files."""

import json
import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from replay import PARITY, part
from safetensors.torch import load_file
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from hf_clipplus.data.mmvp_source import PATTERNS
from hf_clipplus.evaluation.mmvp_scores import first_image_wins, score_pairs
from hf_clipplus.models.diva.configuration_diva import DIVAConfig
from hf_clipplus.models.diva.convert_diva import diva_from_released
from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback
from hf_clipplus.models.diva.generator_diva import DiffusionGenerator
from hf_clipplus.models.diva.modeling_diva import DIVAModel
from hf_clipplus.ops.diffusion_feedback import (
    OFFICIAL_EMBEDDINGS,
    OPENAI_MEAN,
    OPENAI_STD,
    combine_draws,
    legacy_tower_pixels,
    legacy_vae_pixels,
    normalize_pixels,
    official_embedding,
)

FOLDER = PARITY / "diva"
STEMS = sorted(path.stem for path in FOLDER.glob("*.json"))
STEPS = [stem for stem in STEMS if stem.endswith("_step")]
# kind of a step file -> fields of the configuration; what a file says of itself (window, ratio) comes from the file
SCHEMES = {
    r"openai": {"recap": "random_k", "prompt_mode": "token_add", "official_embedding": "openai"},
    r"alltokens": {"recap": "all", "prompt_mode": "mean_add", "official_embedding": "metaclip"},
    r"half_random": {"recap": "random_ratio", "prompt_mode": "mean_add", "official_embedding": "dfn378"},
    r"siglip_pool\d*": {"recap": "avgpool", "prompt_mode": "mean_add", "official_embedding": "siglip"},
}
OTHERS = {"sd_weights", "openai_clip_weights", "openai_official_ckpt", "eval", "mmvp_scoring"}


@cache
def info_of(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def read(name):
    return load_file(FOLDER / f"{name}.safetensors")


def assert_close(actual, expected, name, tolerance):
    """Greatest error over greatest value."""
    assert actual.shape == expected.shape, name
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"{name}: {error}"


def scheme_of(name):
    (found,) = [fields for pattern, fields in SCHEMES.items() if re.fullmatch(f"{pattern}_step", name)]
    return found


def test_every_file_is_known():
    found = {path.stem for path in FOLDER.iterdir() if path.suffix in (".json", ".safetensors")}
    assert found == set(STEMS)
    assert found >= OTHERS
    assert len(STEPS) >= len(SCHEMES)
    for name in found - OTHERS:
        scheme_of(name)


@cache
def generator():
    config, weights = info_of("sd_weights")["config"], read("sd_weights")
    vae, unet = dict(config["vae"]), config["unet"]
    blocks = vae.pop("n_down_blocks")
    for side in ("down", "up"):
        vae[f"{side}_block_types"] = [vae[f"{side}_block_types"].removesuffix(" each")] * blocks
    modules = {
        "unet": UNet2DConditionModel(**unet),
        "vae": AutoencoderKL(**vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config["text_encoder"])),
    }
    for name, module in modules.items():
        state = part(weights, f"{name}.")
        if name == "text_encoder":
            state = {key.removeprefix("text_model."): value for key, value in state.items()}
        module.load_state_dict(state)
    scheduler = DDPMScheduler(**config["scheduler"])
    return DiffusionGenerator(
        **modules, alphas_cumprod=scheduler.alphas_cumprod, prediction_type=scheduler.config.prediction_type
    )


def build(name, **fields):
    """The model of a step file, with its projector and the frozen diffusion model; weights by `from_pretrained`."""
    info, tensors = info_of(name), read(name)
    weights = tensors if any(key.startswith("clip.") for key in tensors) else read("openai_clip_weights")
    config, state = info["config"], part(weights, "clip.")
    vision = config.get("clip_vision") or config["clip"]["vision"]
    kind = "siglip" if vision.get("model", "").startswith("Siglip") else "clip"
    if kind == "siglip":
        state = {f"vision_model.{key}": value for key, value in state.items()}
    scheme = dict(scheme_of(name))
    indices = tensors.get("step0.patch_indices")
    if scheme["recap"] == "random_k":
        scheme["recap_k"] = indices.shape[1]
    scheme |= {"recap_window": config["avg_pool_window"]} if "avg_pool_window" in config else {}
    text = config.get("clip", {}).get(
        "text", {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 8}
    )
    model = DIVAForDiffusionFeedback(
        DIVAConfig(
            text_config=text | {"model_type": f"{kind}_text_model"},
            vision_config=vision | {"model_type": f"{kind}_vision_model"},
            projection_dim=config.get("clip", vision).get("projection_dim", vision["hidden_size"]),
            condition_dim=config["unet"]["cross_attention_dim"],
            **scheme | fields,
        )
    )
    state |= {key: value for key, value in weights.items() if key.startswith("visual_proj.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    absent = [key for key in missing if not key.startswith(("text_", "logit_"))]
    assert not absent
    tokens = read(name)["text_embeds"]
    encoded = generator().text_encoder(tensors["prompt_input_ids"]).last_hidden_state
    assert_close(encoded, tokens, "text_embeds", 1e-5)
    model.attach_generator(
        DiffusionGenerator(
            unet=generator().unet,
            vae=generator().vae,
            alphas_cumprod=generator().alphas_cumprod,
            prediction_type=generator().prediction_type,
            prompt_embeds=encoded.detach(),
        )
    )
    return model


def draws_of(tensors):
    return sorted({int(match[1]) for key in tensors if (match := re.match(r"step(\d+)\.", key))})


def replay(model, tensors, draws, **options):
    """One forward with the fixture's pixels and what its draws drew."""
    stacked = {
        name: torch.stack([tensors[f"step{k}.{name}"] for k in draws])
        for name in ("noise", "timesteps", "patch_indices")
        if f"step{draws[0]}.{name}" in tensors
    }
    size = model.config.vision_config.image_size
    pixels = legacy_tower_pixels(tensors["images"], size)
    assert_close(pixels, tensors["clip_pixel_values"], "clip_pixel_values", 1e-5)
    return model(pixels, vae_pixel_values=legacy_vae_pixels(tensors["images"]), **stacked, **options)


@pytest.mark.parametrize("name", STEPS)
def test_step(name):
    tensors, model = read(name), build(name)
    draws = draws_of(tensors)
    images = len(tensors["images"])
    output = replay(model, tensors, draws)
    latents = model.generator.encode_images(legacy_vae_pixels(tensors["images"]))
    assert_close(latents, tensors["latents"], "latents", 1e-5)
    rows = {"visual_features": output.visual_tokens, "context": output.condition}
    rows |= {"noised_latents": output.noised_latents, "pred_noise": output.prediction}
    for place, k in enumerate(draws):
        own = slice(place * images, (place + 1) * images)
        for key, value in rows.items():
            value = value if len(value) == images else value[own]
            assert_close(value, tensors[f"step{k}.{key}"], f"{name} step{k}.{key}", 1e-5)
        assert_close(output.draw_losses[place : place + 1], tensors[f"step{k}.loss"], "loss", 1e-5)
    expected = torch.stack([tensors[f"step{k}.loss"] for k in draws]).mean()
    assert_close(output.loss, expected, "mean loss", 1e-5)


@pytest.mark.parametrize("name", STEPS)
def test_gradients(name):
    """Of each draw alone, of the mean, and of the published sum with its accumulation."""
    tensors, model = read(name), build(name)
    draws = draws_of(tensors)
    expected = [
        {key: value for key, value in part(tensors, f"step{k}.grad.").items() if "k_proj.bias" not in key}
        for k in draws
    ]
    assert expected[0]
    for place, k in enumerate(draws):
        model.zero_grad()
        replay(model, tensors, [k]).loss.backward()
        check_gradients(model, expected[place], f"{name} step{k}")
    model.zero_grad()
    replay(model, tensors, draws).loss.backward()
    mean = {key: sum(grads[key] for grads in expected) / len(draws) for key in expected[0]}
    check_gradients(model, mean, "mean of the draws")
    for accumulation in (1, 5):
        model.zero_grad()
        model.config.legacy_grad_weighting = True
        loss = replay(model, tensors, draws, accumulation_steps=accumulation).loss
        (loss / accumulation).backward()  # as a trainer does
        legacy = {
            key: sum(grads[key] for grads in expected[:-1]) + expected[-1][key] / accumulation for key in expected[0]
        }
        check_gradients(model, legacy, f"published order, {accumulation} steps")
    for module in model.generator.modules:
        assert all(parameter.grad is None for parameter in module.parameters())


def check_gradients(model, expected, what):
    parameters = dict(model.named_parameters())
    for key, value in expected.items():
        ours = key.removeprefix("clip.")
        ours = ours if ours in parameters else f"vision_model.{ours}"
        assert_close(parameters[ours].grad, value, f"{what} {key}", 1e-4)


def test_combined_losses():
    losses = torch.tensor([1.0, 10.0, 100.0])
    assert combine_draws(losses) == 37
    assert combine_draws(losses, accumulation=5, legacy=True) / 5 == 11 + 20


@pytest.mark.parametrize("name", [name for name in STEPS if "raw_rgb01" in info_of(name)["tensors"]])
def test_pixels(name):
    tensors = read(name)
    rgb = tensors["raw_rgb01"]
    images = normalize_pixels(rgb, OPENAI_MEAN, OPENAI_STD)
    assert_close(images, tensors["images"], "images", 1e-5)
    assert_close(legacy_vae_pixels(images), tensors["vae_pixel_values"], "legacy", 1e-5)
    assert_close(2 * rgb - 1, tensors["vae_pixel_values_correct"], "correct", 1e-5)


@torch.no_grad()
def test_official_evaluation():
    t, name = read("eval"), "openai_step"
    model = DIVAModel(build(name).config)
    missing, unexpected = model.load_state_dict(part(read("openai_clip_weights"), "clip."), strict=False)
    assert (missing, unexpected) == (["logit_bias"], [])
    model.config.embedding = "official"
    pixels, ids = t["clip_pixel_values"], t["input_ids"]
    found = model.get_image_features(pixels, patch_indices=t["patch_indices"])
    assert_close(found.pooler_output, t["image_embed_unnormalised"], "image_embed", 1e-5)
    cls = model.get_image_features(pixels, embedding="cls").pooler_output
    assert_close(cls, t["global_feature"], "global_feature", 1e-5)
    assert_close(found.pooler_output - cls, t["local_mean_feature"], "local_mean_feature", 1e-5)
    both = model.get_image_features(pixels, embedding="cls+local_mean").pooler_output
    assert_close(both - cls, t["local_mean_all_patches"], "local_mean_all_patches", 1e-5)
    text = model.get_text_features(ids).pooler_output
    assert_close(text, t["text_embed_unnormalised"], "text_embed", 1e-5)
    images, texts = F.normalize(found.pooler_output, dim=-1), F.normalize(text, dim=-1)
    logits = model.similarity_logits(images, texts) + model.logit_bias
    assert_close(logits, t["logits_per_image"], "logits_per_image", 1e-5)
    assert_close(logits.T, t["logits_per_text"], "logits_per_text", 1e-5)


def test_official_embedding_rules():
    t = part(read("eval"), "rule.")
    rules = {key.split(".")[0] for key in t if key.endswith(".image_embed")}
    assert rules == set(OFFICIAL_EMBEDDINGS)
    tokens, scale, bias = t["tokens"], t["logit_scale_exp"], t["logit_bias"]
    for rule in rules:
        embeds = official_embedding(tokens[:, 0], tokens[:, 1:], rule)
        embeds = F.normalize(embeds, dim=-1) if OFFICIAL_EMBEDDINGS[rule][2] else embeds
        assert_close(embeds, t[f"{rule}.image_embed"], rule, 1e-5)
        if f"{rule}.logits_per_image" in t:  # MetaCLIP's script has a constant for the scale, SigLIP's adds a bias
            logits = embeds @ F.normalize(t["text_embeds"], dim=-1).T * (100 if rule == "metaclip" else scale)
            logits = logits + bias if rule == "siglip" else logits
            assert_close(logits, t[f"{rule}.logits_per_image"], rule, 1e-5)


def test_mmvp_scoring():
    info, t = info_of("mmvp_scoring"), read("mmvp_scoring")
    size = info["config"]["pairs_per_pattern"]
    patterns = [info["patterns"][pair // size] for pair in range(info["config"]["pairs"])]
    first_is_true = t["question_ids"] % 2 == 1
    assert torch.equal(first_is_true.to(torch.uint8), t["gt_is_img1"])
    assert torch.equal(first_image_wins(t["logits_per_text"]).to(torch.uint8), t["pred_is_img1"])
    scores = score_pairs(t["logits_per_text"], first_is_true, patterns)
    assert torch.equal(scores.correct.to(torch.uint8), t["pair_correct"])
    shares = torch.tensor([scores.shares()[pattern] for pattern in info["patterns"]], dtype=torch.float64)
    assert (100 * shares).tolist() == pytest.approx(t["per_pattern_accuracy"].tolist(), abs=1e-12)
    assert 100 * scores.average() == pytest.approx(t["average_score"].item(), abs=1e-12)
    assert info["patterns"] == list(PATTERNS)


def test_official_checkpoint(tmp_path):
    """The converter turns the official names into exactly the tensors of the other file."""
    config, expected = info_of("openai_official_ckpt")["config"]["clip"], read("openai_clip_weights")
    heads = {f"{side}_heads": config[side]["num_attention_heads"] for side in ("vision", "text")}
    model, report = diva_from_released(FOLDER / "openai_official_ckpt.safetensors", **heads)
    state = model.state_dict()
    for key, value in part(expected, "clip.").items():
        assert torch.equal(state[key], value), key
    for key, value in expected.items():
        if key.startswith("visual_proj."):
            assert torch.equal(state[key], value), key
    assert set(report.dropped) == {key for key in read("openai_official_ckpt") if "final_fc" in key}
    vision, text = model.config.vision_config.to_dict(), model.config.text_config.to_dict()
    for found, given in ((vision, config["vision"]), (text, config["text"])):
        for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "num_attention_heads"):
            assert found[field] == given[field], field
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).logit_scale, model.logit_scale)
