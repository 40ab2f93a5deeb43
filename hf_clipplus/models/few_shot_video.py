"""What the few-shot video models share: towers, features of frames and class texts, episodes, stored support sets.

A variant says how features become prototypes and queries, and how those are scored: `represent_supports`,
`represent_queries`, `build_prototypes` and `score`. `forward`, `encode_support`, `classify`, the pipelines and the
evaluation on cached features are built on these four.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.utils import ModelOutput

from hf_clipplus.ops.alignment import frame_distances, otam_path
from hf_clipplus.ops.few_shot_video import check_episode_labels

from .clip_resnet import CLIPResNetModel
from .configuration_few_shot_video import FewShotVideoConfig
from .evaluation_mode import evaluation_mode
from .pooled_layer import allow_pooling, can_pool, first_positions

VISION_TOWERS = {"clip_vision_model": CLIPVisionModel, "clipplus_clip_resnet": CLIPResNetModel}
KEPT_CLASS_LISTS = 4  # class lists whose text features are kept: train, val and test, and one of a user's


@dataclass
class SupportSet:
    """What a model keeps of labelled videos.

    Args:
        features: `[R, T, D]`, prototypes or what prototypes are made of.
        labels: `[R]` int64, class of each row.
        text_embeds: `[N, D]`, features of the class texts.
        class_names: N names.
    """

    features: Tensor
    labels: Tensor
    text_embeds: Tensor
    class_names: list[str]

    def to(self, device: torch.device | str) -> "SupportSet":
        tensors = (each.to(device) for each in (self.features, self.labels, self.text_embeds))
        return SupportSet(*tensors, self.class_names)


@dataclass
class FewShotVideoOutput(ModelOutput):
    """What a few-shot video model returns; without a leading episode dimension if the inputs had none.

    Args:
        loss: when query labels were given.
        loss_few_shot, loss_video_text: its parts, without their weights.
        logits: `[E, Q, N]`, classes in the order of the episode labels.
        class_logits: `[E, S + Q, C]` against all classes given, support videos first.
        prototypes: `[E, N, T, D]`; query_features: `[E, Q, T, D]`.
    """

    loss: Tensor | None = None
    loss_few_shot: Tensor | None = None
    loss_video_text: Tensor | None = None
    logits: Tensor | None = None
    class_logits: Tensor | None = None
    prototypes: Tensor | None = None
    query_features: Tensor | None = None


class FewShotVideoPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and capabilities."""

    config_class = FewShotVideoConfig
    config: FewShotVideoConfig
    base_model_prefix = "clipplus"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", "CLIPVisionEmbeddings", "CLIPResNetBlock"]
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
        if isinstance(module, FewShotVideoModel):
            for projection in (module.visual_projection, module.text_projection):
                if isinstance(projection, nn.Linear):
                    std = projection.in_features**-0.5 * self.config.initializer_factor
                    init.normal_(projection.weight, mean=0.0, std=std)
        elif isinstance(module, StoredSupport):
            init.zeros_(module.features)
            init.zeros_(module.text_embeds)
            init.copy_(module.labels, torch.arange(len(module.labels)) % len(module.text_embeds))


class StoredSupport(nn.Module):
    """The support set as buffers, so that it is saved, moved and pushed with the model."""

    def __init__(self, rows: int, frames: int, classes: int, dim: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(rows, frames, dim))
        self.register_buffer("labels", torch.arange(rows) % classes)
        self.register_buffer("text_embeds", torch.zeros(classes, dim))


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
        if not kwargs and can_pool(self.config, self.config.vision_config):
            kwargs = {"pooled_positions": first_positions(frames)}
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
        """Prototypes `[..., N, T, D]` of represented supports.

        Args:
            features: `[..., S, T, D]` from `represent_supports`.
            labels: `[..., S]`.
            text_embeds: `[..., N, D]`, features of the class texts.
            classes, shots: N, and the largest number of videos of a class.
        """
        raise NotImplementedError

    def score(
        self,
        queries: Tensor,
        prototypes: Tensor,
        *,
        query_means: Tensor | None = None,
        text_embeds: Tensor | None = None,
        mode: str | None = None,
    ) -> Tensor:
        """Logits `[..., Q, N]`.

        Args:
            queries: `[..., Q, T, D]` from `represent_queries`; prototypes: `[..., N, T, D]`.
            query_means: `[..., Q, D]`, means over time of `frame_features`; text_embeds: `[..., N, D]`. For modes
                that use text.
            mode: of inference; None takes the configured one.
        """
        raise NotImplementedError

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
            frames = self._frames_of(videos, processor, batch_size)
            shots = int(torch.bincount(labels).max())
            rows = self.represent_supports(frames, text[labels], shots=shots)
            prototypes = self.build_prototypes(rows, labels, text, len(names), shots=shots)
        support = SupportSet(prototypes, torch.arange(len(names), device=device), text, names)
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
            distances = frame_distances(queries, support.features[best : best + 1], eps=self.config.cosine_eps)[0, 0]
        config = self.config
        return support.class_names[best], otam_path(
            distances, lam=config.otam_lambda, both_directions=config.both_directions
        )

    def _score_against(self, frames: Tensor, support: SupportSet, mode: str | None) -> Tensor:
        return self.score(
            self.represent_queries(frames),
            support.features,
            query_means=frames.mean(-2),
            text_embeds=support.text_embeds,
            mode=mode,
        )

    def _frames_of(self, videos: Any, processor: Any, batch_size: int) -> Tensor:
        """Frame features `[V, T, D]` of videos in any form, a few at a time."""
        if not isinstance(videos, Tensor):
            if processor is None:
                raise ValueError("videos that are no pixel values need processor=..., the processor of this model.")
            videos = processor(videos=videos, return_tensors="pt")["pixel_values"]
        weight = self.text_projection.weight
        parts = (part.to(weight.device, weight.dtype) for part in videos.split(batch_size))
        return torch.cat([self.frame_features(part) for part in parts])


def labelled_episode(
    support_labels: Tensor, query_labels: Tensor | None, support_class_ids: Tensor | None
) -> tuple[int, int, Tensor | None]:
    """N, the largest number of shots, and the class id of each episode label `[E, N]` (None without ids).

    Raises:
        ValueError: see `check_episode_labels`; or two support videos of one label with different class ids.
    """
    classes = check_episode_labels(support_labels, query_labels)
    member = F.one_hot(support_labels, classes)  # [E, S, N]
    shots = int(member.sum(1).max())
    if support_class_ids is None:
        return classes, shots, None
    ids = support_class_ids.gather(1, member.argmax(1))  # the id of each label's first video
    if not torch.equal(ids.gather(1, support_labels), support_class_ids):
        raise ValueError("support videos of one episode label have different class ids.")
    return classes, shots, ids


__all__ = ["FewShotVideoModel", "FewShotVideoOutput", "FewShotVideoPreTrainedModel", "SupportSet"]
