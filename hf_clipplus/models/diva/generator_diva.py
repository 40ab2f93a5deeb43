"""The frozen latent diffusion model that gives feedback: VAE, UNet, noise schedule and text encoder of diffusers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_clipplus.ops.diffusion_feedback import PREDICTION_TYPES, add_noise, prediction_target


@dataclass
class DiffusionGenerator:
    """A frozen latent diffusion model. It is no `nn.Module`, so that no model that holds it trains or saves it.

    Args:
        unet: `UNet2DConditionModel`.
        alphas_cumprod: abar, `[T]`.
        prediction_type: "epsilon" or "v_prediction".
        vae: `AutoencoderKL`; None where latents are precomputed.
        text_encoder, tokenizer: of the prompt; None where `prompt_embeds` are given.
        prompt_embeds: `[1, L, D]`, the states of the constant prompt, whatever it says; encoded once when None.

    Raises:
        ValueError: an unknown prediction type, or a text encoder that is not as wide as the UNet's condition.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction_type: str = "epsilon"
    vae: nn.Module | None = None
    text_encoder: nn.Module | None = None
    tokenizer: Any = None
    prompt_embeds: Tensor | None = None
    encoded_prompts: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self):
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction type {self.prediction_type!r} is not supported: choose one of {PREDICTION_TYPES}."
            )
        for module in self.modules:
            module.requires_grad_(False).eval()
        widths = {
            "the UNet's condition": self.condition_dim,
            "the text encoder": None if self.text_encoder is None else self.text_encoder.config.hidden_size,
            "prompt_embeds": None if self.prompt_embeds is None else self.prompt_embeds.shape[-1],
        }
        widths = {name: width for name, width in widths.items() if width is not None}
        if len(set(widths.values())) > 1:
            raise ValueError(f"parts of the diffusion model do not fit, their widths are {widths}.")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        with_vae: bool = True,
        prompt_embeds: Tensor | None = None,
    ) -> "DiffusionGenerator":
        """The parts of a diffusers repository or folder (subfolders unet, scheduler, vae, text_encoder, tokenizer).

        Args:
            name: Hub id or folder.
            dtype: of the weights; bfloat16 halves the memory of a large one on a GPU.
            with_vae: load the VAE; latents must be given where it is left out.
            prompt_embeds: `[1, L, D]`; neither text encoder nor tokenizer are loaded then.

        Raises:
            ImportError: diffusers is not installed.
            OSError: a part is not there.
        """
        try:
            from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        except ImportError as error:
            raise ImportError(
                "Diffusion feedback needs diffusers: pip install 'hf-clipplus[diffusion]'. "
                "A tuned model (DIVAModel) works without it."
            ) from error
        from transformers import CLIPTextModel, CLIPTokenizer

        options = {"torch_dtype": dtype}
        scheduler = DDPMScheduler.from_pretrained(name, subfolder="scheduler")
        text = {}
        if prompt_embeds is None:
            text["text_encoder"] = CLIPTextModel.from_pretrained(name, subfolder="text_encoder", dtype=dtype)
            text["tokenizer"] = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
        return cls(
            unet=UNet2DConditionModel.from_pretrained(name, subfolder="unet", **options),
            alphas_cumprod=scheduler.alphas_cumprod,
            prediction_type=scheduler.config.prediction_type,
            vae=AutoencoderKL.from_pretrained(name, subfolder="vae", **options) if with_vae else None,
            prompt_embeds=prompt_embeds,
            **text,
        )

    @property
    def modules(self) -> list[nn.Module]:
        """The networks that are there."""
        return [module for module in (self.unet, self.vae, self.text_encoder) if module is not None]

    @property
    def condition_dim(self) -> int:
        """Width of the UNet's condition."""
        return self.unet.config.cross_attention_dim

    @property
    def vae_factor(self) -> int:
        """Pixels of a side per latent of a side."""
        return 2 ** (len(self._need_vae().config.block_out_channels) - 1)

    def to(self, device: torch.device | str) -> "DiffusionGenerator":
        """Move every part there, in place."""
        for module in self.modules:
            if module.device != torch.device(device):
                module.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        self.prompt_embeds = None if self.prompt_embeds is None else self.prompt_embeds.to(device)
        self.encoded_prompts = {prompt: states.to(device) for prompt, states in self.encoded_prompts.items()}
        return self

    def check_image_size(self, size: int) -> None:
        """Whether pictures of that side fit the VAE and its latents the UNet.

        Raises:
            ValueError: they do not; says of what the side must be a multiple.
        """
        multiple = self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if size % multiple:
            raise ValueError(
                f"image size {size} does not fit the diffusion model: its side must be a multiple of {multiple} "
                f"(VAE factor {self.vae_factor}, {multiple // self.vae_factor} more in the UNet)."
            )

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` float32 of pictures in [-1, 1], `[B, 3, H, W]`: the posterior's mode, scaled.

        Raises:
            ValueError: the size does not fit, or a latent is not finite.
        """
        vae = self._need_vae()
        self.check_image_size(pixels.shape[-1])
        self.check_image_size(pixels.shape[-2])
        with torch.autocast(vae.device.type, enabled=False):  # latents are the same with and without a cache
            mode = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        latents = (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        wrong = (~latents.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"the latents of pictures {wrong} of the batch are NaN or infinite: look at their pixels."
            )
        return latents

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        """The text encoder's states of `prompt`, padded to its context, without a mask: `[1, L, D]`; encoded once."""
        if self.prompt_embeds is not None:
            return self.prompt_embeds
        if prompt not in self.encoded_prompts:
            if self.text_encoder is None or self.tokenizer is None:
                raise ValueError("this diffusion model has no text encoder and tokenizer: give it prompt_embeds.")
            length = self.text_encoder.config.max_position_embeddings
            ids = self.tokenizer(
                [prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).input_ids
            with torch.autocast(self.text_encoder.device.type, enabled=False):
                states = self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state
            self.encoded_prompts[prompt] = states.float()
        return self.encoded_prompts[prompt]

    def predict(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One denoising of every row; gradients flow through the UNet into `condition`.

        Args:
            latents, noise: `[R, C, h, w]`.
            timesteps: `[R]` int64 in 0..T-1.
            condition: `[R, N, D]`.

        Returns:
            The UNet's prediction, its target, and the noised latents, all `[R, C, h, w]`.
        """
        abar = self.alphas_cumprod.to(latents.device)[timesteps]
        noised = add_noise(latents, noise, abar)
        dtype = self.unet.dtype
        said = self.unet(noised.to(dtype), timesteps, encoder_hidden_states=condition.to(dtype)).sample
        return said, prediction_target(latents, noise, abar, self.prediction_type), noised

    def _need_vae(self) -> nn.Module:
        if self.vae is None:
            raise ValueError(
                "this diffusion model was loaded without its VAE: give latents, or load it with_vae=True."
            )
        return self.vae


__all__ = ["DiffusionGenerator"]
