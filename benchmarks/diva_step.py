"""A training step of `DIVAForDiffusionFeedback` against the published order of computation, step by step in turns.

The published order runs the tower anew for every draw of time and noise, encodes the prompt and the pictures for every
batch, and carries the text tower along (one text is embedded and not used). Ours runs the tower's trunk once, keeps
the prompt, and leaves the text tower out; with cached latents also the VAE. Both get the same draws, so their losses
must be equal. A step is forward and backward of all draws; on one thread seconds are of the processor. Two more
columns say what no order can beat: the UNet alone, forward and backward of all draws from a condition that is there
already; and that with one pass of the trained tower.

    python benchmarks/diva_step.py                                   # small parts on a CPU
    python benchmarks/diva_step.py --size sd21 --device cuda --dtype bfloat16 --batch 16 [--image 224]
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hf_clipplus.models.diva.configuration_diva import DIVAConfig
from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback
from hf_clipplus.models.diva.generator_diva import DiffusionGenerator

TOLERANCE = 1e-5
# tower: layers, width, heads, side, patch, joint width; UNet: channels, layers, heads; VAE: channels; prompt encoder
SIZES = {
    "tiny": {
        "vision": (4, 160, 5, 48, 8, 160),
        "text": (1, 160, 5, 32),
        "unet": ((32, 64), 1, 4),
        "vae": (16, 16, 32),
        "prompt": (1, 160, 5, 32),
        "image": 48,
    },
    "sd21": {
        "vision": (24, 1024, 16, 224, 14, 768),
        "text": (12, 768, 12, 77),
        "unet": ((320, 640, 1280, 1280), 2, (5, 10, 20, 20)),
        "vae": (128, 256, 512, 512),
        "prompt": (23, 1024, 16, 77),
        "image": 512,
    },
}


def build(size: str, draws: int, dtype: torch.dtype, image: int) -> DIVAForDiffusionFeedback:
    """The trained tower in float32 and the frozen parts in `dtype`, all with random weights."""
    facts = SIZES[size]
    layers, width, heads, side, patch, joint = facts["vision"]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
    text, prompt = (dict(zip(names, facts[part], strict=True)) for part in ("text", "prompt"))
    ids = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    vision = dict(zip(names, (layers, width, heads), strict=False)) | {"image_size": side, "patch_size": patch}
    channels, blocks, attention_heads = facts["unet"]
    vae = AutoencoderKL(
        block_out_channels=facts["vae"],
        down_block_types=("DownEncoderBlock2D",) * len(facts["vae"]),
        up_block_types=("UpDecoderBlock2D",) * len(facts["vae"]),
        layers_per_block=blocks,
        norm_num_groups=min(32, facts["vae"][0]),
    )
    crossing, plain = len(channels) - 1, 1
    unet = UNet2DConditionModel(
        sample_size=image // 2 ** (len(facts["vae"]) - 1),
        block_out_channels=channels,
        layers_per_block=blocks,
        down_block_types=("CrossAttnDownBlock2D",) * crossing + ("DownBlock2D",) * plain,
        up_block_types=("UpBlock2D",) * plain + ("CrossAttnUpBlock2D",) * crossing,
        cross_attention_dim=prompt["hidden_size"],
        attention_head_dim=attention_heads,
        norm_num_groups=min(32, channels[0]),
        use_linear_projection=True,
    )
    encoder = CLIPTextModel(CLIPTextConfig(**prompt, intermediate_size=4 * prompt["hidden_size"], **ids))
    for module in (vae, unet, encoder) if dtype != torch.float32 else ():
        module.to(dtype)
    context = prompt["max_position_embeddings"]
    model = DIVAForDiffusionFeedback(
        DIVAConfig(
            text_config=text | ids | {"intermediate_size": 4 * text["hidden_size"], "model_type": "clip_text_model"},
            vision_config=vision | {"intermediate_size": 4 * width, "model_type": "clip_vision_model"},
            projection_dim=joint,
            condition_dim=prompt["hidden_size"],
            noise_draws=draws,
            recap="random_k",
            recap_k=context - 1,
            prompt_mode="token_add",
        )
    )
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    generator = DiffusionGenerator(unet, alphas, vae=vae, text_encoder=encoder, tokenizer=_Ids(context))
    model.attach_generator(generator)
    return model


class _Ids:
    """Stands for the tokenizer: the prompt's ids are random, there is no vocabulary for random weights."""

    def __init__(self, context: int):
        self.input_ids = torch.randint(0, 49406, (1, context))
        self.input_ids[:, -1] = 49407

    def __call__(self, *args, **kwargs) -> "_Ids":
        return self


def make_batch(model: DIVAForDiffusionFeedback, image: int, images: int, device: str) -> dict[str, torch.Tensor]:
    """Random pictures and what every draw draws; `class_ids` is what the published code embeds in vain."""
    config, side = model.config, model.config.vision_config.image_size
    batch = {
        "pixel_values": torch.randn(images, 3, side, side),
        "vae_pixel_values": torch.rand(images, 3, image, image) * 2 - 1,
        "class_ids": torch.randint(0, 49406, (1, config.text_config.max_position_embeddings)),
    }
    batch = {key: value.to(device) for key, value in batch.items()}
    latents = model.generator.to(device).encode_images(batch["vae_pixel_values"])
    names = ("noise", "timesteps", "patch_indices")
    return batch | dict(zip(names, model._draw(latents, torch.arange(images)), strict=True)) | {"latents": latents}


def published(model: DIVAForDiffusionFeedback, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tower for every draw; prompt, pictures and text encoded for every batch; the mean of the draws."""
    generator, losses = model.generator, []
    generator.encoded_prompts.clear()
    latents = generator.encode_images(batch["vae_pixel_values"])
    with torch.no_grad():  # gives no gradient in the published code either
        model.get_text_features(batch["class_ids"])
    for k in range(model.config.noise_draws):
        drawn = {name: batch[name][k : k + 1] for name in ("noise", "timesteps", "patch_indices")}
        loss = model(batch["pixel_values"], latents=latents, **drawn).loss
        (loss / model.config.noise_draws).backward()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def shared(model: DIVAForDiffusionFeedback, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Ours with the VAE."""
    return _ours(model, batch, "vae_pixel_values")


def shared_cached(model: DIVAForDiffusionFeedback, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Ours with cached latents."""
    return _ours(model, batch, "latents")


def _ours(model, batch, pictures: str) -> torch.Tensor:
    names = ("pixel_values", "noise", "timesteps", "patch_indices", pictures)
    loss = model(**{name: batch[name] for name in names}).loss
    loss.backward()
    return loss.detach()


def unet_alone(model: DIVAForDiffusionFeedback, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The frozen UNet on all draws, up to the gradient of its condition."""
    generator, (draws, images) = model.generator, batch["timesteps"].shape
    prompt = generator.encode_prompt(model.config.prompt)
    condition = prompt.repeat(draws * images, 1, 1).requires_grad_()
    said, target, _ = generator.predict(
        batch["latents"].repeat(draws, 1, 1, 1), batch["noise"].flatten(0, 1), batch["timesteps"].flatten(), condition
    )
    loss = (said.float() - target).square().mean()
    loss.backward()
    return loss.detach()


def unet_and_tower(model: DIVAForDiffusionFeedback, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same, and one pass of the tower with the gradient of its weights."""
    found = model.vision_model(batch["pixel_values"])
    (found.last_hidden_state.sum() + found.pooler_output.sum()).backward()
    return unet_alone(model, batch)


ORDERS = {"published": published, "shared": shared, "shared_cached": shared_cached}
FLOORS = {"unet_alone": unet_alone, "unet_and_tower": unet_and_tower}


def measure(model: DIVAForDiffusionFeedback, batch: dict, rounds: int, autocast: torch.dtype | None) -> dict:
    """Steps in turns; the first round warms up, and the losses of all orders must agree."""
    device = batch["pixel_values"].device
    on_gpu, lots = device.type == "cuda", random.Random(0)
    runs = ORDERS | FLOORS
    seconds, losses, memory, names = {name: [] for name in runs}, {}, {}, list(runs)
    for number in range(rounds + 1):
        lots.shuffle(names)
        for name in names:
            model.zero_grad()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            clock = time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
            start = clock()
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                losses[name] = runs[name](model, batch).item()
            if on_gpu:
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
            if number:
                seconds[name].append(clock() - start)
    found = {"losses": losses, "seconds": {name: statistics.median(times) for name, times in seconds.items()}}
    for name in (*ORDERS, *FLOORS):
        ratios = [a / b for a, b in zip(seconds["published"], seconds[name], strict=True)]
        found[f"published/{name}"] = statistics.median(ratios)
    for name in ORDERS:
        difference = abs(losses[name] - losses["published"]) / losses["published"]
        found[f"difference_{name}"] = difference
        if autocast is None and difference > TOLERANCE:
            raise AssertionError(f"the losses of {name} and the published order differ by {difference:.1e}.")
    return found | ({"peak_gib": memory} if on_gpu else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny", help="all parts (tiny)")
    parser.add_argument("--draws", type=int, nargs="+", default=[2, 4], help="draws of a step (2 4)")
    parser.add_argument("--batch", type=int, default=16, help="images of a step (16)")
    parser.add_argument("--image", type=int, help="side of the diffusion model's pictures (48, 512)")
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each order (7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="frozen parts, autocast")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the UNet's activations")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--output", type=Path, default=Path("outputs/diva_step.json"), help="where the JSON goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype, results, image = getattr(torch, args.dtype), [], args.image or SIZES[args.size]["image"]
    print(
        "| K | B | published s | shared s | cached s | UNet s | UNet and tower s | published / shared | / cached "
        "| / UNet | / UNet and tower | losses differ |"
    )
    print("|---" * 12 + "|")
    for draws in args.draws:
        torch.manual_seed(0)
        model = build(args.size, draws, dtype, image).to(args.device).train()
        if args.checkpointing:
            model.generator.unet.enable_gradient_checkpointing()
        batch = make_batch(model, image, args.batch, args.device)
        found = measure(model, batch, args.rounds, None if dtype == torch.float32 else dtype)
        results.append({"draws": draws, "batch": args.batch} | found)
        cells = [f"{found['seconds'][name]:.3f}" for name in (*ORDERS, *FLOORS)]
        cells += [f"{found[f'published/{name}']:.2f}" for name in (*list(ORDERS)[1:], *FLOORS)]
        worst = max(found["difference_shared"], found["difference_shared_cached"])
        print(f"| {draws} | {args.batch} | " + " | ".join([*cells, f"{worst:.1e}"]) + " |", flush=True)
        if "peak_gib" in found:
            print("peak GiB: " + ", ".join(f"{name} {value:.1f}" for name, value in found["peak_gib"].items()))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {key: str(value) for key, value in vars(args).items()} | {"torch": torch.__version__}
    args.output.write_text(json.dumps({"facts": facts, "results": results}, indent=1))
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
