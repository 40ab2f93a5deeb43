"""Configuration of DIVA."""

from huggingface_hub.dataclasses import strict

from hf_clipplus.models.configuration_dual_encoder import DualEncoderConfig
from hf_clipplus.ops.diffusion_feedback import (
    LOSS_TYPES,
    OFFICIAL_EMBEDDINGS,
    PROMPT_MODES,
    RECAPS,
    random_patch_count,
)

EMBEDDINGS = ("cls", "cls+local_mean", "official")
PROJECTORS = ("linear", "mlp")


@strict
class DIVAConfig(DualEncoderConfig):
    """DIVA ("Diffusion feedback helps CLIP see better", 2407.20171): a CLIP or SigLIP whose visual tower was tuned.

    Everything below `official_embedding` matters in training only. `presets_diva.PRESETS` has the published values of
    each backbone.

    Args:
        logit_bias_init_value: 0 where the checkpoint has no bias (CLIP), so that logits are CLIP's.
        recap: which local tokens stand beside the class (or pooled) token: "random_k" patches or a "random_ratio" of
            them, drawn with replacement for every forward; "all"; "avgpool" over a window; "cls": none.
        recap_k: patches of "random_k".
        recap_ratio: share of the patches of "random_ratio".
        recap_window: window and stride of "avgpool", in patches.
        embedding: image embedding: "cls" (CLIP's), "cls+local_mean" (plus the mean of all patches), "official" (the
            rule of the published evaluation script, which draws patches by the recap).
        official_embedding: whose rule "official" means, a key of `ops.diffusion_feedback.OFFICIAL_EMBEDDINGS`.
        prompt_mode: how visual tokens meet the prompt, see `ops.diffusion_feedback.assemble_condition`.
        prompt: the constant prompt; published: an empty class name in a template.
        projector: "linear" (published) or "mlp" (norm, linear, GELU, linear; the two-stage follow-ups).
        condition_dim: width of the UNet's condition.
        generator_name: diffusers repository or folder of the diffusion model that gave feedback.
        noise_draws: draws of time and noise per image and step.
        loss_type: "mse" or "l1".
        legacy_grad_weighting: the published mix of the draws' gradients, see `ops.diffusion_feedback.combine_draws`.
    """

    model_type = "clipplus_diva"

    logit_bias_init_value: float | int = 0.0
    recap: str = "random_k"
    recap_k: int = 76
    recap_ratio: float = 0.5
    recap_window: int = 6
    embedding: str = "cls"
    official_embedding: str = "openai"
    prompt_mode: str = "token_add"
    prompt: str = "a photo of a ."
    projector: str = "linear"
    condition_dim: int = 1024
    generator_name: str | None = None
    noise_draws: int = 2
    loss_type: str = "mse"
    legacy_grad_weighting: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for field, allowed in (
            ("recap", RECAPS),
            ("embedding", EMBEDDINGS),
            ("official_embedding", tuple(OFFICIAL_EMBEDDINGS)),
            ("prompt_mode", PROMPT_MODES),
            ("projector", PROJECTORS),
            ("loss_type", LOSS_TYPES),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"DIVAConfig.{field}={getattr(self, field)!r} is unknown: choose one of {allowed}.")
        for field in ("recap_k", "recap_window", "condition_dim", "noise_draws"):
            if getattr(self, field) < 1:
                raise ValueError(f"DIVAConfig.{field}: expected at least 1, got {getattr(self, field)}.")
        if not 0 < self.recap_ratio <= 1:
            raise ValueError(f"DIVAConfig.recap_ratio: expected a share in (0, 1], got {self.recap_ratio}.")

    @property
    def patches(self) -> int:
        """Patches of an image of the configured size."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def random_patches(self) -> int:
        """Patches that the recap draws per image; 0 where it draws none."""
        return random_patch_count(self.recap, self.patches, k=self.recap_k, ratio=self.recap_ratio)

    @property
    def visual_dim(self) -> int:
        """Width of the visual tokens: of the joint space."""
        return self.joint_dim


__all__ = ["DIVAConfig"]
