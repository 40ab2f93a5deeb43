"""CLIP-FSAR: few-shot video classification with CLIP, prototypes modulated by the class's text (2303.02982)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple

from hf_clipplus.ops.alignment import average_by_class
from hf_clipplus.ops.few_shot_video import combined_log_scores, prototype_distances, video_losses, video_text_logits

from ..few_shot_video import FewShotVideoModel, FewShotVideoOutput, FewShotVideoPreTrainedModel, labelled_episode
from .configuration_clip_fsar import MODES, CLIPFSARConfig


class CLIPFSARTemporalLayer(GradientCheckpointingLayer):
    """Self-attention with one norm before it, and a feed-forward network with none."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        dim = config.projection_dim
        if dim % config.temporal_heads:
            raise ValueError(f"projection_dim {dim} is no multiple of {config.temporal_heads} temporal_heads.")
        self.heads = config.temporal_heads
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, config.temporal_ffn_dim), nn.Linear(config.temporal_ffn_dim, dim)
        self.attention_dropout, self.ffn_dropout = config.attention_dropout, config.ffn_dropout

    def forward(self, hidden_states: Tensor) -> Tensor:  # [B, L, D]
        normed = self.norm(hidden_states)
        query, keys, values = (
            projection(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        hidden_states = hidden_states + F.dropout(self.out_proj(attended), self.attention_dropout, self.training)
        inner = F.dropout(F.gelu(self.fc1(hidden_states)), self.ffn_dropout, self.training)
        return hidden_states + F.dropout(self.fc2(inner), self.ffn_dropout, self.training)


class CLIPFSARTemporalTransformer(nn.Module):
    """The module g that supports and queries share: no positions, no mask, no norm at its end."""

    def __init__(self, config: CLIPFSARConfig):
        super().__init__()
        self.layers = nn.ModuleList(CLIPFSARTemporalLayer(config) for _ in range(config.temporal_depth))

    def forward(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        """`[..., T, D]` frames, with `[..., D]` text as one more token that is dropped again; gives `[..., T, D]`."""
        tokens = frames if text is None else torch.cat([frames, text.unsqueeze(-2).to(frames.dtype)], dim=-2)
        leading = tokens.shape[:-2]
        tokens = tokens.flatten(0, -3)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.unflatten(0, leading)[..., : frames.shape[-2], :]


class CLIPFSARPreTrainedModel(FewShotVideoPreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = CLIPFSARConfig
    config: CLIPFSARConfig
    _no_split_modules = [*FewShotVideoPreTrainedModel._no_split_modules, "CLIPFSARTemporalLayer"]
    _keep_in_fp32_modules_strict = ["video_text_scale"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CLIPFSARTemporalLayer):  # PyTorch's own start, as published
            for linear in (each for each in module.children() if isinstance(each, nn.Linear)):
                init.kaiming_uniform_(linear.weight, a=5**0.5)
                if linear.bias is not None:
                    init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)
        elif isinstance(module, CLIPFSARForFewShotVideoClassification):
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

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        support_pixel_values: Tensor | None = None,
        support_labels: Tensor | None = None,
        query_pixel_values: Tensor | None = None,
        query_labels: Tensor | None = None,
        class_input_ids: Tensor | None = None,
        class_attention_mask: Tensor | None = None,
        class_embeds: Tensor | None = None,
        support_class_ids: Tensor | None = None,
        query_class_ids: Tensor | None = None,
        support_features: Tensor | None = None,
        query_features: Tensor | None = None,
        labels: Tensor | None = None,
        mode: str | None = None,
        **kwargs: Any,
    ) -> FewShotVideoOutput:
        """Classify the queries of one or several episodes, or videos by the support set that the model carries.

        Args:
            pixel_values: `[B, T, 3, H, W]`, classified by the carried support set; with `labels [B]` also a loss.
            support_pixel_values: `[E, S, T, 3, H, W]`, or without E for one episode, and so below.
            support_labels: `[E, S]` int64, 0..N-1, in any order, classes may have different numbers of videos.
            query_pixel_values: `[E, Q, T', 3, H, W]`.
            query_labels: `[E, Q]`; with them the few-shot loss is computed.
            class_input_ids, class_attention_mask: `[C, L]`, texts of all classes of the split.
            class_embeds: `[C, D]` instead of them.
            support_class_ids, query_class_ids: `[E, S]`, `[E, Q]`, rows of these classes. The support's are needed
                (its text belongs to it); with both the video-text loss is computed.
            support_features, query_features: `[E, S, T, D]`, `[E, Q, T', D]` from `frame_features` instead of pixels.
            mode: "visual", "text" or "combined"; None takes the configured one. Training is always visual.
            kwargs: of the vision tower.

        Returns:
            Logits `-D` ("visual") or log-probabilities.

        Raises:
            ValueError: inputs missing, or labels that do not fit, see `check_episode_labels`.
        """
        if pixel_values is not None:
            return self._classify_forward(pixel_values, labels, mode, **kwargs)
        support = self._features("support", support_pixel_values, support_features, **kwargs)
        queries = self._features("query", query_pixel_values, query_features, **kwargs)
        single = support.ndim == 3
        named = {
            "support_labels": support_labels,
            "query_labels": query_labels,
            "support_class_ids": support_class_ids,
            "query_class_ids": query_class_ids,
        }
        if support_labels is None:
            raise ValueError("support_labels are missing.")
        if single:
            support, queries = support[None], queries[None]
            named = {name: None if value is None else value[None] for name, value in named.items()}
        if class_embeds is None and class_input_ids is not None:
            class_embeds = self.encode_classes(class_input_ids, class_attention_mask)
        output = self._episodes(support, queries, class_embeds, mode, **named)
        if single:
            output = {key: value if value is None or not value.ndim else value[0] for key, value in output.items()}
        return FewShotVideoOutput(**output)

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

    def score(
        self,
        queries: Tensor,
        prototypes: Tensor,
        *,
        query_means: Tensor | None = None,
        text_embeds: Tensor | None = None,
        mode: str | None = None,
    ) -> Tensor:
        mode = mode or self.config.inference_mode
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}.")
        if mode != "text":
            distances = self.distances(queries, prototypes)
        if mode == "visual":
            return -distances
        if query_means is None or text_embeds is None:
            raise ValueError(f"mode={mode!r} needs the class texts.")
        text = video_text_logits(query_means, text_embeds, self.video_text_scale, eps=0.0)
        if mode == "text":
            return F.log_softmax(text, dim=-1)
        beta, divisor = self.config.combine_beta, self.config.combine_divisor
        return F.log_softmax(combined_log_scores(text, distances, beta=beta, divisor=divisor), dim=-1)

    def distances(self, queries: Tensor, prototypes: Tensor) -> Tensor:
        """`[..., Q, N]` distances of represented queries to prototypes by the configured metric."""
        config = self.config
        return prototype_distances(
            queries,
            prototypes,
            alignment=config.alignment,
            eps=config.cosine_eps,
            lam=config.otam_lambda,
            both_directions=config.both_directions,
        )

    def _token(self, text_embeds: Tensor | None) -> Tensor | None:
        if not self.config.modulate:
            return None
        if text_embeds is None:
            raise ValueError(
                "the class texts are missing: give class_input_ids (or class_embeds) and support_class_ids, or set "
                "config.modulate=False."
            )
        return text_embeds

    def _features(self, side: str, pixel_values: Tensor | None, features: Tensor | None, **kwargs: Any) -> Tensor:
        if (pixel_values is None) == (features is None):
            raise ValueError(f"give either {side}_pixel_values or {side}_features.")
        if features is not None:
            return features
        return self.frame_features(pixel_values, **kwargs)

    def _episodes(
        self,
        support: Tensor,  # [E, S, T, D]
        queries: Tensor,  # [E, Q, T', D]
        class_embeds: Tensor | None,
        mode: str | None,
        *,
        support_labels: Tensor,
        query_labels: Tensor | None,
        support_class_ids: Tensor | None,
        query_class_ids: Tensor | None,
    ) -> dict[str, Tensor | None]:
        if support_class_ids is not None and class_embeds is None:
            raise ValueError("support_class_ids are given without class_input_ids or class_embeds.")
        classes, shots, ids = labelled_episode(support_labels, query_labels, support_class_ids)
        text = None if ids is None else class_embeds[ids]  # [E, N, D]
        own_text = None if ids is None else class_embeds[support_class_ids]
        represented = self.represent_supports(support, own_text, shots=shots)
        prototypes = self.build_prototypes(represented, support_labels, text, classes, shots=shots)
        found = self.represent_queries(queries)
        means = queries.mean(-2)
        logits = self.score(
            found,
            prototypes,
            query_means=means,
            text_embeds=text,
            mode="visual" if self.training else mode,
        )
        output = {"logits": logits, "prototypes": prototypes, "query_features": found}
        if class_embeds is not None:
            videos = torch.cat([support.mean(-2), means], dim=1)
            eps = self.config.cosine_eps
            output["class_logits"] = video_text_logits(videos, class_embeds, self.video_text_scale, eps=eps)
        if query_labels is None:
            return output
        if support_class_ids is None or query_class_ids is None:
            loss = few_shot = F.cross_entropy(logits.flatten(0, 1), query_labels.flatten())
            return output | {"loss": loss, "loss_few_shot": few_shot}
        everything = torch.cat([support_class_ids, query_class_ids], dim=1)
        weight = self.config.video_text_weight
        loss, few_shot, video_text = video_losses(logits, query_labels, output["class_logits"], everything, weight)
        return output | {"loss": loss, "loss_few_shot": few_shot, "loss_video_text": video_text}

    def _classify_forward(
        self, pixel_values: Tensor, labels: Tensor | None, mode: str | None, **kwargs: Any
    ) -> FewShotVideoOutput:
        frames = self.frame_features(pixel_values, **kwargs)
        logits = self._score_against(frames, self.stored_support(), mode)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return FewShotVideoOutput(loss=loss, logits=logits)


__all__ = ["CLIPFSARForFewShotVideoClassification"]
