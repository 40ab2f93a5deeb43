"""A tiny frozen diffusion model that several tests load: 16 pixels, latents of 8, a condition of width 24."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hf_clipplus.models.diva.generator_diva import DiffusionGenerator

SIDE, WIDTH = 16, 24


def tiny_parts(prediction_type="epsilon"):
    torch.manual_seed(0)
    text = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 600, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            sample_size=SIDE,
        ),
        "scheduler": DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text, **ids)),
    }


def tiny_generator(tokenizer, **options):
    parts = tiny_parts(**options)
    scheduler = parts.pop("scheduler")
    return DiffusionGenerator(
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction_type=scheduler.config.prediction_type,
        tokenizer=tokenizer,
        **parts,
    )
