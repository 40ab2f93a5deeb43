"""A small latent diffusion model on the embedded drawings: VAE, UNet, and how much its loss depends on the caption."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTextModel

from hf_clipplus.data.clipart import CaptionWorld
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.models.diva.generator_diva import DiffusionGenerator

SIDE, SCENES = 48, 0.5  # pixels; share of pictures that are scenes
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@dataclass
class DiffusionArguments:
    """Sizes and steps."""

    output_dir: str = field(default="outputs/tiny_diffusion", metadata={"help": "A folder of diffusers, and samples."})
    pictures: int = field(default=6000, metadata={"help": "Training pictures, half of them scenes."})
    vae_steps: int = field(default=500, metadata={"help": "Steps of the VAE."})
    unet_steps: int = field(default=1500, metadata={"help": "Steps of the UNet."})
    batch_size: int = field(default=32, metadata={"help": "Pictures of a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of both."})
    empty_prompts: float = field(default=0.1, metadata={"help": "Share of captions replaced by the empty prompt."})
    held_out: int = field(default=512, metadata={"help": "Validation pictures for the losses at the end."})
    sample_steps: int = field(default=40, metadata={"help": "Denoising steps of the samples."})
    seed: int = field(default=0, metadata={"help": "Of everything."})


def pictures_and_captions(split: str, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Pictures in [-1, 1], `[N, 3, 48, 48]`, and a true caption of each."""
    scenes = SceneWorld(split, image_size=SIDE, length=int(SCENES * count), train=False, seed=seed)
    drawings = CaptionWorld(split, image_size=SIDE, seed=seed)
    draw, pixels, captions = np.random.default_rng(seed), [], []
    for number in range(count):
        if number < len(scenes):
            row = scenes[number]
            captions.append(" ".join([row["sentences"][0], str(draw.choice(row["sentences"][1:]))]))
        else:
            drawings.set_epoch((number - len(scenes)) // len(drawings))
            row = drawings[(number - len(scenes)) % len(drawings)]
            captions.append(str(draw.choice(row["pseudo_captions"])))
        pixels.append(np.asarray(row["image"]))
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    return pixels / 127.5 - 1, captions


def fit(parameters, loss_of_batch, count: int, steps: int, args: DiffusionArguments, what: str) -> None:
    """AdamW over random batches of `count` rows, the rate falling as a cosine; `loss_of_batch(indices) -> loss`."""
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=steps, pct_start=0.05)
    with tqdm(range(steps), desc=what, mininterval=10) as bar:
        for _ in bar:
            loss = loss_of_batch(torch.randint(count, (args.batch_size,)))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def train_vae(pixels: Tensor, args: DiffusionArguments) -> AutoencoderKL:
    """A VAE whose scaled latents have unit deviation."""
    blocks = (16, 16, 32)
    vae = AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )

    def loss(batch: Tensor) -> Tensor:
        posterior = vae.encode(pixels[batch]).latent_dist
        return F.mse_loss(vae.decode(posterior.sample()).sample, pixels[batch]) + 1e-5 * posterior.kl().mean()

    fit(list(vae.parameters()), loss, len(pixels), args.vae_steps, args, "VAE")
    with torch.no_grad():
        latents = vae.encode(pixels[:500]).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae


def train_unet(
    generator: DiffusionGenerator, latents: Tensor, ids: Tensor, empty: Tensor, args: DiffusionArguments
) -> None:
    """The generator's UNet learns to predict the noise under each caption."""
    generator.unet.requires_grad_(True).train()

    def loss(batch: Tensor) -> Tensor:
        chosen = torch.where(torch.rand(len(batch), 1) < args.empty_prompts, empty, ids[batch])
        return noise_loss(generator, latents[batch], chosen)

    fit(list(generator.unet.parameters()), loss, len(latents), args.unet_steps, args, "UNet")
    generator.unet.requires_grad_(False).eval()


def noise_loss(generator: DiffusionGenerator, latents: Tensor, ids: Tensor) -> Tensor:
    """Mean squared error of the predicted noise at random times."""
    times = torch.randint(len(generator.alphas_cumprod), (len(latents),))
    with torch.no_grad():
        condition = generator.text_encoder(ids).last_hidden_state
    said, target, _ = generator.predict(latents, torch.randn_like(latents), times, condition)
    return F.mse_loss(said, target)


def build_generator(vae: AutoencoderKL, text_encoder: CLIPTextModel) -> DiffusionGenerator:
    """The VAE and the text encoder with a UNet that knows nothing yet."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2 ** (len(vae.config.block_out_channels) - 1),
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return DiffusionGenerator(unet, DDPMScheduler(**SCHEDULE).alphas_cumprod, vae=vae, text_encoder=text_encoder)


@torch.no_grad()
def caption_losses(generator: DiffusionGenerator, latents: Tensor, ids: Tensor, empty: Tensor) -> dict[str, float]:
    """The loss with the pictures' own captions, those of other pictures and the empty prompt, under equal noise."""
    losses = {}
    for name, chosen in (("own", ids), ("other", ids.roll(7, 0)), ("empty", empty.expand_as(ids))):
        torch.manual_seed(0)
        losses[f"loss_{name}_caption"] = noise_loss(generator, latents, chosen).item()
    return losses
