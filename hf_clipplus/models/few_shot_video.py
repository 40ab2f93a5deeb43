"""What the few-shot video models share: towers, features of frames and class texts, episodes, stored support sets.

A variant says how features become prototypes and queries, how those are scored by text and by both, and what is
learned: `represent_supports`, `represent_queries`, `build_prototypes`, `text_logits`, `combine` and `episode_losses`.
`forward`, `encode_support`, `classify`, the pipelines and the evaluation on cached features are built on these.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.utils.generic import can_return_tuple

from hf_clipplus.ops.alignment import frame_distances, otam, otam_path
from hf_clipplus.ops.few_shot_video import prototype_distances

from .clip_resnet import CLIPResNetModel
from .configuration_few_shot_video import INFERENCE_MODES, FewShotVideoConfig
from .evaluation_mode import evaluation_mode
from .few_shot_video_data import EpisodeLabels, FewShotVideoOutput, StoredSupport, SupportSet, labelled_episode
from .pooled_layer import allow_pooling, can_pool, first_positions
from .temporal_cross_transformer import TupleLayers
from .temporal_layer import TemporalLayer

VISION_TOWERS = {"clip_vision_model": CLIPVisionModel, "clipplus_clip_resnet": CLIPResNetModel}
MISSING_TEXTS = "the class texts are missing: give class_input_ids (or class_embeds) and support_class_ids."
KEPT_CLASS_LISTS = 4  # class lists whose text features are kept: train, val and test, and one of a user's


class FewShotVideoPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and capabilities."""

    config_class = FewShotVideoConfig
    config: FewShotVideoConfig
    base_model_prefix = "clipplus"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = [
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
        "CLIPVisionEmbeddings",
        "CLIPResNetBlock",
        "TemporalLayer",
    ]
    _can_record_outputs = {"hidden_states": CLIPEncoderLayer, "attentions": CLIPAttention}
    _keys_to_ignore_on_load_unexpected = [r"^logit_scale$", r"^logit_bias$"]  # of a CLIP checkpoint
    accepts_loss_kwargs = False  # the loss is a mean of ours; Trainer must not rescale it

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: see `models.dual_encoder.DualEncoderPreTrainedModel.is_custom_code`."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TemporalLayer | TupleLayers):  # PyTorch's own start, as published
            for linear in (each for each in module.children() if isinstance(each, nn.Linear)):
                init.kaiming_uniform_(linear.weight, a=5**0.5)
                if linear.bias is not None:
                    init.uniform_(linear.bias, -(linear.in_features**-0.5), linear.in_features**-0.5)
        elif isinstance(module, FewShotVideoModel):
            for projection in (module.visual_projection, module.text_projection):
                if isinstance(projection, nn.Linear):
                    std = projection.in_features**-0.5 * self.config.initializer_factor
                    init.normal_(projection.weight, mean=0.0, std=std)
        elif isinstance(module, StoredSupport):
            init.zeros_(module.features)
            init.zeros_(module.text_embeds)
            init.copy_(module.labels, torch.arange(len(module.labels)) % len(module.text_embeds))


class FewShotVideoModel(FewShotVideoPreTrainedModel):
    """Two CLIP towers that compare videos with a few labelled ones. Keys of the towers are those of `CLIPModel`."""

    def __init__(self, config: FewShotVideoConfig):
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.text_model = CLIPTextModel._from_config(text)
        self.vision_model = VISION_TOWERS[vision.model_type]._from_config(vision)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Identity()
        if not config.has_resnet:
            allow_pooling(self.vision_model)
            self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.support = None
        if config.support_shape is not None:
            self.support = StoredSupport(*config.support_shape, config.num_labels, config.projection_dim)
        self._class_lists: list[tuple[tuple, Tensor, Tensor]] = []

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, where loaded weights are trained whatever `__init__` said of them."""
        found = super().from_pretrained(*args, **kwargs)
        (found[0] if isinstance(found, tuple) else found).freeze_towers()
        return found

    def freeze_towers(self) -> None:
        """Take out of training what the configuration freezes; a variant calls it at the end of `__init__`."""
        if self.config.freeze_text:
            self.text_model.requires_grad_(False)
            self.text_projection.requires_grad_(False)
        if self.config.freeze_vision:
            self.vision_model.requires_grad_(False)
            self.visual_projection.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    # features

    def frame_features(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Projected features of every frame, not normalised: `[..., T, 3, H, W]` -> `[..., T, D]`."""
        if pixel_values.ndim < 5:
            raise ValueError(
                f"expected videos [..., V, T, 3, H, W], got {list(pixel_values.shape)}: a single video needs "
                "a leading dimension of 1."
            )
        leading = pixel_values.shape[:-3]
        frames = pixel_values.flatten(0, -4)
        if can_pool(self.config, self.config.vision_config) and not any(name.startswith("output_") for name in kwargs):
            kwargs["pooled_positions"] = first_positions(frames)
        return self.visual_projection(self.vision_model(frames, **kwargs).pooler_output).unflatten(0, leading)

    def encode_classes(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features of class texts, `[C, L]` -> `[C, D]`, not normalised.

        With a frozen text tower, without gradient and kept: the same ids cost nothing at the next step.
        """
        if not self.config.freeze_text or torch.is_inference_mode_enabled():  # what is kept must serve training too
            return self._text_features(input_ids, attention_mask)
        weights = list(self.text_model.parameters()) + [self.text_projection.weight]
        state = (weights[0].dtype, weights[0].device, tuple(weight._version for weight in weights))
        for known, ids, embeds in self._class_lists:
            if known == state and ids.shape == input_ids.shape and torch.equal(ids, input_ids):
                return embeds
        with evaluation_mode(self.text_model):
            embeds = self._text_features(input_ids, attention_mask)
        self._class_lists = [(state, input_ids.clone(), embeds), *self._class_lists][:KEPT_CLASS_LISTS]
        return embeds

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.text_projection(self.text_model(input_ids, attention_mask=attention_mask).pooler_output)

    # what a variant says

    @property
    def text_in_tower(self) -> bool:
        """Whether the vision tower sees the class text of a support video (`frame_features(..., text_embeds=...)`)."""
        return False

    def represent_supports(self, frames: Tensor, text_embeds: Tensor | None, *, shots: int) -> Tensor:
        """What is kept of support videos, `[..., V, T, D]`: all that depends on one video and its class alone.

        Args:
            frames: `[..., V, T, D]` from `frame_features`.
            text_embeds: `[..., V, D]`, features of each video's own class text.
            shots: the largest number of videos of a class.
        """
        raise NotImplementedError

    def represent_queries(self, frames: Tensor) -> Tensor:
        """What is kept of query videos, `[..., V, T, D]`."""
        raise NotImplementedError

    def build_prototypes(
        self, features: Tensor, labels: Tensor, text_embeds: Tensor | None, classes: int, *, shots: int
    ) -> Tensor:
        """Prototypes `[..., R, T, D]` of represented supports; R is N, or S where `prototype_labels` says so.

        Args:
            features: `[..., S, T, D]` from `represent_supports`.
            labels: `[..., S]`.
            text_embeds: `[..., N, D]`, features of the class texts.
            classes, shots: N, and the largest number of videos of a class.
        """
        raise NotImplementedError

    def prototype_labels(self, labels: Tensor, classes: int) -> Tensor:
        """The class of each row that `build_prototypes` gives, `[..., R]`; here one row for each class.

        Args:
            labels: `[..., S]` of the support videos; classes: N.
        """
        return torch.arange(classes, device=labels.device).expand(*labels.shape[:-1], -1)

    def score(
        self,
        queries: Tensor,
        prototypes: Tensor,
        labels: Tensor,
        *,
        query_means: Tensor | None = None,
        text_embeds: Tensor | None = None,
        mode: str | None = None,
    ) -> Tensor:
        """Logits `[..., Q, N]`.

        Args:
            queries: `[..., Q, T, D]` from `represent_queries`.
            prototypes: `[..., R, T, D]` from `build_prototypes`; labels: `[..., R]` from `prototype_labels`.
            query_means: `[..., Q, D]`, means over time of `frame_features`; text_embeds: `[..., N, D]`. For modes
                that use text.
            mode: of inference; None takes the configured one.

        Raises:
            ValueError: unknown mode, or texts missing.
        """
        mode = mode or self.config.inference_mode
        if mode not in INFERENCE_MODES:
            raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(INFERENCE_MODES)}.")
        if mode == "visual":
            return -self.distances(queries, prototypes, labels)
        if query_means is None or text_embeds is None:
            raise ValueError(f"mode={mode!r} needs the class texts.")
        text = self.text_logits(query_means, text_embeds)
        if mode == "text":
            return F.log_softmax(text, dim=-1)
        return self.combine(text, self.distances(queries, prototypes, labels))

    def distances(self, queries: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
        """`[..., Q, N]` distances of represented queries to the classes by the configured metric.

        Args:
            queries: `[..., Q, T, D]`.
            prototypes: `[..., R, T, D]`; labels: `[..., R]`, the class of each; here row n is class n.
        """
        config = self.config
        return prototype_distances(
            queries,
            prototypes,
            alignment=config.alignment,
            eps=config.cosine_eps,
            lam=config.otam_lambda,
            both_directions=config.both_directions,
        )

    def text_logits(self, means: Tensor, text_embeds: Tensor) -> Tensor:
        """`[..., V, N]`: scaled cosines of videos, `[..., V, D]` means over time, and class texts `[..., N, D]`."""
        raise NotImplementedError

    def combine(self, text_logits: Tensor, distances: Tensor) -> Tensor:
        """`[..., Q, N]` log-probabilities of the mode "combined"."""
        raise NotImplementedError

    def episode_losses(
        self,
        logits: Tensor,
        support_means: Tensor,
        query_means: Tensor,
        labels: EpisodeLabels,
        class_embeds: Tensor | None,
        text_embeds: Tensor | None,
    ) -> dict[str, Tensor]:
        """`loss`, its parts and `class_logits`, as far as what is given allows.

        Args:
            logits: `[E, Q, N]` of `score` in the mode "visual".
            support_means: `[E, S, D]`, query_means: `[E, Q, D]`, means over time of `frame_features`.
            labels: see `EpisodeLabels`.
            class_embeds: `[C, D]`, all class texts given; text_embeds: `[E, N, D]`, those of the episodes.
        """
        raise NotImplementedError

    # episodes

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
        if support_labels is None:
            raise ValueError("support_labels are missing.")
        if class_embeds is None and class_input_ids is not None:
            class_embeds = self.encode_classes(class_input_ids, class_attention_mask)
        if support_class_ids is not None and class_embeds is None:
            raise ValueError("support_class_ids are given without class_input_ids or class_embeds.")
        seen = {}
        if self.text_in_tower and support_features is None:
            if support_class_ids is None:
                raise ValueError(MISSING_TEXTS)
            seen["text_embeds"] = class_embeds[support_class_ids]
        support = self._features("support", support_pixel_values, support_features, **seen, **kwargs)
        queries = self._features("query", query_pixel_values, query_features, **kwargs)
        labels = (support_labels, query_labels, support_class_ids, query_class_ids)
        single = support.ndim == 3
        if single:
            support, queries = support[None], queries[None]
            labels = (None if value is None else value[None] for value in labels)
        output = self._episodes(support, queries, EpisodeLabels(*labels), class_embeds, mode)
        if single:
            output = {key: value if value is None or not value.ndim else value[0] for key, value in output.items()}
        return FewShotVideoOutput(**output)

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
        labels: EpisodeLabels,
        class_embeds: Tensor | None,
        mode: str | None,
    ) -> dict[str, Tensor | None]:
        classes, shots, ids = labelled_episode(labels.support, labels.query, labels.support_class_ids)
        text = None if ids is None else class_embeds[ids]  # [E, N, D]
        own_text = None if ids is None else class_embeds[labels.support_class_ids]
        represented = self.represent_supports(support, own_text, shots=shots)
        prototypes = self.build_prototypes(represented, labels.support, text, classes, shots=shots)
        rows = self.prototype_labels(labels.support, classes)
        found, means = self.represent_queries(queries), queries.mean(-2)
        mode = "visual" if self.training else mode or self.config.inference_mode
        texts = {"query_means": means, "text_embeds": text}
        visual = logits = self.score(found, prototypes, rows, **texts, mode=mode)
        if mode != "visual" and labels.query is not None:
            visual = self.score(found, prototypes, rows, mode="visual")
        output = {"logits": logits, "prototypes": prototypes, "query_features": found}
        return output | self.episode_losses(visual, support.mean(-2), means, labels, class_embeds, text)

    def _classify_forward(
        self, pixel_values: Tensor, labels: Tensor | None, mode: str | None, **kwargs: Any
    ) -> FewShotVideoOutput:
        frames = self.frame_features(pixel_values, **kwargs)
        logits = self._score_against(frames, self.stored_support(), mode)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return FewShotVideoOutput(loss=loss, logits=logits)

    # support sets

    @torch.no_grad()
    def encode_support(
        self, videos: Any, class_names: Sequence[str], *, processor: Any, batch_size: int = 16
    ) -> SupportSet:
        """Turn labelled videos into a support set, and keep it in the model: from now on it classifies by it.

        Args:
            videos: S videos in any form that the processor takes, or pixel values `[S, T, 3, H, W]`.
            class_names: S names, the class of each video; classes are numbered in the order of first appearance.
            processor: of this model.
            batch_size: videos in one pass of the vision tower.

        Returns:
            The support set; `classify(video, support)` takes it also after another one was encoded.

        Raises:
            ValueError: another number of names than videos, an empty name, or no video at all.
        """
        videos = videos if isinstance(videos, Tensor) else list(videos)
        names = list(dict.fromkeys(class_names))
        if len(videos) != len(class_names) or not len(videos):
            raise ValueError(
                f"{len(videos)} support videos but {len(class_names)} class names: give one name a video."
            )
        if any(not isinstance(name, str) or not name.strip() for name in names):
            raise ValueError(f"a class name is empty or no text: {names}.")
        device = self.device
        labels = torch.tensor([names.index(name) for name in class_names], device=device)
        inputs = processor(text=processor.class_texts(names), return_tensors="pt")
        with evaluation_mode(self):
            text = self.encode_classes(inputs["input_ids"].to(device), inputs["attention_mask"].to(device))
            seen = text[labels] if self.text_in_tower else None
            frames = self._frames_of(videos, processor, batch_size, text_embeds=seen)
            shots = int(torch.bincount(labels).max())
            rows = self.represent_supports(frames, text[labels], shots=shots)
            prototypes = self.build_prototypes(rows, labels, text, len(names), shots=shots)
        support = SupportSet(prototypes, self.prototype_labels(labels, len(names)), text, names)
        self.set_support(support)
        return support

    def set_support(self, support: SupportSet | None) -> None:
        """Carry this support set: it is saved and pushed with the model, and its classes become the labels."""
        if support is None:
            self.support, self.config.support_shape = None, None
            return
        rows, frames, dim = support.features.shape
        self.config.support_shape = [rows, frames]
        self.config.id2label = dict(enumerate(support.class_names))
        self.config.label2id = {name: number for number, name in enumerate(support.class_names)}
        self.support = StoredSupport(rows, frames, len(support.class_names), dim)
        for name in ("features", "labels", "text_embeds"):
            setattr(self.support, name, getattr(support, name).detach().clone())
        self.support.to(self.device)

    def stored_support(self) -> SupportSet:
        """The support set that the model carries.

        Raises:
            ValueError: there is none.
        """
        if self.support is None:
            raise ValueError(
                "the model has no support set to classify by: call encode_support(videos, class_names, "
                "processor=processor) first, or give support_pixel_values with their labels."
            )
        kept, names = self.support, [self.config.id2label[number] for number in range(self.config.num_labels)]
        return SupportSet(kept.features, kept.labels, kept.text_embeds, names)

    @torch.no_grad()
    def classify(
        self,
        videos: Any,
        support: SupportSet | None = None,
        *,
        processor: Any = None,
        mode: str | None = None,
        batch_size: int = 16,
    ) -> Tensor:
        """Probabilities `[videos, N]` of the support set's classes.

        Args:
            videos: pixel values `[V, T, 3, H, W]`, or, with a processor, one video or a list in any form it takes.
            support: from `encode_support`; None takes the one that the model carries.
            processor: of this model, needed for anything but pixel values.
            mode: of inference; None takes the configured one.
            batch_size: videos in one pass of the vision tower.
        """
        support = (support or self.stored_support()).to(self.device)
        with evaluation_mode(self):
            frames = self._frames_of(videos, processor, batch_size)
            return self._score_against(frames, support, mode).softmax(-1)

    @torch.no_grad()
    def alignment_path(
        self, video: Any, class_name: str | None = None, support: SupportSet | None = None, *, processor: Any = None
    ) -> tuple[str, Tensor]:
        """How the frames of one video match those of a class: its name and `[T_query, T_prototype]`, see `otam_path`.

        Args:
            video: one video as `classify` takes it.
            class_name: None takes the best class.
            support, processor: see `classify`.
        """
        support = (support or self.stored_support()).to(self.device)
        with evaluation_mode(self):
            frames = self._frames_of(video, processor, 1)
            if len(frames) != 1:
                raise ValueError(f"expected one video to align, got {len(frames)}.")
            best = int(self._score_against(frames, support, "visual").argmax())
            best = best if class_name is None else support.class_names.index(class_name)
            queries = self.represent_queries(frames)
            rows = support.features[support.labels == best]
            distances = frame_distances(queries, rows, eps=self.config.cosine_eps)[0]  # [rows of the class, T, T']
        options = {"lam": self.config.otam_lambda, "both_directions": self.config.both_directions}
        nearest = distances[otam(distances, **options).argmin()]
        return support.class_names[best], otam_path(nearest, **options)

    def _score_against(self, frames: Tensor, support: SupportSet, mode: str | None) -> Tensor:
        return self.score(
            self.represent_queries(frames),
            support.features,
            support.labels,
            query_means=frames.mean(-2),
            text_embeds=support.text_embeds,
            mode=mode,
        )

    def _frames_of(self, videos: Any, processor: Any, batch_size: int, *, text_embeds: Tensor | None = None) -> Tensor:
        """Frame features `[V, T, D]` of videos in any form, a few at a time; with texts for the tower, `[V, D]`."""
        if not isinstance(videos, Tensor):
            if processor is None:
                raise ValueError("videos that are no pixel values need processor=..., the processor of this model.")
            videos = processor(videos=videos, return_tensors="pt")["pixel_values"]
        weight = self.text_projection.weight
        parts = [part.to(weight.device, weight.dtype) for part in videos.split(batch_size)]
        if text_embeds is None:
            return torch.cat([self.frame_features(part) for part in parts])
        texts = text_embeds.split(batch_size)
        return torch.cat([self.frame_features(*pair) for pair in zip(parts, texts, strict=True)])


__all__ = ["EpisodeLabels", "FewShotVideoModel", "FewShotVideoOutput", "FewShotVideoPreTrainedModel", "SupportSet"]
