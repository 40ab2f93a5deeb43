"""DIVA's model: a CLIP or SigLIP like any other, whose image tokens can be recapped densely."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from hf_clipplus.models.configuration_finer_vision import FinerVision
from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings, DualEncoderModel, DualEncoderOutput
from hf_clipplus.models.finer_vision import at_every_scale
from hf_clipplus.ops.diffusion_feedback import (
    OFFICIAL_EMBEDDINGS,
    average_pools,
    draw_patches,
    official_embedding,
    random_patch_count,
    take_patches,
)

from .configuration_diva import DIVAConfig


@dataclass
class DIVAOutput(DualEncoderOutput):
    """What `DIVAModel` returns: the outputs of every dual encoder, without a loss; the bias is 0 for CLIP.

    With `embedding="official"` and the rule "dfn378" `image_embeds` are not L2-normalised.
    """


class DIVAModel(DualEncoderModel):
    """A CLIP or SigLIP whose visual tower a diffusion model's feedback has tuned (2407.20171).

    Loads any CLIP or SigLIP checkpoint, and what `DIVAForDiffusionFeedback` saves; needs no diffusion model.

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained("org/diva-plus")
    >>> processor = AutoProcessor.from_pretrained("org/diva-plus")
    >>> batch = processor(images=image, text=["two cats", "three cats"], return_tensors="pt")
    >>> probabilities = model(**batch).logits_per_image.softmax(-1)
    ```
    """

    config_class = DIVAConfig
    config: DIVAConfig
    output_class = DIVAOutput
    _keys_to_ignore_on_load_unexpected = [r"^visual_proj\."]  # the projector, of use in training only

    @can_return_tuple
    @at_every_scale
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        embedding: str | None = None,
        patch_indices: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output; `pooler_output` is the image embedding `[N, D]`, not normalised.

        Args:
            pixel_values: `[N, 3, H, W]`, normalised as the processor does.
            interpolate_pos_encoding: accept another image size than the configured one.
            embedding: "cls", "cls+local_mean" or "official"; the configuration's when None.
            patch_indices, generator: of `recap_tokens`, for "official" with a random recap.

        Raises:
            ValueError: an unknown embedding, or "official" with finer vision.
        """
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        embedding = embedding or self.config.embedding
        if embedding == "cls":
            outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        elif embedding == "cls+local_mean":
            tokens = self._project(outputs, self._normed(self._patches(outputs)))
            outputs.pooler_output = tokens[:, 0] + tokens[:, 1:].mean(1)
        elif embedding == "official":
            if FinerVision.of(self.config) is not None:
                raise ValueError(
                    "embedding='official' is a rule for one picture at one scale: no finer_vision with it."
                )
            tokens = self.recap_tokens(outputs, patch_indices=patch_indices, generator=generator)
            outputs.pooler_output = official_embedding(tokens[:, 0], tokens[:, 1:], self.config.official_embedding)
        else:
            raise ValueError(f"embedding={embedding!r} is unknown: choose 'cls', 'cls+local_mean' or 'official'.")
        return outputs

    def recap_tokens(
        self,
        outputs: BaseModelOutputWithPooling,
        *,
        patch_indices: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The visual tokens of the configured recap: the class (or pooled) token, then local ones, all projected.

        Args:
            outputs: of `vision_model`, for B images.
            patch_indices: `[R, n]` patches of a random recap, from 0, the class token not counted; row r is of image
                r mod B (see `take_patches`). Drawn when left out, one row an image.
            generator: draws them; torch's own when left out.

        Returns:
            `[R or B, 1 + n, E]`.
        """
        config, patches = self.config, self._patches(outputs)
        if config.recap == "cls":
            return self._project(outputs, patches[:, :0])
        if config.recap == "all":
            return self._project(outputs, self._normed(patches))
        if config.recap == "avgpool":
            return self._project(outputs, average_pools(self._normed(patches), config.recap_window))
        if patch_indices is None:
            count = random_patch_count(config.recap, patches.shape[1], k=config.recap_k, ratio=config.recap_ratio)
            patch_indices = draw_patches(len(patches), count, patches.shape[1], generator)
        return self._project(outputs, self._normed(take_patches(patches, patch_indices)))

    def embed(self, pixel_values: torch.Tensor | None = None, *args, **kwargs) -> DualEncoderEmbeddings:
        found = super().embed(pixel_values, *args, **kwargs)
        if pixel_values is not None and not self.normalizes_images:
            found["image_embeds"] = found.vision_model_output.pooler_output
        return found

    @property
    def normalizes_images(self) -> bool:
        """Whether image embeddings end on the unit sphere; one of the published rules leaves their length alone."""
        return self.config.embedding != "official" or OFFICIAL_EMBEDDINGS[self.config.official_embedding][2]

    def _can_pool(self, tower) -> bool:
        local = tower is self.config.vision_config and self.config.embedding != "cls"  # needs every patch
        return super()._can_pool(tower) and not local

    def _patches(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """The last states of the patches `[B, P, W]`; SigLIP's have been through the tower's last norm, CLIP's not."""
        states = outputs.last_hidden_state
        return states if self.config.has_siglip_towers else states[:, 1:]

    def _normed(self, patches: torch.Tensor) -> torch.Tensor:
        return patches if self.config.has_siglip_towers else self.vision_model.post_layernorm(patches)

    def _project(self, outputs: BaseModelOutputWithPooling, local: torch.Tensor) -> torch.Tensor:
        """Class (or pooled) token and local tokens `[R, n, W]` in the joint space, `[R, 1 + n, E]`."""
        pooled = outputs.pooler_output[:, None]
        pooled = pooled.repeat(len(local) // len(pooled), 1, 1)  # row r is of image r mod B
        return self.visual_projection(torch.cat([pooled, local], dim=1))


__all__ = ["DIVAModel", "DIVAOutput"]
