"""CLIP-FSAR: few-shot video classification with CLIP, prototypes modulated by the class's text (2303.02982)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hf_clipplus.ops.alignment import average_by_class
from hf_clipplus.ops.few_shot_video import combined_log_scores, video_losses, video_text_logits

from ..few_shot_video import MISSING_TEXTS, FewShotVideoModel, FewShotVideoPreTrainedModel
from ..few_shot_video_data import EpisodeLabels
from ..temporal_layer import TemporalLayer
from .configuration_clip_fsar import CLIPFSARConfig


class CLIPFSARTemporalTransformer(nn.Module):
    """The module g that supports and queries share: no positions, no mask, no norm at its end."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            TemporalLayer(
                config.projection_dim,
                config.temporal_heads,
                config.temporal_ffn_dim,
                attention_dropout=config.attention_dropout,
                ffn_dropout=config.ffn_dropout,
            )
            for _ in range(config.temporal_depth)
        )

    def forward(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        """`[..., T, D]` frames, with `[..., D]` text as one more token that is dropped again; gives `[..., T, D]`."""
        tokens = frames if text is None else torch.cat([frames, text.unsqueeze(-2).to(frames.dtype)], dim=-2)
        leading = tokens.shape[:-2]
        tokens = tokens.flatten(0, -3)
        for number, layer in enumerate(self.layers, start=1):
            last = text is not None and number == len(self.layers)  # what it would make of the text is not used
            tokens = layer(tokens[:, :-1], tokens) if last else layer(tokens)
        return tokens.unflatten(0, leading)[..., : frames.shape[-2], :]


class CLIPFSARPreTrainedModel(FewShotVideoPreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = CLIPFSARConfig
    config: CLIPFSARConfig
    _keep_in_fp32_modules_strict = ["video_text_scale"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CLIPFSARForFewShotVideoClassification):
            init.constant_(module.video_text_scale, self.config.text_scale_init_value)


class CLIPFSARForFewShotVideoClassification(CLIPFSARPreTrainedModel, FewShotVideoModel):
    """Classifies videos by a few labelled ones and their class names.

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoModelForVideoClassification, AutoProcessor

    >>> model = AutoModelForVideoClassification.from_pretrained("org/clip-fsar-plus")
    >>> processor = AutoProcessor.from_pretrained("org/clip-fsar-plus")
    >>> model.encode_support(videos, ["pour", "pour", "fold"], processor=processor)  # paths, frames or arrays
    >>> model.classify("new.mp4", processor=processor)  # [1, 2] probabilities of "pour" and "fold"
    >>> model.push_to_hub("org/pour-or-fold")  # with the support set: an ordinary video classifier
    ```
    """

    def __init__(self, config: CLIPFSARConfig):
        super().__init__(config)
        self.temporal_transformer = CLIPFSARTemporalTransformer(config)
        self.video_text_scale = nn.Parameter(torch.tensor(float(config.text_scale_init_value)))
        self.freeze_towers()
        self.post_init()

    def represent_supports(self, frames: Tensor, text_embeds: Tensor | None, *, shots: int) -> Tensor:
        if shots > 1 and self.config.merge == "before":
            return frames
        return self.temporal_transformer(frames, self._token(text_embeds))

    def represent_queries(self, frames: Tensor) -> Tensor:
        return self.temporal_transformer(frames)

    def build_prototypes(
        self, features: Tensor, labels: Tensor, text_embeds: Tensor | None, classes: int, *, shots: int
    ) -> Tensor:
        means = average_by_class(features, labels, classes)
        if shots > 1 and self.config.merge == "before":
            return self.temporal_transformer(means, self._token(text_embeds))
        return means

    def text_logits(self, means: Tensor, text_embeds: Tensor) -> Tensor:
        return video_text_logits(means, text_embeds, self.video_text_scale, eps=0.0)

    def combine(self, text_logits: Tensor, distances: Tensor) -> Tensor:
        beta, divisor = self.config.combine_beta, self.config.combine_divisor
        return F.log_softmax(combined_log_scores(text_logits, distances, beta=beta, divisor=divisor), dim=-1)

    def _token(self, text_embeds: Tensor | None) -> Tensor | None:
        if not self.config.modulate:
            return None
        if text_embeds is None:
            raise ValueError(f"{MISSING_TEXTS} Or set config.modulate=False.")
        return text_embeds

    def episode_losses(
        self,
        logits: Tensor,
        support_means: Tensor,
        query_means: Tensor,
        labels: EpisodeLabels,
        class_embeds: Tensor | None,
        text_embeds: Tensor | None,
    ) -> dict[str, Tensor]:
        output = {}
        if class_embeds is not None:
            videos, eps = torch.cat([support_means, query_means], dim=1), self.config.cosine_eps
            output["class_logits"] = video_text_logits(videos, class_embeds, self.video_text_scale, eps=eps)
        if labels.query is None:
            return output
        if labels.support_class_ids is None or labels.query_class_ids is None:
            loss = few_shot = F.cross_entropy(logits.flatten(0, 1), labels.query.flatten())
            return output | {"loss": loss, "loss_few_shot": few_shot}
        ids = torch.cat([labels.support_class_ids, labels.query_class_ids], dim=1)
        weight = self.config.video_text_weight
        loss, few_shot, video_text = video_losses(logits, labels.query, output["class_logits"], ids, weight)
        return output | {"loss": loss, "loss_few_shot": few_shot, "loss_video_text": video_text}


__all__ = ["CLIPFSARForFewShotVideoClassification"]
