"""GroupViT: an image encoder that groups patches into segments, CLIP's text transformer, and two losses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings, DualEncoderModel, DualEncoderPreTrainedModel
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.ops.distributed import sum_over_ranks, world_size
from hf_clipplus.ops.grouping import (
    MAX_SCALE,
    at_least_float32,
    clamp_log_scale,
    group_statistics,
    image_text_loss,
    multi_label_loss,
)

from .configuration_groupvit import GroupViTPlusConfig
from .vision_groupvit import (
    GroupViTPlusLayer,
    GroupViTPlusSelfAttention,
    GroupViTPlusVisionModel,
    GroupViTPlusVisionOutput,
    init_like_pytorch,
)

if TYPE_CHECKING:
    from .segmentation_groupvit import GroupViTPlusSegmentation

logger = logging.get_logger(__name__)


@dataclass
class GroupViTPlusEmbeddings(DualEncoderEmbeddings):
    """What `embed` returns.

    Args:
        image_embeds, text_embeds, vision_model_output, text_model_output: as in `DualEncoderEmbeddings`; the texts are
            the captions.
        prompt_embeds: `[B, K, D]`, L2-normalised, when texts came as `[B, 1 + K, L]`.
    """

    prompt_embeds: torch.Tensor | None = None


@dataclass
class GroupViTPlusOutput(ModelOutput):
    """What `GroupViTPlusModel` returns.

    Args:
        loss: scalar, when `return_loss`: the image-text loss plus the weighted multi-label loss.
        logits_per_image: `[B, C]`, scaled cosines of images and captions; only without a loss.
        logits_per_text: its transpose.
        text_embeds, image_embeds: `[C, D]` and `[B, D]`, L2-normalised.
        prompt_embeds: `[B, K, D]`, L2-normalised.
        text_model_output, vision_model_output: outputs of the towers.
        image_text_loss, multi_label_loss: the parts of the loss.
        statistics: scalars to log, see `ops.grouping.group_statistics`, and both parts of the loss.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: GroupViTPlusVisionOutput | None = None
    image_text_loss: torch.Tensor | None = None
    multi_label_loss: torch.Tensor | None = None
    statistics: dict[str, torch.Tensor] | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class GroupViTPlusBatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics in training are those of the batches of all processes, on any device.

    PyTorch's SyncBatchNorm computes the same, on GPUs only.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return super().forward(rows)
        with torch.autocast(rows.device.type, enabled=False):
            wide = at_least_float32(rows)
            sums = sum_over_ranks(torch.cat([wide.sum(0), wide.new_tensor([len(wide)])]))
            count = sums[-1].detach()
            mean = sums[:-1] / count
            variance = sum_over_ranks((wide - mean).square().sum(0)) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            normed = (wide - mean) * torch.rsqrt(variance + self.eps)
            return (normed * self.weight + self.bias).to(rows.dtype)


class GroupViTPlusProjector(nn.Sequential):
    """Linear, BatchNorm, ReLU, Linear into the joint space; any number of leading dimensions."""

    def __init__(self, inputs: int, inner: int, outputs: int):
        super().__init__(nn.Linear(inputs, inner), GroupViTPlusBatchNorm(inner), nn.ReLU(), nn.Linear(inner, outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.flatten(0, -2)).unflatten(0, features.shape[:-1])


class GroupViTPlusModel(DualEncoderModel):
    """GroupViT (2202.11094): segments pictures by text, learned from captions alone.

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained("org/groupvit-plus")
    >>> processor = AutoProcessor.from_pretrained("org/groupvit-plus")
    >>> classes = processor.class_inputs(["cat", "sofa"])
    >>> pictures = processor.segmentation_inputs([image])
    >>> (found,) = model.segment(**pictures, class_embeds=model.class_embeddings(**classes), background_threshold=0.95)
    >>> found.labels  # [h, w], 0 background, 1 cat, 2 sofa
    ```
    """

    config_class = GroupViTPlusConfig
    config: GroupViTPlusConfig
    base_model_prefix = "groupvit"
    _no_split_modules = ["CLIPTextEmbeddings", "CLIPEncoderLayer", *GroupViTPlusVisionModel._no_split_modules]
    _can_record_outputs = {
        "hidden_states": [CLIPEncoderLayer, GroupViTPlusLayer],
        "attentions": [CLIPAttention, GroupViTPlusSelfAttention],
    }
    _keep_in_fp32_modules_strict = ["logit_scale", "multi_label_logit_scale"]

    def __init__(self, config: GroupViTPlusConfig):
        DualEncoderPreTrainedModel.__init__(self, config)  # DualEncoderModel would build CLIP's vision tower
        text, vision, inner = config.text_config, config.vision_config, config.projection_intermediate_dim
        self.text_model = CLIPTextModel._from_config(text)
        self.vision_model = GroupViTPlusVisionModel._from_config(vision)
        self.visual_projection = GroupViTPlusProjector(vision.widths[-1], inner, config.projection_dim)
        self.text_projection = GroupViTPlusProjector(text.hidden_size, inner, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        if config.has_multi_label_scale:
            self.multi_label_logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        gumbel_noise: list[torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        output_assignments: bool = False,
        **kwargs,
    ) -> GroupViTPlusVisionOutput:
        """The image encoder's output; `pooler_output` is the projected, not normalised embedding `[B, D]`.

        Args:
            pixel_values: `[B, 3, H, W]`, any size, normalised as the processor does.
            gumbel_noise, generator, output_assignments: see `GroupViTPlusVisionModel.forward`.
        """
        outputs = self.vision_model(
            pixel_values,
            gumbel_noise=gumbel_noise,
            generator=generator,
            output_assignments=output_assignments,
            **kwargs,
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    def embed(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        gumbel_noise: list[torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        output_assignments: bool = False,
        **kwargs,
    ) -> GroupViTPlusEmbeddings:
        """First public step: inputs to embeddings. Either side may be left out.

        Args:
            input_ids: `[C, L]`, or `[B, 1 + K, L]` with K prompts after each caption. One call projects all, so
                that in training they share the batch statistics.
            gumbel_noise, generator, output_assignments: see `GroupViTPlusVisionModel.forward`.
        """
        found = GroupViTPlusEmbeddings()
        if pixel_values is not None:
            vision = self.get_image_features(
                pixel_values,
                gumbel_noise=gumbel_noise,
                generator=generator,
                output_assignments=output_assignments,
                **kwargs,
            )
            found["vision_model_output"] = vision
            found["image_embeds"] = F.normalize(at_least_float32(vision.pooler_output), dim=-1)
        if input_ids is not None:
            shape = input_ids.shape[:-1]
            mask = None if attention_mask is None else attention_mask.flatten(0, -2)
            text = self.get_text_features(input_ids.flatten(0, -2), mask, position_ids, **kwargs)
            found["text_model_output"] = text
            embeds = F.normalize(at_least_float32(text.pooler_output), dim=-1).unflatten(0, shape)
            found["text_embeds"] = embeds[:, 0] if len(shape) == 2 else embeds
            if len(shape) == 2 and shape[1] > 1:
                found["prompt_embeds"] = embeds[:, 1:]
        return found

    def contrast(self, embeddings: GroupViTPlusEmbeddings, **_) -> dict[str, torch.Tensor]:
        """Second public step: embeddings to losses, over the batches of all processes.

        Args:
            embeddings: `image_embeds [B, D]`, `text_embeds [B, D]`, and `prompt_embeds [B, K, D]` for the multi-label
                loss.

        Returns:
            `loss`, its parts `image_text_loss` and `multi_label_loss` (when there are prompts), and `statistics`.

        Raises:
            ValueError: not one caption for each image.
        """
        images, texts = embeddings.image_embeds, embeddings.text_embeds
        if images.shape != texts.shape:
            raise ValueError(
                f"{len(images)} images but {len(texts)} captions: GroupViT trains on one caption per image "
                "(input_ids [B, L], or [B, 1 + K, L] with prompts)."
            )
        result = {"image_text_loss": image_text_loss(images, texts, self.logit_scale)}
        result["loss"] = result["image_text_loss"]
        if embeddings.prompt_embeds is not None:
            result["multi_label_loss"] = multi_label_loss(
                images, embeddings.prompt_embeds, self._multi_label_scale(), form=self.config.multi_label_form
            )
            result["loss"] = result["loss"] + self.config.multi_label_loss_weight * result["multi_label_loss"]
        elif self.config.prompts_per_image:
            logger.warning_once(
                "The configuration asks for the multi-label loss (prompts_per_image="
                f"{self.config.prompts_per_image}), but the batch has no prompts: only captions are trained on. "
                "data.nouns.NounPromptCollator adds them; prompts_per_image=0 says that none are wanted."
            )
            result["loss"] = result["loss"] + 0.0 * self._multi_label_scale()  # DDP wants every parameter in the graph
        vision = getattr(embeddings, "vision_model_output", None)
        statistics = {name: value.detach() for name, value in result.items() if name != "loss"}
        if vision is not None and vision.hard_assignments:
            statistics |= group_statistics(vision.hard_assignments, vision.soft_assignments)
        return result | {"statistics": statistics}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        gumbel_noise: list[torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        output_assignments: bool = False,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GroupViTPlusOutput:
        """Embed a batch and, when asked, compute both losses over the batches of all processes.

        Args:
            pixel_values: `[B, 3, H, W]`.
            input_ids, attention_mask: `[C, L]`, or `[B, 1 + K, L]`: the caption and K prompts of each image.
            gumbel_noise: noise of each grouping stage, see `GroupViTPlusVisionModel.forward`.
            generator: where noise that is not given is drawn from.
            output_assignments: return the assignment of tokens to groups in `vision_model_output`.
            return_loss: compute the losses.
        """
        embeddings = self.embed(
            pixel_values,
            input_ids,
            attention_mask,
            position_ids,
            gumbel_noise=gumbel_noise,
            generator=generator,
            output_assignments=output_assignments or bool(return_loss),
            **{key: value for key, value in kwargs.items() if key.startswith("output_")},
        )
        output = dict(embeddings)
        complete = pixel_values is not None and input_ids is not None
        if return_loss:
            if not complete:
                raise ValueError("return_loss=True needs both pixel_values and input_ids.")
            output |= self.contrast(embeddings)
            if not output_assignments:
                vision = embeddings.vision_model_output
                vision["soft_assignments"] = vision["hard_assignments"] = None
        elif complete:
            logits = self.similarity_logits(embeddings.image_embeds, embeddings.text_embeds)
            output["logits_per_image"], output["logits_per_text"] = logits, logits.T
        return GroupViTPlusOutput(**output)

    def similarity_logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """`[B, C]` cosines times the clamped inverse temperature."""
        scale = clamp_log_scale(self.logit_scale).exp().to(image_embeds.dtype)
        return scale * image_embeds @ text_embeds.T.to(image_embeds.device)

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float = MAX_SCALE) -> None:
        """Keep both inverse temperatures below `maximum`; at 100 there is nothing to do, the losses clamp there."""
        if maximum < MAX_SCALE:
            for scale in {self.logit_scale, self._multi_label_scale()}:
                scale.clamp_(max=float(torch.tensor(maximum).log()))

    def class_embeddings(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Embeddings of classes: the mean of the projected prompts of a class, not normalised before, then normalised.

        Without gradient and in evaluation mode, since in training the projector's statistics would be those of the
        prompts.

        Args:
            input_ids, attention_mask: `[N, T, L]`, T prompts of each class (`processor.class_inputs`).

        Returns:
            `[N, D]`, at least float32, L2-normalised.
        """
        mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        with evaluation_mode(self):
            embeds = self.encode_text(input_ids.flatten(0, 1), mask, normalize=False, **kwargs)
        return F.normalize(at_least_float32(embeds).unflatten(0, input_ids.shape[:2]).mean(1), dim=-1)

    def segment(self, pixel_values, class_embeds: torch.Tensor, **options) -> "list[GroupViTPlusSegmentation]":
        """Zero-shot segmentation of pictures of any size; see `segmentation_groupvit.segment` for every argument."""
        from .segmentation_groupvit import segment

        return segment(self, pixel_values, class_embeds, **options)

    @torch.no_grad()
    def set_image_size(self, image_size: int) -> None:
        """Change the training size: the position embedding is stretched for good, as on the fly for one image."""
        config, embeddings = self.config.vision_config, self.vision_model.embeddings
        side = image_size // config.patch_size
        embeddings.position_embeddings = nn.Parameter(embeddings.positions(side, side).clone())
        config.image_size = image_size

    def _can_trim_texts(self, input_ids: torch.Tensor) -> bool:
        """Never in training, where the projector's statistics are those of all texts of one call."""
        return not self.training and super()._can_trim_texts(input_ids)

    def _multi_label_scale(self) -> torch.Tensor:
        return self.multi_label_logit_scale if self.config.has_multi_label_scale else self.logit_scale

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation: CLIP's original one for the text tower, PyTorch's own for the projectors."""
        PreTrainedModel._init_weights(self, module)
        if not isinstance(module, GroupViTPlusModel):
            return
        for projection in (module.visual_projection, module.text_projection):
            init_like_pytorch(projection[0])
            init_like_pytorch(projection[3])
        init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        if self.config.has_multi_label_scale:
            init.constant_(module.multi_label_logit_scale, self.config.logit_scale_init_value)
        text, width = module.text_model, self.config.text_config.hidden_size
        out_std = width**-0.5 * (2 * self.config.text_config.num_hidden_layers) ** -0.5
        init.normal_(text.embeddings.token_embedding.weight, std=0.02)
        init.normal_(text.embeddings.position_embedding.weight, std=0.01)
        for layer in text.encoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for projection in (mlp.fc1, mlp.fc2):
                init_like_pytorch(projection)  # for the biases
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                init.normal_(projection.weight, std=width**-0.5)
            init.normal_(attention.out_proj.weight, std=out_std)
            init.normal_(mlp.fc2.weight, std=out_std)
            init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)


__all__ = ["GroupViTPlusModel", "GroupViTPlusOutput", "GroupViTPlusVisionModel"]
