"""DIVAForDiffusionFeedback: trains a CLIP's visual tower by the noise prediction of a frozen diffusion model."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_clipplus.models.configuration_finer_vision import FinerVision
from hf_clipplus.ops.diffusion_feedback import assemble_condition, combine_draws, draw_losses, draw_patches

from .configuration_diva import DIVAConfig
from .generator_diva import DiffusionGenerator
from .modeling_diva import DIVAModel


@dataclass
class DIVAFeedbackOutput(ModelOutput):
    """What `DIVAForDiffusionFeedback` returns; rows are draw by draw, all B images of the first draw first.

    Args:
        loss: scalar.
        draw_losses: `[K]`, the loss of each draw alone.
        visual_tokens: `[K * B or B, N, E]`, the recapped tokens.
        condition: `[K * B, N, D]`, what the UNet was shown.
        noised_latents, prediction: `[K * B, C, h, w]`.
        statistics: scalars to log: the loss of early, middle and late times (thirds of the schedule; NaN where no
            draw fell into one).
    """

    loss: Tensor | None = None
    draw_losses: Tensor | None = None
    visual_tokens: Tensor | None = None
    condition: Tensor | None = None
    noised_latents: Tensor | None = None
    prediction: Tensor | None = None
    statistics: dict[str, Tensor] | None = None


class LinearProjector(nn.Linear):
    """The published projector of visual tokens into the UNet's condition."""


class MLPProjector(nn.Sequential):
    """The projector of the two-stage follow-ups: norm, linear, GELU, linear."""

    def __init__(self, width: int, condition_dim: int):
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, condition_dim), nn.GELU(), nn.Linear(condition_dim, condition_dim)
        )


class DIVAForDiffusionFeedback(DIVAModel):
    """`DIVAModel` with the projector into a diffusion model's condition, and the loss that trains the visual tower.

    The diffusion model is handed over by `attach_generator` and stays outside: it is neither trained, nor moved by
    `train()`, nor saved. What is saved loads as `DIVAModel`, which leaves the projector out.

    Example:

    ```python
    >>> model = DIVAForDiffusionFeedback.from_pretrained("openai/clip-vit-large-patch14")
    >>> model.attach_generator(DiffusionGenerator.from_pretrained("path/to/stable-diffusion-2-1-base"))
    >>> loss = model(**processor.feedback_inputs(pictures)).loss
    ```
    """

    generator: DiffusionGenerator | None = None

    def __init__(self, config: DIVAConfig):
        super().__init__(config)
        if FinerVision.of(config) is not None:
            raise ValueError(
                "DIVAForDiffusionFeedback has no finer_vision: the diffusion model judges the tokens of one picture "
                "at the tower's size. Load with finer_vision=None, and switch it on in the trained DIVAModel."
            )
        projector = {"linear": LinearProjector, "mlp": MLPProjector}[config.projector]
        self.visual_proj = projector(config.visual_dim, config.condition_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        linears = [module] if isinstance(module, LinearProjector) else []
        linears = [*module.children()] if isinstance(module, MLPProjector) else linears
        for linear in linears:  # PyTorch's default, as published
            if isinstance(linear, nn.Linear):
                init.kaiming_uniform_(linear.weight, a=sqrt(5))
                init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)

    def clamp_logit_scale(self, maximum: float = 100.0) -> None:
        """Nothing: the scale is not trained here, and a published one may lie beyond the limit."""

    def attach_generator(self, generator: DiffusionGenerator, *, tower: bool = True, projector: bool = True) -> None:
        """Take feedback from this diffusion model, and choose what it trains.

        Args:
            generator: the frozen diffusion model.
            tower: train the visual tower and its projection into the joint space.
            projector: train the projector. The text tower, scale and bias are never trained.

        Raises:
            ValueError: the generator's condition has another width than `config.condition_dim`.
        """
        if generator.condition_dim != self.config.condition_dim:
            raise ValueError(
                f"the UNet's condition is {generator.condition_dim} wide, the projector makes "
                f"{self.config.condition_dim}: load the model with condition_dim={generator.condition_dim}."
            )
        object.__setattr__(self, "generator", generator)  # nn.Module would make it a part of the model
        self.requires_grad_(False)
        self.vision_model.requires_grad_(tower)
        self.visual_projection.requires_grad_(tower)
        self.visual_proj.requires_grad_(projector)

    def forward(
        self,
        pixel_values: Tensor,
        vae_pixel_values: Tensor | None = None,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        patch_indices: Tensor | None = None,
        draw_seeds: Tensor | None = None,
        accumulation_steps: int = 1,
        example_index: Tensor | None = None,
        return_loss: bool = True,
    ) -> DIVAFeedbackOutput:
        """The noise-prediction loss of the frozen diffusion model under the visual condition.

        The tower's trunk runs once; each of the K draws has its own time, noise and random patches.

        Args:
            pixel_values: `[B, 3, S, S]`, for the tower.
            vae_pixel_values: `[B, 3, H, W]` in [-1, 1], for the VAE.
            latents: `[B, C, h, w]`, in place of `vae_pixel_values`.
            noise: `[K, B, C, h, w]`; timesteps: `[K, B]`; patch_indices: `[K, B, n]`. Drawn when left out.
            draw_seeds: `[B]` int64, from which what is drawn for each image follows; torch's own generator otherwise.
            accumulation_steps: of the trainer; only `config.legacy_grad_weighting` looks at it.
            example_index, return_loss: taken for the Trainer's sake, and not looked at.

        Raises:
            ValueError: no generator was attached, both or none of pixels and latents, or another number of them.
        """
        if self.generator is None:
            raise ValueError("DIVAForDiffusionFeedback has no diffusion model yet: call attach_generator first.")
        generator, config = self.generator.to(pixel_values.device), self.config
        if (latents is None) == (vae_pixel_values is None):
            raise ValueError("give either vae_pixel_values or latents.")
        if latents is None:
            latents = generator.encode_images(vae_pixel_values)
        if len(latents) != len(pixel_values):
            raise ValueError(f"{len(pixel_values)} images for the tower but {len(latents)} for the diffusion model.")
        if noise is None or timesteps is None or (patch_indices is None and config.random_patches):
            drawn = self._draw(latents, draw_seeds)
            given = (noise, timesteps, patch_indices)
            noise, timesteps, patch_indices = (
                own if one is None else one for one, own in zip(given, drawn, strict=True)
            )
        draws = len(noise)
        tokens = self.recap_tokens(
            self.vision_model(pixel_values),
            patch_indices=patch_indices.flatten(0, 1) if config.random_patches else None,
        )
        condition = assemble_condition(
            generator.encode_prompt(config.prompt), self.visual_proj(tokens), config.prompt_mode
        )
        if len(condition) != draws * len(latents):
            condition = condition.repeat(draws, 1, 1)
        prediction, target, noised = generator.predict(
            latents.repeat(draws, 1, 1, 1), noise.flatten(0, 1), timesteps.flatten(), condition
        )
        losses = draw_losses(prediction, target, draws, config.loss_type)
        return DIVAFeedbackOutput(
            loss=combine_draws(losses, accumulation=accumulation_steps, legacy=config.legacy_grad_weighting),
            draw_losses=losses,
            visual_tokens=tokens,
            condition=condition,
            noised_latents=noised,
            prediction=prediction,
            statistics=_by_time(prediction, target, timesteps.flatten(), len(generator.alphas_cumprod)),
        )

    def _draw(self, latents: Tensor, seeds: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Noise `[K, B, ...]`, times `[K, B]` and patches `[K, B, n]`."""
        draws, count = self.config.noise_draws, self.config.random_patches
        times, device = len(self.generator.alphas_cumprod), latents.device
        if seeds is None:
            noise = torch.randn(draws, *latents.shape, device=device)
            timesteps = torch.randint(times, (draws, len(latents)), device=device)
            patches = draw_patches(draws * len(latents), count, self.config.patches)
            return noise, timesteps, patches.view(draws, len(latents), count)
        rows = []
        for seed in seeds.tolist():
            own = torch.Generator().manual_seed(seed)
            rows.append(
                (
                    torch.randn(draws, *latents.shape[1:], generator=own),
                    torch.randint(times, (draws,), generator=own),
                    draw_patches(draws, count, self.config.patches, own),
                )
            )
        return tuple(torch.stack(part, dim=1).to(device) for part in zip(*rows, strict=True))


@torch.no_grad()
def _by_time(prediction: Tensor, target: Tensor, timesteps: Tensor, times: int) -> dict[str, Tensor]:
    """Mean squared error of the rows whose time lies in each third of the schedule."""
    errors = (prediction.float() - target.float()).square().flatten(1).mean(1)
    third = timesteps * 3 // times
    return {f"loss_{name}": errors[third == place].mean() for place, name in enumerate(("early", "middle", "late"))}


__all__ = ["DIVAFeedbackOutput", "DIVAForDiffusionFeedback"]
