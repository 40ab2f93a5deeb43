"""MA-CLIP: few-shot video classification with adapters inside frozen CLIP (2308.01532).

The model is CLIP's towers, the text-guided prototype module and the metric. The adapters come from PEFT
(`tuners.ma_clip`), or, in a self-contained model, from `config.adapters`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hf_clipplus.ops.alignment import average_by_class
from hf_clipplus.ops.few_shot_video import mixed_log_scores, video_and_text_losses, video_text_logits

from ..few_shot_video import MISSING_TEXTS, FewShotVideoModel, FewShotVideoPreTrainedModel
from ..few_shot_video_data import EpisodeLabels
from ..temporal_cross_transformer import TemporalCrossTransformer
from ..temporal_layer import TemporalLayer
from .adapters_ma_clip import AdaptedEncoderLayer, AdaptedPreLayerNorm, AdapterSettings, adapt_tower, init_linear
from .configuration_ma_clip import MACLIPConfig


class MACLIPPrototypeModule(nn.Module):
    """The text-guided prototype module: one layer over the frames, with the class text as something to look at."""

    def __init__(self, config: MACLIPConfig):
        super().__init__()
        self.mode = config.prototype_mode
        self.layer = TemporalLayer(
            config.projection_dim,
            config.temporal_heads,
            config.temporal_ffn_dim,
            attention_dropout=config.attention_dropout,
            ffn_dropout=config.ffn_dropout,
        )

    def forward(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        """`[..., T, D]` frames, with `[..., D]` text for supports; gives `[..., T, D]`."""
        leading, rows = frames.shape[:-2], frames.flatten(0, -3)
        if text is None:
            return self.layer(rows).unflatten(0, leading)
        token = text.to(frames.dtype).flatten(0, -2)[:, None]
        if self.mode == "text_kv":
            return self.layer(rows, token).unflatten(0, leading)
        both = torch.cat([rows, token], dim=1)
        found = self.layer(both)[:, :-1] if self.mode == "concat_self" else self.layer(rows, both)
        return found.unflatten(0, leading)


class MACLIPPreTrainedModel(FewShotVideoPreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = MACLIPConfig
    config: MACLIPConfig
    _no_split_modules = [*FewShotVideoPreTrainedModel._no_split_modules, "AdaptedEncoderLayer", "MACLIPLayer"]
    _keep_in_fp32_modules_strict = ["logit_scale"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if not isinstance(module, MACLIPForFewShotVideoClassification):
            return
        init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        for part in module.vision_model.modules():  # the tower's own initialisation does not know adapters
            if isinstance(part, AdaptedEncoderLayer):
                for name, linear in part.adapters.items():
                    init_linear(name, linear)
            elif isinstance(part, AdaptedPreLayerNorm):
                init.zeros_(part.temporal_embedding)


class MACLIPForFewShotVideoClassification(MACLIPPreTrainedModel, FewShotVideoModel):
    """Classifies videos by a few labelled ones and their class names.

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoModelForVideoClassification, AutoProcessor

    >>> model = AutoModelForVideoClassification.from_pretrained("org/ma-clip-plus")  # an adapter and its base
    >>> processor = AutoProcessor.from_pretrained("org/ma-clip-plus")
    >>> model.encode_support(videos, ["pour", "pour", "fold"], processor=processor)  # paths, frames or arrays
    >>> model.classify("new.mp4", processor=processor)  # [1, 2] probabilities of "pour" and "fold"
    ```
    """

    def __init__(self, config: MACLIPConfig):
        super().__init__(config)
        dim = config.projection_dim
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.prototype_module = self.temporal_cross_transformer = None
        if config.prototype_mode != "none":
            self.prototype_module = MACLIPPrototypeModule(config)
        if config.alignment == "trx":
            cardinalities = tuple(config.trx_cardinalities)
            self.temporal_cross_transformer = TemporalCrossTransformer(dim, cardinalities, width=config.trx_width)
        if config.adapters is not None:
            adapt_tower(self.vision_model, AdapterSettings(**{"text_dim": dim} | config.adapters))
        self.freeze_towers()
        self.post_init()

    def freeze_towers(self) -> None:
        super().freeze_towers()
        self.logit_scale.requires_grad_(False)
        if self.config.adapters is not None:
            for name, parameter in self.vision_model.named_parameters():
                if ".adapters." in name or name.endswith(".temporal_embedding"):
                    parameter.requires_grad_(True)

    @property
    def trained_modules(self) -> list[str]:
        """Names of the modules outside the towers that are trained; a PEFT adapter saves them beside its own."""
        names = ("prototype_module", "temporal_cross_transformer")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def text_in_tower(self) -> bool:
        return self._any_layer("sees_text")

    def _any_layer(self, quality: str) -> bool:
        """Whether a layer is adapted, by PEFT or by adapters of its own, and has this quality."""
        return any(getattr(layer, quality, False) for layer in self.vision_model.encoder.layers)

    def frame_features(
        self, pixel_values: Tensor, text_embeds: Tensor | None = None, *, has_text: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Projected features of every frame, not normalised: `[..., T, 3, H, W]` -> `[..., T, D]`.

        Args:
            pixel_values: videos.
            text_embeds: `[..., D]`, the class text of each support video, for the adapted layers; None for queries.
            has_text: `[...]` bool, videos that see theirs, so that supports and queries go in one pass.
            kwargs: of the vision tower.
        """
        if self._any_layer("is_adapted") and pixel_values.ndim > 4:
            kwargs["num_frames"] = pixel_values.shape[-4]
            if text_embeds is not None:
                kwargs["text_tokens"] = text_embeds.flatten(0, -2)
                kwargs["has_text"] = None if has_text is None else has_text.flatten()
        return super().frame_features(pixel_values, **kwargs)

    def represent_supports(self, frames: Tensor, text_embeds: Tensor | None, *, shots: int) -> Tensor:
        if self.prototype_module is None:
            return frames
        if text_embeds is None:
            raise ValueError(f'{MISSING_TEXTS} Or set config.prototype_mode="none".')
        return self.prototype_module(frames, text_embeds)

    def represent_queries(self, frames: Tensor) -> Tensor:
        return frames if self.prototype_module is None else self.prototype_module(frames)

    def build_prototypes(
        self, features: Tensor, labels: Tensor, text_embeds: Tensor | None, classes: int, *, shots: int
    ) -> Tensor:
        return features if self._keeps_videos else average_by_class(features, labels, classes)

    def prototype_labels(self, labels: Tensor, classes: int) -> Tensor:
        return labels if self._keeps_videos else super().prototype_labels(labels, classes)

    def distances(self, queries: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
        classes = int(labels.max()) + 1
        if self.config.alignment == "trx":
            return _by_episode(self.temporal_cross_transformer, queries, prototypes, labels, classes)
        found = super().distances(queries, prototypes, labels)
        if not self._keeps_videos:
            return found
        return average_by_class(found.transpose(-1, -2), labels, classes).transpose(-1, -2)

    def text_logits(self, means: Tensor, text_embeds: Tensor) -> Tensor:
        return video_text_logits(means, text_embeds, self.logit_scale.exp(), eps=0.0)

    def combine(self, text_logits: Tensor, distances: Tensor) -> Tensor:
        return mixed_log_scores(text_logits, distances, alpha=self.config.alpha)

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
        if text_embeds is not None:
            output["class_logits"] = self.text_logits(torch.cat([support_means, query_means], dim=1), text_embeds)
        if labels.query is None:
            return output
        if text_embeds is None:
            if self.config.alpha:
                raise ValueError(f"{MISSING_TEXTS} Or set config.alpha=0.")
            loss = F.cross_entropy(logits.flatten(0, 1), labels.query.flatten())
            return output | {"loss": loss, "loss_few_shot": loss}
        both = output["class_logits"].split([support_means.shape[1], query_means.shape[1]], dim=1)
        options = {"alpha": self.config.alpha}
        loss, few_shot, *texts = video_and_text_losses(logits, labels.query, *both, labels.support, **options)
        return output | {"loss": loss, "loss_few_shot": few_shot, "loss_video_text": sum(texts) / 2}

    @property
    def _keeps_videos(self) -> bool:
        """Whether the metric compares with the videos of a class and not with their mean."""
        return self.config.alignment == "trx" or self.config.merge == "distances"


def _by_episode(metric: Callable, queries: Tensor, supports: Tensor, labels: Tensor, classes: int) -> Tensor:
    """A metric of one episode, `[Q, T, D]` and `[S, T, D]` to `[Q, N]`, for any leading dimensions."""
    parts = (each.reshape(-1, *each.shape[-3:]) for each in (queries, supports))
    found = [metric(*each, classes) for each in zip(*parts, labels.reshape(-1, labels.shape[-1]), strict=True)]
    return torch.stack(found).reshape(*queries.shape[:-2], classes)


__all__ = ["MACLIPForFewShotVideoClassification"]
