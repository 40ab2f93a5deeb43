"""Train a small latent diffusion model on the embedded drawings and scenes, which gives DIVA feedback offline.

    python examples/train_tiny_diffusion.py                         # outputs/tiny_diffusion, samples in samples.png

First a VAE (pictures of 48 pixels, latents of 12), then a UNet under the text tower of the embedded encoder. What is
saved is an ordinary Stable Diffusion folder of diffusers. At the end the loss on validation pictures is printed with
their own captions, with those of other pictures and with the empty prompt: a condition that tells nothing would show.
"""

import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import AutoModel, AutoProcessor, set_seed

import hf_clipplus  # noqa: F401  the embedded encoder is a model of the zoo
from hf_clipplus.training import parse_arguments
from hf_clipplus.training.start import ENCODER
from hf_clipplus.training.tiny_diffusion import (
    SCHEDULE,
    SIDE,
    DiffusionArguments,
    build_generator,
    caption_losses,
    pictures_and_captions,
    train_unet,
    train_vae,
)

PROMPTS = ("a red car", "a tiger", "a green tree", "two cats", "three birds", "a house on the left", "a fish", "")
SAMPLES = 4  # of each prompt


def draw_samples(pipe: StableDiffusionPipeline, steps: int, seed: int) -> Image.Image:
    """A sheet with a column of samples for each of `PROMPTS`."""
    pipe.scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False)
    options = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "guidance_scale": 3.0}
    prompts = [prompt for prompt in PROMPTS for _ in range(SAMPLES)]
    pictures = pipe(prompts, generator=torch.Generator().manual_seed(seed), **options).images
    sheet = Image.new("RGB", (len(PROMPTS) * 2 * SIDE, SAMPLES * 2 * SIDE))
    for number, picture in enumerate(pictures):
        column, row = divmod(number, SAMPLES)
        sheet.paste(picture.resize((2 * SIDE, 2 * SIDE)), (column * 2 * SIDE, row * 2 * SIDE))
    return sheet


def main(argv: list[str] | None = None) -> dict[str, float]:
    (args,) = parse_arguments((DiffusionArguments,), __doc__, argv)
    set_seed(args.seed)
    start = time.perf_counter()
    text_encoder = AutoModel.from_pretrained(ENCODER, dtype=torch.float32).text_model
    tokenizer = AutoProcessor.from_pretrained(ENCODER).tokenizer

    def tokenize(texts: list[str]) -> torch.Tensor:
        length = text_encoder.config.max_position_embeddings
        return tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    pixels, captions = pictures_and_captions("train", args.pictures, args.seed)
    generator = build_generator(train_vae(pixels, args), text_encoder)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([generator.encode_images(part) for part in pixels.split(256)])

    train_unet(generator, encode(pixels), tokenize(captions), tokenize([""]), args)

    held, texts = pictures_and_captions("validation", args.held_out, args.seed)
    latents = encode(held)
    losses = caption_losses(generator, latents, tokenize(texts), tokenize([""]))
    with torch.no_grad():
        seen = generator.vae.decode(latents / generator.vae.config.scaling_factor).sample
    losses |= {"vae_error": F.mse_loss(seen, held).item(), "minutes": (time.perf_counter() - start) / 60}
    pipe = StableDiffusionPipeline(
        generator.vae,
        text_encoder,
        tokenizer,
        generator.unet,
        DDPMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = Path(args.output_dir)
    pipe.save_pretrained(folder)
    (folder / "losses.json").write_text(json.dumps(losses, indent=1))
    draw_samples(pipe, args.sample_steps, args.seed).save(folder / "samples.png")
    print(json.dumps(losses, indent=1), f"saved in {folder}; samples.png has {SAMPLES} of each of {PROMPTS}", sep="\n")
    return losses


if __name__ == "__main__":
    main()
