"""DreamLIP: a CLIP dual encoder trained with K captions per image, each tied to the patches that it describes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_clipplus.models.configuration_finer_vision import FinerVision
from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings, DualEncoderModel, DualEncoderOutput
from hf_clipplus.models.finer_vision import FinerVisionOutput
from hf_clipplus.models.mined_positives import MinedPositivesMixin
from hf_clipplus.ops.contrastive import slot_softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss, grouping_loss
from hf_clipplus.ops.positives import apart_from_negatives, default_owners

from .configuration_dreamlip import DreamLIPConfig


@dataclass
class DreamLIPEmbeddings(DualEncoderEmbeddings):
    """What `embed` returns.

    Args:
        patch_embeds: `[N, M, D]`, L2-normalised; of a model with the grouping loss.
    """

    patch_embeds: torch.Tensor | None = None


@dataclass
class DreamLIPOutput(DualEncoderOutput):
    """What `DreamLIPModel` returns beside the outputs of every dual encoder.

    Args:
        patch_embeds: `[N, M, D]`, L2-normalised; of a model with the grouping loss.
        positives: `[2, P]` int64, of the sigmoid loss, see `FFFOutput`.
    """

    patch_embeds: torch.Tensor | None = None
    positives: torch.Tensor | None = None


class DreamLIPModel(MinedPositivesMixin, DualEncoderModel):
    """CLIP towers with DreamLIP's losses (2403.17007).

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained("org/dreamlip-plus")
    >>> processor = AutoProcessor.from_pretrained("org/dreamlip-plus")
    >>> batch = processor(images=[cat, dog], text=[["a cat", "it sleeps"], ["a dog", "it runs"]], return_tensors="pt")
    >>> loss = model(**batch, return_loss=True).loss
    >>> heat = model.patch_similarity(**processor(images=cat, text="a tail", return_tensors="pt"))  # [1, 1, h, w]
    ```
    """

    config_class = DreamLIPConfig
    config: DreamLIPConfig
    output_class = DreamLIPOutput
    _keep_in_fp32_modules_strict = ["logit_scale", "logit_scale_local"]

    has_patch_features = True

    @property
    def trains_patches(self) -> bool:
        return self.config.use_grouping_loss

    def add_modules(self) -> None:
        config = self.config
        self.patch_projection = self.logit_scale_local = None
        if config.use_grouping_loss:
            self.patch_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
            self.logit_scale_local = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))

    def get_patch_features(
        self,
        pixel_values: torch.Tensor,
        normalize: bool = True,
        interpolate_pos_encoding: bool = False,
        guide_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Patches in the joint space, `[N, M, D]`, row by row of the image, L2-normalised unless told otherwise.

        By `patch_projection`; a model without a grouping loss has none and takes `visual_projection`, which was
        trained on the class token (the peers' training-free protocol).

        Args:
            pixel_values: `[N, 3, H, W]`.
            interpolate_pos_encoding: accept another image size than the configured one.
            guide_embeds: see `get_image_features`.
        """
        if FinerVision.of(self.config) is None and guide_embeds is None:
            vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        else:
            vision = self.get_image_features(pixel_values, interpolate_pos_encoding, guide_embeds=guide_embeds)
        features = self._patches_of(vision)
        return F.normalize(features, dim=-1) if normalize else features

    def patch_similarity(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """Where each text is in each image: cosines of texts and patches, `[N, C, h, w]` in patches.

        Args:
            pixel_values: `[N, 3, H, W]`.
            input_ids, attention_mask: `[C, L]`.
            interpolate_pos_encoding: accept another image size than the configured one.
        """
        patches = self.get_patch_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        texts = self.encode_text(input_ids, attention_mask)
        grid = self.patch_grid(*pixel_values.shape[-2:])
        return torch.einsum("nmd,cd->ncm", patches, texts).unflatten(-1, grid)

    def embed(self, pixel_values: torch.Tensor | None = None, *args, **kwargs) -> DreamLIPEmbeddings:
        """First public step: inputs to embeddings, see `DualEncoderModel.embed`; patches too for the grouping loss."""
        found = DreamLIPEmbeddings(**super().embed(pixel_values, *args, **kwargs))
        if self.config.use_grouping_loss and pixel_values is not None:
            patches = self._patches_of(found.vision_model_output)
            found["patch_embeds"] = F.normalize(patches, dim=-1)
        return found

    def contrast(
        self, embeddings: DreamLIPEmbeddings, *, caption_owner: torch.Tensor | None = None, **targets
    ) -> dict[str, torch.Tensor]:
        """Second public step: embeddings to loss, over the batches of all processes.

        Args:
            embeddings: `image_embeds [N, D]`, `text_embeds [N K, D]` (the K captions of the first image, then those
                of the second, ...), and `patch_embeds [N, M, D]` with a grouping loss.
            caption_owner: `[N K]`, image of each caption; only checked, since K captions in order belong to an image.
                With -1 for each false caption that stands among `text_embeds`: those are negative for every image,
                but are tied to no patches.
            targets: of `multi_positive_loss`, for the sigmoid loss; DreamLIP's own has no use for them.

        Returns:
            `loss` and `statistics`; `positives [2, P]` with the sigmoid loss.

        Raises:
            ValueError: not K captions for each image.
        """
        config, images = self.config, embeddings.image_embeds
        texts, caption_owner, negatives = apart_from_negatives(embeddings.text_embeds, caption_owner)
        owner = default_owners(len(images), len(texts), images.device)
        if caption_owner is not None and not torch.equal(caption_owner.to(owner.device), owner):
            raise ValueError(
                f"DreamLIP needs equally many captions for each of the {len(images)} images, in their order; "
                f"got caption_owner {caption_owner.tolist()}."
            )
        options = {"tile_size": config.loss_tile_size, "negatives": negatives}
        captions, texts, output, found = texts, texts.unflatten(0, (len(images), -1)), {}, {}
        if config.contrastive_loss == "sigmoid":
            output = self.multi_positive_loss(images, captions, caption_owner=owner, negatives=negatives, **targets)
            found["multi_caption_loss"] = output["loss"]
        else:
            found["multi_caption_loss"] = slot_softmax_loss(images, texts, self.logit_scale, **options)
        loss = config.multi_caption_weight * found["multi_caption_loss"]
        if config.use_grouping_loss:
            found["grouping_loss"] = grouping_loss(
                texts,
                embeddings.patch_embeds,
                self.logit_scale_local,
                negatives=config.grouping_negatives,
                normalization=config.grouping_normalization,
                threshold=config.grouping_threshold,
                max_negatives=config.max_grouping_negatives,
                tile_size=config.loss_tile_size,
            )
            loss = loss + config.grouping_loss_weight * found["grouping_loss"]
        if config.use_circle_loss:
            found["circle_loss"] = circle_loss(images, texts, **options)
            loss = loss + found["circle_loss"]
        statistics = output.get("statistics", {}) | {name: value.detach() for name, value in found.items()}
        if config.use_grouping_loss:
            statistics["grouping_scale"] = self.logit_scale_local.detach().exp()
        return output | {"loss": loss, "statistics": statistics}

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float = 100.0) -> None:
        """Keep both inverse temperatures in [1, maximum]; called after every optimizer step."""
        super().clamp_logit_scale(maximum)
        if self.logit_scale_local is not None:
            self.logit_scale_local.clamp_(0.0, float(torch.tensor(maximum).log()))

    def _can_pool(self, tower) -> bool:
        """The grouping loss reads all patches, so that the last layer must compute them in training."""
        reads_patches = self.training and self.config.use_grouping_loss and tower is self.config.vision_config
        return super()._can_pool(tower) and not reads_patches

    def _patches_of(self, vision: BaseModelOutputWithPooling) -> torch.Tensor:
        """`[N, M, D]`, not normalised: of all scales with finer vision, else of the tower's last states."""
        if isinstance(vision, FinerVisionOutput):
            return vision.patch_features
        return self.project_patches(vision.last_hidden_state)

    def project_patches(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """`[N, 1 + M, width]` to `[N, M, D]`; CLIP's tower norms its class token only."""
        if self.patch_projection is None:
            return super().project_patches(last_hidden_state)
        return self.patch_projection(self.vision_model.post_layernorm(last_hidden_state[:, 1:]))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DreamLIPModel) and module.patch_projection is not None:
            init.normal_(module.patch_projection.weight, std=self.config.vision_config.hidden_size**-0.5)
            init.constant_(module.logit_scale_local, self.config.logit_scale_init_value)


__all__ = ["DreamLIPModel", "DreamLIPOutput"]
