"""APE: any CLIP-like model with a few-shot head on its image features, as an image classifier of transformers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.ops.cache_classifier import text_classifier

from .configuration_ape import APEConfig
from .heads_ape import HEADS, FewShotHead, SearchGrid, cyclic
from .processing_ape import DEFAULT_TEMPLATES, class_prompts

SETTINGS = ("text_scale", "alpha", "beta", "gamma", "strength", "channel_weights", "num_channels")


@dataclass
class APEOutput(ModelOutput):
    """What `APEForImageClassification` returns.

    Args:
        loss: cross-entropy, when labels were given.
        logits: `[B, C]`.
        image_embeds: `[B, D]`, L2-normalised.
        hidden_states, attentions: of the vision tower, when asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class APEPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and capabilities."""

    config_class = APEConfig
    config: APEConfig
    base_model_prefix = "clipplus"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    accepts_loss_kwargs = False  # the loss is a mean of ours; Trainer must not rescale it

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: see `models.dual_encoder.DualEncoderPreTrainedModel.is_custom_code`."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if not isinstance(module, FewShotHead):
            return
        dim = max(module.text_weight.shape[1], 1)
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("text_weight", "cache_keys"):
                init.normal_(parameter, std=dim**-0.5)
            elif name == "cache_values" and module.name == "ape":
                init.ones_(parameter)
            else:
                init.zeros_(parameter)
        for name, buffer in module.named_buffers(recurse=False):
            init.copy_(buffer, cyclic(len(buffer), module.classes if name == "cache_labels" else dim))


class APEForImageClassification(APEPreTrainedModel):
    """A CLIP-like model as a classifier: zero-shot, Tip-Adapter(-F), APE, GDA or ProKeR (APE: 2304.01195).

    Example:

    ```python
    >>> import hf_clipplus
    >>> from hf_clipplus import APEForImageClassification, APEProcessor

    >>> model = APEForImageClassification.from_clip("openai/clip-vit-base-patch32")
    >>> processor = APEProcessor.from_pretrained("openai/clip-vit-base-patch32")
    >>> model.fit(images, labels, ["cat", "dog"], processor=processor, validation=(val_images, val_labels))
    >>> model.save_pretrained("cats"), processor.save_pretrained("cats")
    >>> pipeline("image-classification", model="cats")
    ```
    """

    def __init__(self, config: APEConfig):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        if not hasattr(self.backbone, "get_image_features") or not hasattr(self.backbone, "get_text_features"):
            raise ValueError(
                f"backbone {type(self.backbone).__name__} embeds no images and texts: take a CLIP-like model."
            )
        self.classifier = _new_head(config.head, config)
        # float32 under any loading dtype: tiny differences of cosines decide
        self._keep_in_fp32_modules_strict = [f"classifier.{name}" for name, _ in self.classifier.named_parameters()]
        self.post_init()
        self._name_classes()

    @classmethod
    def from_clip(cls, backbone: str | PreTrainedModel, **kwargs: Any) -> "APEForImageClassification":
        """A model without classes yet around a trained CLIP-like model; `fit` or `set_classes` comes next.

        Args:
            backbone: folder, Hub id or the model itself (it is used, not copied).
            kwargs: of `AutoModel.from_pretrained`.

        Raises:
            ValueError: weights are missing, which would stay random.
        """
        if isinstance(backbone, str):
            name = backbone
            backbone, info = AutoModel.from_pretrained(name, output_loading_info=True, **kwargs)
            if info["missing_keys"]:
                raise ValueError(f"{name!r} lacks weights of {type(backbone).__name__}: {info['missing_keys']}.")
        scale = getattr(backbone, "logit_scale", None)
        config = APEConfig(
            backbone_config=backbone.config,
            text_scale=100.0 if scale is None else float(scale.detach().float().exp()),
            num_labels=0,
        )
        with torch.device("meta"):
            model = cls(config)
        model.backbone, model.classifier = backbone, _new_head("zero_shot", config).to(backbone.device)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> APEOutput:
        """Classify images, or image features that were kept.

        Args:
            pixel_values: `[B, 3, H, W]`.
            image_embeds: `[B, D]` instead of them; made unit length here.
            labels: `[B]` int64; with them the loss is computed.
            kwargs: of the backbone's `get_image_features`.
        """
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("give either pixel_values or image_embeds.")
        vision = None
        if pixel_values is not None:
            vision = self.backbone.get_image_features(pixel_values, **kwargs)
            image_embeds = vision.pooler_output
        if image_embeds.shape[-1] != self.config.feature_dim:
            raise ValueError(
                f"image_embeds are {image_embeds.shape[-1]} wide, the joint space has {self.config.feature_dim}."
            )
        image_embeds = F.normalize(image_embeds.float(), dim=-1)
        logits = self.classifier(image_embeds)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return APEOutput(
            loss=loss,
            logits=logits,
            image_embeds=image_embeds,
            hidden_states=getattr(vision, "hidden_states", None),
            attentions=getattr(vision, "attentions", None),
        )

    # from images and texts to features

    def encode_views(
        self,
        images: Sequence[Any],
        processor: Any,
        *,
        views: int = 1,
        augment: Callable[[Any, int, int], Any] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Raw encoder outputs of augmented views, `[views, N, D]` float32 on the CPU.

        Args:
            images: PIL images.
            processor: `processor(images=[...], return_tensors="pt")`.
            views: augmentation passes.
            augment: `(image, view, index) -> image`; None leaves images as they are.
            batch_size: images per forward pass.
        """
        weight = next(self.backbone.parameters())
        passes = []
        with evaluation_mode(self):
            for view in range(views):
                parts = []
                for start in range(0, len(images), batch_size):
                    batch = [images[i] for i in range(start, min(start + batch_size, len(images)))]
                    if augment is not None:
                        batch = [augment(image, view, start + i) for i, image in enumerate(batch)]
                    pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
                    found = self.backbone.get_image_features(pixels.to(weight.device, weight.dtype))
                    parts.append(found.pooler_output.float().cpu())
                passes.append(torch.cat(parts))
        return torch.stack(passes)

    @torch.no_grad()
    def encode_classes(self, prompts: Sequence[Sequence[str]], processor: Any, *, batch_size: int = 256) -> Tensor:
        """Text classifier `[C, D]` float32 on the CPU from the prompts of every class; too long ones are cut."""
        texts = [text for group in prompts for text in group]
        owner = torch.tensor([c for c, group in enumerate(prompts) for _ in group])
        # SigLIP was trained on padded text and pools the last position
        siglip = "siglip" in self.config.backbone_config.text_config.model_type
        options = {
            "padding": "max_length" if siglip else True,
            "truncation": True,
            "max_length": self.config.backbone_config.text_config.max_position_embeddings,
            "return_tensors": "pt",
        }
        parts = []
        for start in range(0, len(texts), batch_size):
            inputs = processor.tokenizer(texts[start : start + batch_size], **options)
            inputs = {name: value.to(self.device) for name, value in inputs.items() if name != "token_type_ids"}
            parts.append(self.backbone.get_text_features(**inputs).pooler_output.float().cpu())
        return text_classifier(torch.cat(parts), owner, len(prompts))

    # classes and heads

    def fit(
        self,
        inputs: Any,
        labels: Any,
        class_names: Sequence[str],
        *,
        processor: Any = None,
        text_weight: Tensor | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        prompts: Mapping[str, Sequence[str]] | None = None,
        head: str = "ape",
        validation: tuple[Any, Any] | None = None,
        protocol: str = "honest",
        grid: SearchGrid | None = None,
        views: int = 1,
        augment: Callable[[Any, int, int], Any] | None = None,
        batch_size: int = 64,
        **settings: Any,
    ) -> "APEForImageClassification":
        """Build a head from a few labelled images; the backbone stays as it is.

        `training.few_shot.fit_few_shot` does this with the published augmentation and features kept on disk.

        Args:
            inputs: PIL images, or their features as `FewShotHead.fit` takes them.
            labels: class indices or names, one per image.
            class_names: C names; they become the model's labels.
            processor: needed for images, and for texts unless `text_weight` is given.
            text_weight: `[C, D]`; None makes it of `templates` and `prompts`.
            templates, prompts: see `class_prompts`.
            head: "zero_shot", "tip", "tip_f", "ape", "gda" or "proker".
            validation: images or features with their labels; without augmentation.
            protocol, grid: see `FewShotHead.fit`.
            views, augment, batch_size: see `encode_views`.
            settings: of the head: `num_channels`, `channel_weights`, `alpha`, `beta`, `gamma`, `text_scale`, ...
        """
        text_weight, facts = self._class_texts(class_names, processor, text_weight, templates, prompts)
        if not _is_array(inputs):
            options = {"views": views, "augment": augment, "batch_size": batch_size}
            inputs = self.encode_views(inputs, self._needed(processor, "the images"), **options)
        if validation is not None and not _is_array(validation[0]):
            encoded = self.encode_views(validation[0], self._needed(processor, "the images"), batch_size=batch_size)
            validation = (F.normalize(encoded[0], dim=-1), validation[1])
        unknown = settings.keys() - set(SETTINGS)
        if head not in HEADS or unknown:
            what = f"setting {sorted(unknown)}" if unknown else f"head {head!r}"
            raise ValueError(f"unknown {what}: heads are {', '.join(HEADS)}, settings {', '.join(SETTINGS)}.")
        new = HEADS[head](**{"text_scale": self.config.text_scale, **settings})
        options = {"class_names": class_names, "validation": validation, "protocol": protocol, "grid": grid}
        new.fit(inputs, labels, text_weight, **options)
        new.fit_report |= facts
        return self.set_head(new)

    def set_classes(
        self,
        class_names: Sequence[str],
        processor: Any = None,
        *,
        text_weight: Tensor | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        prompts: Mapping[str, Sequence[str]] | None = None,
    ) -> "APEForImageClassification":
        """Make the model a zero-shot classifier of these classes: the base of APE-T adapters."""
        text_weight, facts = self._class_texts(class_names, processor, text_weight, templates, prompts)
        new = HEADS["zero_shot"](text_scale=self.config.text_scale)
        new.class_names, new.text_weight = list(class_names), nn.Parameter(text_weight, requires_grad=False)
        new.fit_report = {"head": "zero_shot", **facts}
        return self.set_head(new)

    def set_head(self, head: FewShotHead) -> "APEForImageClassification":
        """Take a fitted head, and its facts into the configuration."""
        if head.text_weight.shape[1] != self.config.feature_dim:
            raise ValueError(
                f"the head is {head.text_weight.shape[1]} wide, the joint space has {self.config.feature_dim}."
            )
        self.classifier = head.to(next(self.backbone.parameters()).device)
        self._facts_to_config()
        return self

    def add_classes(
        self,
        class_names: Sequence[str],
        processor: Any = None,
        *,
        text_weight: Tensor | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        prompts: Mapping[str, Sequence[str]] | None = None,
    ) -> "APEForImageClassification":
        """Append classes known by their texts alone; nothing is refitted, the others' logits stay as they are.

        Also under APE-T adapters, which keep the classes that they were made for.
        """
        text_weight, _ = self._class_texts(class_names, processor, text_weight, templates, prompts)
        self.head.add_classes(text_weight, class_names)
        self._facts_to_config()
        return self

    def _class_texts(
        self,
        class_names: Sequence[str],
        processor: Any,
        text_weight: Tensor | None,
        templates: Sequence[str],
        prompts: Mapping[str, Sequence[str]] | None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The text classifier, made of prompts unless it is given, and what a report says of the prompts."""
        if text_weight is not None:
            return text_weight, {}
        groups = class_prompts(class_names, templates, prompts)
        text_weight = self.encode_classes(groups, self._needed(processor, "the class texts"))
        digest = sha256("\n".join("\t".join(group) for group in groups).encode()).hexdigest()
        facts = {"prompts": sum(map(len, groups)), "templates": list(templates), "prompts_sha256": digest}
        return text_weight, facts

    @property
    def head(self) -> FewShotHead:
        """The head itself, also where an APE-T adapter wraps it."""
        return self.classifier if isinstance(self.classifier, FewShotHead) else self.classifier.get_base_layer()

    def _facts_to_config(self) -> None:
        head, config = self.head, self.config
        config.head, config.fit_report = head.name, head.fit_report
        config.cache_size = len(getattr(head, "cache_keys", ()))
        for name in SETTINGS:
            setattr(config, name, getattr(head, name))
        names = head.class_names or [f"LABEL_{i}" for i in range(head.classes)]
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}

    def _name_classes(self) -> None:
        """Class names and report of a loaded head, from the configuration."""
        labels = self.config.id2label or {}
        self.classifier.class_names = [labels[i] for i in range(len(labels))]
        self.classifier.fit_report = self.config.fit_report

    @staticmethod
    def _needed(processor: Any, what: str) -> Any:
        if processor is None:
            raise ValueError(f"encoding {what} needs the processor (processor=APEProcessor.from_pretrained(...)).")
        return processor


def _new_head(name: str, config: APEConfig) -> FewShotHead:
    settings = {setting: getattr(config, setting) for setting in SETTINGS}
    return HEADS[name](config.num_labels, config.feature_dim, cache_size=config.cache_size, **settings)


def _is_array(inputs: Any) -> bool:
    return hasattr(inputs, "shape") or hasattr(inputs, "__array__")


__all__ = ["APEForImageClassification", "APEOutput", "APEPreTrainedModel"]
