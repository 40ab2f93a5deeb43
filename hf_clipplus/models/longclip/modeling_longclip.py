"""Long-CLIP: CLIP for long texts, trained on long captions, and on short ones by the images' primary components."""

import torch
from torch import nn
from transformers import initialization as init

from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings, DualEncoderModel
from hf_clipplus.ops.components import primary_component_losses
from hf_clipplus.ops.contrastive import softmax_loss
from hf_clipplus.ops.position import KEPT, RATIO
from hf_clipplus.ops.positives import apart_from_negatives, default_owners

from .configuration_longclip import LongCLIPConfig


class LongCLIPModel(DualEncoderModel):
    """CLIP towers with Long-CLIP's table of positions and losses (2403.15378).

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoProcessor

    >>> model = hf_clipplus.LongCLIPModel.from_clip("openai/clip-vit-base-patch16")
    >>> stock = AutoProcessor.from_pretrained("openai/clip-vit-base-patch16")
    >>> processor = hf_clipplus.LongCLIPProcessor(stock.image_processor, stock.tokenizer)
    >>> processor.tokenizer.model_max_length = model.config.text_config.max_position_embeddings  # 248
    >>> batch = processor(images=[cat, dog], text=[[story_1, "a cat"], [story_2, "a dog"]], return_tensors="pt")
    >>> loss = model(**batch, return_loss=True).loss  # a real batch has more than 33 images, see `components`
    ```
    """

    config_class = LongCLIPConfig
    config: LongCLIPConfig

    def add_modules(self) -> None:
        self.text_model.embeddings.position_embedding.register_forward_hook(self._cut_gradient_of_frozen_rows)
        self.segment_attention = None
        if self.config.segment_pooling == "attention":
            self.segment_attention = nn.Linear(self.config.projection_dim, 1, bias=False)

    @classmethod
    def from_clip(cls, name: str, *, kept: int = KEPT, ratio: int = RATIO, **kwargs) -> "LongCLIPModel":
        """A published CLIP, or a model of this zoo with CLIP towers, with a stretched table of positions.

        Args:
            name: folder or Hub id.
            kept, ratio: see `ops.position.stretch_positions`; 77 positions become 248.
            kwargs: of `from_pretrained`, fields of `LongCLIPConfig` among them.
        """
        model = cls.from_pretrained(name, **{"frozen_positions": kept} | kwargs)
        model.extend_context(kept=kept, ratio=ratio)
        return model

    def contrast(
        self, embeddings: DualEncoderEmbeddings, *, caption_owner: torch.Tensor | None = None, **_
    ) -> dict[str, torch.Tensor]:
        """Second public step: embeddings to loss; negatives are those of all processes.

        Args:
            embeddings: `image_embeds [N, D]` and `text_embeds [2 N, D]`: the long and the short caption of the first
                image, then those of the second, ... With `[N, D]` (long captions alone) there is no second loss.
            caption_owner: `[2 N]`, image of each caption; only checked. With -1 for each false caption that stands
                among `text_embeds`: negatives of the images in the loss of the long captions.

        Returns:
            `loss` and `statistics`.

        Raises:
            ValueError: neither one nor two captions per image, or a batch too small for the components.
        """
        config, images = self.config, embeddings.image_embeds
        texts, caption_owner, negatives = apart_from_negatives(embeddings.text_embeds, caption_owner)
        owner = default_owners(len(images), len(texts), images.device)
        if len(texts) > 2 * len(images) or (
            caption_owner is not None and not torch.equal(caption_owner.to(owner.device), owner)
        ):
            raise ValueError(
                f"Long-CLIP needs the long and the short caption of each of the {len(images)} images, in their order, "
                f"or the long one alone; got {len(texts)} captions"
                + ("." if caption_owner is None else f" of images {caption_owner.tolist()}.")
            )
        options = {"label_smoothing": config.label_smoothing, "tile_size": config.loss_tile_size}
        options["negatives"] = negatives
        if len(texts) == len(images):
            loss = softmax_loss(images, texts, owner, self.logit_scale, **options)
            return {"loss": loss, "statistics": {"long_loss": loss.detach()}}
        if len(images) <= config.components + 1:
            raise ValueError(
                f"{len(images)} images of a process span at most {len(images) - 1} directions, so keeping "
                f"{config.components} components changes nothing: use a batch of more than {config.components + 1} "
                "images per process (dataloader_drop_last=True for the last one), or fewer components."
            )
        long, short = primary_component_losses(
            images, texts[0::2], texts[1::2], self.logit_scale, components=config.components, **options
        )
        statistics = {"long_loss": long.detach(), "short_loss": short.detach()}
        return {"loss": long + config.short_loss_weight * short, "statistics": statistics}

    def segment_weights(
        self, segment_embeds: torch.Tensor, segment_mask: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """How much each segment counts in its text, by `config.segment_pooling`; see `SegmentedTextMixin`."""
        if self.config.segment_pooling == "length":
            return (segment_mask * tokens).to(segment_embeds.dtype)
        if self.segment_attention is None:
            return super().segment_weights(segment_embeds, segment_mask, tokens)
        scores = self.segment_attention(segment_embeds).squeeze(-1)
        return scores.masked_fill(~segment_mask, -torch.inf).softmax(-1)

    def no_weight_decay(self) -> set[str]:
        """The table of positions, whose frozen rows would shrink otherwise."""
        return {"text_model.embeddings.position_embedding.weight"} if self.config.frozen_positions else set()

    def _cut_gradient_of_frozen_rows(self, module: nn.Module, args: tuple, rows: torch.Tensor) -> torch.Tensor:
        return torch.where(args[0].unsqueeze(-1) < self.config.frozen_positions, rows.detach(), rows)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LongCLIPModel) and module.segment_attention is not None:
            init.zeros_(module.segment_attention.weight)


__all__ = ["LongCLIPModel"]
