"""DIVA's model, generator and processor: loading, freezing, what is saved, draws, embeddings, bad input."""

import copy
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, CLIPModel, SiglipModel

from hf_clipplus.models.diva.configuration_diva import DIVAConfig
from hf_clipplus.models.diva.convert_diva import diva_from_released, diva_to_transformers
from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback
from hf_clipplus.models.diva.generator_diva import DiffusionGenerator
from hf_clipplus.models.diva.modeling_diva import DIVAModel
from hf_clipplus.models.diva.presets_diva import PRESETS, preset
from hf_clipplus.models.diva.processing_diva import DIVAProcessor
from hf_clipplus.ops import diffusion_feedback as ops

spec = importlib.util.spec_from_file_location("tiny_diva", Path(__file__).with_name("tiny_diva.py"))
tiny_diva = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_diva)
SIDE, WIDTH = tiny_diva.SIDE, tiny_diva.WIDTH


@pytest.fixture(scope="module")
def generator(tokenizer):
    return tiny_diva.tiny_generator(tokenizer)


def make_model(tower_configs, generator, **config):
    torch.manual_seed(0)
    options = {"condition_dim": WIDTH, "recap": "random_ratio", "prompt_mode": "mean_add"} | config
    model = DIVAForDiffusionFeedback(DIVAConfig(**tower_configs, **options))
    model.attach_generator(generator)
    return model


def batch(model, images=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    size = model.config.vision_config.image_size
    return {
        "pixel_values": torch.randn(images, 3, size, size, generator=draw),
        "vae_pixel_values": torch.rand(images, 3, SIDE, SIDE, generator=draw) * 2 - 1,
        "draw_seeds": torch.arange(images) + 7,
    }


def test_only_the_tower_and_the_projector_learn(tower_configs, generator):
    model = make_model(tower_configs, generator)
    before = copy.deepcopy([module.state_dict() for module in generator.modules])
    own = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch(model)).loss.backward()
        optimizer.step()
    for module, state in zip(generator.modules, before, strict=True):
        assert not module.training
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, own[key])}
    assert {key.split(".")[0] for key in changed} == {"vision_model", "visual_projection", "visual_proj"}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "k_proj.bias" not in key:  # softmax does not see a shift of the keys
            assert parameter.grad.abs().max() > 0, key


def test_what_is_saved_needs_no_diffusers(tower_configs, generator, tokenizer, image_processor, tmp_path, monkeypatch):
    model = make_model(tower_configs, generator)
    model.save_pretrained(tmp_path)
    DIVAProcessor(image_processor, tokenizer, generator_image_size=SIDE).save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    stock = {"text_model", "vision_model", "visual_projection", "text_projection", "logit_scale", "logit_bias"}
    assert {key.split(".")[0] for key in keys} == stock | {"visual_proj"}
    again = DIVAForDiffusionFeedback.from_pretrained(tmp_path)
    assert torch.equal(again.visual_proj.weight, model.visual_proj.weight)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    plain, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(plain, DIVAModel)
    assert not isinstance(plain, DIVAForDiffusionFeedback)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels = torch.randn(2, 3, 24, 24)
    assert torch.equal(plain.encode_image(pixels), model.eval().encode_image(pixels))
    assert AutoProcessor.from_pretrained(tmp_path).generator_image_size == SIDE
    with pytest.raises(ImportError, match=r"hf-clipplus\[diffusion\]"):
        DiffusionGenerator.from_pretrained(tmp_path)


def test_generator_from_a_diffusers_folder(tower_configs, generator, tokenizer, tmp_path):
    for name, part in tiny_diva.tiny_parts().items():
        part.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = DiffusionGenerator.from_pretrained(tmp_path)
    model = make_model(tower_configs, generator)
    expected = model(**batch(model)).loss
    model.attach_generator(loaded)
    assert torch.equal(model(**batch(model)).loss, expected)
    light = DiffusionGenerator.from_pretrained(
        tmp_path, with_vae=False, prompt_embeds=loaded.encode_prompt(model.config.prompt)
    )
    model.attach_generator(light)
    inputs = batch(model)
    latents = loaded.encode_images(inputs.pop("vae_pixel_values"))
    assert torch.equal(model(**inputs, latents=latents).loss, expected)
    with pytest.raises(ValueError, match="loaded without its VAE"):
        model(**batch(model))


@pytest.mark.parametrize("recap", ["random_ratio", "all", "avgpool", "cls"])
def test_shared_trunk_is_the_published_order(tower_configs, generator, recap):
    """Several draws on one trunk give the loss and gradients of a forward pass for each draw."""
    model = make_model(tower_configs, generator, recap=recap, noise_draws=3, recap_window=2)
    inputs = batch(model)
    seeds = inputs.pop("draw_seeds")
    latents = generator.encode_images(inputs["vae_pixel_values"])
    noise, timesteps, patches = model._draw(latents, seeds)
    trunks = []
    hook = model.vision_model.register_forward_hook(lambda *_: trunks.append(1))
    shared = model(**inputs, noise=noise, timesteps=timesteps, patch_indices=patches)
    assert len(trunks) == 1
    shared.loss.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = []
    for k in range(3):
        one = model(**inputs, noise=noise[k : k + 1], timesteps=timesteps[k : k + 1], patch_indices=patches[k : k + 1])
        (one.loss / 3).backward()
        losses.append(one.loss.detach())
    hook.remove()
    torch.testing.assert_close(shared.draw_losses.detach(), torch.stack(losses), rtol=1e-5, atol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(key).grad, rtol=1e-4, atol=1e-6)


def test_draws_follow_from_the_seeds(tower_configs, generator):
    model = make_model(tower_configs, generator)
    inputs = batch(model)
    once, again = model(**inputs), model(**inputs)
    assert torch.equal(once.noised_latents, again.noised_latents)
    assert torch.equal(once.condition, again.condition)
    order = torch.tensor([2, 0, 1])
    turned = model(**{key: value[order] for key, value in inputs.items()})
    torch.testing.assert_close(turned.loss, once.loss, rtol=1e-5, atol=0)
    model.zero_grad()
    other = model(**inputs | {"draw_seeds": inputs["draw_seeds"] + 100})
    assert not torch.equal(other.noised_latents, once.noised_latents)
    assert not torch.equal(once.noised_latents[:3], once.noised_latents[3:])  # the draws differ


def test_every_prompt_has_its_own_states(generator):
    first, second = generator.encode_prompt("a cat"), generator.encode_prompt("a boat")
    assert first is generator.encode_prompt("a cat")
    assert not torch.equal(first, second)
    ids = generator.tokenizer(["a cat"], padding="max_length", max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(first, generator.text_encoder(ids).last_hidden_state)


def test_v_prediction_and_l1(tower_configs, tokenizer):
    generator = tiny_diva.tiny_generator(tokenizer, prediction_type="v_prediction")
    model = make_model(tower_configs, generator, loss_type="l1", noise_draws=1)
    inputs = batch(model)
    noise, timesteps, _ = model._draw(generator.encode_images(inputs["vae_pixel_values"]), inputs["draw_seeds"])
    found = model(**inputs)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    latents = generator.encode_images(inputs["vae_pixel_values"])
    velocity = scheduler.get_velocity(latents, noise[0], timesteps[0])
    torch.testing.assert_close(found.noised_latents, scheduler.add_noise(latents, noise[0], timesteps[0]))
    torch.testing.assert_close(found.loss, (found.prediction - velocity).abs().mean())


def test_checkpointed_unet_in_bfloat16(tower_configs, tokenizer):
    generator = tiny_diva.tiny_generator(tokenizer)
    model = make_model(tower_configs, generator)
    model(**batch(model)).loss.backward()
    plain = model.visual_proj.weight.grad.clone()
    generator.unet.enable_gradient_checkpointing()
    model.zero_grad()
    model(**batch(model)).loss.backward()
    torch.testing.assert_close(model.visual_proj.weight.grad, plain)
    generator.unet.to(torch.bfloat16)
    model.zero_grad()
    loss = model(**batch(model)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    coarse = model.visual_proj.weight.grad
    assert F.cosine_similarity(coarse.flatten(), plain.flatten(), dim=0) > 0.99


def test_loads_clip_and_exports_it(tower_configs, tmp_path):
    torch.manual_seed(1)
    model = DIVAModel(DIVAConfig(**tower_configs)).eval()
    ids, pixels = torch.tensor([[5, 6, 1], [7, 1, 1]]), torch.randn(2, 3, 24, 24)
    stock, report = diva_to_transformers(model)
    assert isinstance(stock, CLIPModel)
    assert set(report.dropped) == {"logit_bias"}
    stock.save_pretrained(tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    again = DIVAModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixels, ids).logits_per_image
        torch.testing.assert_close(loaded(pixel_values=pixels, input_ids=ids).logits_per_image, expected)
        torch.testing.assert_close(again(pixels, ids).logits_per_image, expected)


@pytest.fixture(scope="module")
def siglip():
    torch.manual_seed(2)
    tower = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"model_type": "siglip_vision_model", "image_size": 24, "patch_size": 8} | tower
    text = {"model_type": "siglip_text_model", "vocab_size": 50, "max_position_embeddings": 6} | tower
    model = DIVAModel(DIVAConfig(text_config=text, vision_config=vision, recap="avgpool", recap_window=4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def timm_state(model):
    """open_clip's SigLIP with timm's tower, written out by hand from transformers' model."""
    s, out = model.state_dict(), {}
    vision = {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}
    vision |= {"attn_pool.proj": "head.attention.out_proj", "attn_pool.norm": "head.layernorm"}
    vision |= {f"attn_pool.mlp.fc{i}": f"head.mlp.fc{i}" for i in (1, 2)}
    for part in ("weight", "bias"):
        for there, here in vision.items():
            out[f"visual.trunk.{there}.{part}"] = s[f"vision_model.{here}.{part}"]
        pooled = s[f"vision_model.head.attention.in_proj_{part}"]
        out[f"visual.trunk.attn_pool.q.{part}"], out[f"visual.trunk.attn_pool.kv.{part}"] = pooled.split([32, 64])
        out[f"text.ln_final.{part}"] = s[f"text_model.final_layer_norm.{part}"]
        out[f"text.text_projection.{part}"] = s[f"text_model.head.{part}"]
        for i in range(2):
            for tower, blocks, joint, names in (
                (
                    "vision_model",
                    "visual.trunk.blocks",
                    "attn.qkv.",
                    ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"),
                ),
                (
                    "text_model",
                    "text.transformer.resblocks",
                    "attn.in_proj_",
                    ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"),
                ),
            ):
                here = f"{tower}.encoder.layers.{i}"
                own = ("layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
                for there, name in zip(names, own, strict=True):
                    out[f"{blocks}.{i}.{there}.{part}"] = s[f"{here}.{name}.{part}"]
                out[f"{blocks}.{i}.{joint}{part}"] = torch.cat([s[f"{here}.self_attn.{x}_proj.{part}"] for x in "qkv"])
    out["visual.trunk.pos_embed"] = s["vision_model.embeddings.position_embedding.weight"][None]
    out["visual.trunk.attn_pool.latent"] = s["vision_model.head.probe"]
    out["text.token_embedding.weight"] = s["text_model.embeddings.token_embedding.weight"]
    out["text.positional_embedding"] = s["text_model.embeddings.position_embedding.weight"]
    return {key: value.clone() for key, value in out.items()} | {
        key: s[key][0].clone() for key in ("logit_scale", "logit_bias")
    }


@torch.no_grad()
def timm_pooled(state, pixels, heads):
    """timm's tower and attention pool in plain tensor arithmetic."""
    part = {key.removeprefix("visual.trunk."): value for key, value in state.items()}

    def linear(name, x):
        return F.linear(x, part[f"{name}.weight"], part[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], part[f"{name}.weight"], part[f"{name}.bias"], 1e-6)

    def attend(q, k, v):
        split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
        return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)

    def mlp(name, x):
        return linear(f"{name}.fc2", F.gelu(linear(f"{name}.fc1", x)))

    weight, bias = part["patch_embed.proj.weight"], part["patch_embed.proj.bias"]
    x = F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2) + part["pos_embed"]
    for i in range(2):
        x = x + linear(
            f"blocks.{i}.attn.proj", attend(*linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).chunk(3, -1))
        )
        x = x + mlp(f"blocks.{i}.mlp", norm(f"blocks.{i}.norm2", x))
    x = norm("norm", x)
    query = linear("attn_pool.q", part["attn_pool.latent"].expand(len(x), -1, -1))
    pooled = linear("attn_pool.proj", attend(query, *linear("attn_pool.kv", x).chunk(2, -1)))
    return (pooled + mlp("attn_pool.mlp", norm("attn_pool.norm", pooled)))[:, 0]


def test_released_siglip(siglip, tmp_path):
    state = timm_state(siglip)
    torch.save(
        {f"class_model.model.{key}": value for key, value in state.items()} | {"unet.x": torch.ones(1)},
        tmp_path / "s.pth",
    )
    model, report = diva_from_released(tmp_path / "s.pth", hidden_act="gelu", vision_heads=2, text_heads=2)
    assert report.dropped == {"unet.x": "the frozen UNet"}
    for key, value in siglip.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    pixels = torch.randn(2, 3, 24, 24)
    found = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, timm_pooled(state, pixels, heads=2), rtol=1e-4, atol=1e-5)
    stock, _ = diva_to_transformers(model)
    assert isinstance(stock, SiglipModel)
    ids = torch.randint(0, 50, (3, 6))
    theirs = stock(pixel_values=pixels, input_ids=ids).logits_per_image
    torch.testing.assert_close(model(pixels, ids).logits_per_image, theirs)
    del state["visual.trunk.attn_pool.q.weight"]
    torch.save(state | {"surprise": torch.ones(1)}, tmp_path / "s.pth")
    with pytest.raises(ValueError, match=r"surprise.*attn_pool\.q\.weight"):
        diva_from_released(tmp_path / "s.pth", vision_heads=2, text_heads=2)


def test_embeddings(tower_configs, siglip):
    model = DIVAModel(DIVAConfig(**tower_configs, recap="random_k", recap_k=4, embedding="official")).eval()
    pixels = torch.randn(3, 3, 24, 24)
    features = lambda **options: model.get_image_features(pixels, **options).pooler_output  # noqa: E731
    seeded = features(generator=torch.Generator().manual_seed(3))
    assert torch.equal(seeded, features(generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(seeded, features(generator=torch.Generator().manual_seed(4)))
    assert torch.equal(features(embedding="cls"), features(embedding="cls"))
    every = torch.arange(9).expand(3, 9)
    torch.testing.assert_close(features(patch_indices=every), features(embedding="cls+local_mean"))
    model.config.official_embedding, model.config.recap = "dfn378", "all"
    assert (model.embed(pixels).image_embeds.norm(dim=-1) - 1).abs().min() > 1e-4
    model.config.official_embedding = "metaclip"
    torch.testing.assert_close(model.embed(pixels).image_embeds.norm(dim=-1), torch.ones(3))
    with pytest.raises(ValueError, match="embedding='mean' is unknown"):
        features(embedding="mean")
    model.config.embedding = "cls+local_mean"  # needs every patch, also where the last layer may leave them out
    expected = F.normalize(features(), dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected)
    torch.testing.assert_close(model.train().embed(pixels).image_embeds, expected)
    assert siglip.recap_tokens(siglip.vision_model(pixels)).shape == (3, 1 + 9 // 4, 32)


def test_processor_gives_both_the_same_picture(tokenizer, image_processor):
    processor = DIVAProcessor(image_processor, tokenizer, generator_image_size=SIDE)
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, (30, 30, 3), dtype=np.uint8)) for _ in range(2)]
    found = processor.feedback_inputs(pictures)
    resized = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures]
    assert torch.equal(found["pixel_values"], processor(images=resized, return_tensors="pt")["pixel_values"])
    rgb = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).permute(0, 3, 1, 2)
    torch.testing.assert_close(found["vae_pixel_values"], rgb / 127.5 - 1)
    assert "vae_pixel_values" not in processor.feedback_inputs(pictures, vae_pixels=False)
    legacy = DIVAProcessor(
        image_processor, tokenizer, generator_image_size=SIDE, legacy_vae_renorm=True, legacy_tower_pixels=True
    ).feedback_inputs(pictures)
    normalised = ops.normalize_pixels(rgb / 255, ops.OPENAI_MEAN, ops.OPENAI_STD)
    torch.testing.assert_close(legacy["vae_pixel_values"], ops.legacy_vae_pixels(normalised))
    torch.testing.assert_close(legacy["pixel_values"], ops.legacy_tower_pixels(normalised, 24))
    with pytest.raises(ValueError, match=r"pictures \[1\] are not square"):
        processor.feedback_inputs([pictures[0], pictures[1].resize((30, 20))])
    padded = DIVAProcessor(image_processor, tokenizer, pad_texts=True)(text=["a cat"], return_tensors="pt")
    assert padded["input_ids"].shape == (1, tokenizer.model_max_length)


def test_bad_input_is_named(tower_configs, generator, tokenizer):
    model = make_model(tower_configs, generator)
    with pytest.raises(ValueError, match="condition is 24 wide, the projector makes 32"):
        make_model(tower_configs, generator, condition_dim=32)
    inputs = batch(model)
    with pytest.raises(ValueError, match=r"image size 18 does not fit.*multiple of 4"):
        model(**inputs | {"vae_pixel_values": torch.zeros(3, 3, 18, 18)})
    broken = inputs["vae_pixel_values"].clone()
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"latents of pictures \[1\] .*NaN"):
        model(**inputs | {"vae_pixel_values": broken})
    with pytest.raises(ValueError, match="either vae_pixel_values or latents"):
        model(**inputs, latents=torch.zeros(3, 4, 8, 8))
    with pytest.raises(ValueError, match="3 images for the tower but 2"):
        model(**inputs | {"vae_pixel_values": inputs["vae_pixel_values"][:2]})
    adding = make_model(tower_configs, generator, prompt_mode="token_add")
    with pytest.raises(ValueError, match="'token_add' adds 8 prompt tokens"):
        adding(**batch(adding))
    with pytest.raises(ValueError, match="call attach_generator first"):
        DIVAForDiffusionFeedback(model.config)(**inputs)
    with pytest.raises(ValueError, match="prediction type 'sample'"):
        DiffusionGenerator(generator.unet, generator.alphas_cumprod, prediction_type="sample")
    with pytest.raises(ValueError, match="do not fit, their widths are"):
        DiffusionGenerator(generator.unet, generator.alphas_cumprod, prompt_embeds=torch.zeros(1, 8, 5))
    for field, value in (("recap", "some"), ("embedding", "mean"), ("recap_k", 0), ("recap_ratio", 0.0)):
        with pytest.raises(ValueError, match=rf"DIVAConfig\.{field}"):
            DIVAConfig(**tower_configs, **{field: value})
    with pytest.raises(ValueError, match="fewer than the window"):
        ops.average_pools(torch.zeros(1, 3, 2), 4)
    with pytest.raises(ValueError, match="expected 0 to 8, got 0 to 9"):
        ops.take_patches(torch.zeros(1, 9, 2), torch.tensor([[0, 9]]))


def test_presets_are_configurations(tower_configs):
    for name, one in PRESETS.items():
        config = DIVAConfig(**tower_configs, **one.config)
        assert config.prompt_mode != "token_add" or config.recap == "cls" or config.random_patches == 76, name
    with pytest.raises(KeyError, match="unknown preset 'openai'; known: openai-l14-224"):
        preset("openai")
