"""The two towers that the contrastive variants share: transformers' CLIP or SigLIP modules, published names kept.

A model here has exactly the state-dict keys of `CLIPModel` or `SiglipModel` plus what the variant adds, so that
`Variant.from_pretrained(<any CLIP checkpoint>)` loads it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel, SiglipTextModel, SiglipVisionModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from hf_clipplus.ops.position import KEPT, RATIO, stretch_positions

from .configuration_dual_encoder import DualEncoderConfig
from .finer_vision import FinerVisionMixin, ViewFusion, at_every_scale
from .pooled_layer import allow_pooling, can_pool, first_positions, only_pooled
from .segmented_text import SegmentedTextMixin
from .text_buckets import encode_in_buckets, text_lengths

logger = logging.get_logger(__name__)

TEXT_TOWERS = {"clip_text_model": CLIPTextModel, "siglip_text_model": SiglipTextModel}
VISION_TOWERS = {"clip_vision_model": CLIPVisionModel, "siglip_vision_model": SiglipVisionModel}


@dataclass
class DualEncoderEmbeddings(ModelOutput):
    """What `embed` returns.

    Args:
        image_embeds: `[N, D]`, L2-normalised.
        text_embeds: `[C, D]`, L2-normalised.
        vision_model_output, text_model_output: the towers' outputs; `pooler_output` is the projected embedding.
    """

    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


@dataclass
class DualEncoderOutput(ModelOutput):
    """What `DualEncoderModel` returns.

    Args:
        loss: scalar, when `return_loss`.
        logits_per_image: `[N, C]`, scaled cosines plus the bias, for a loss that has one; only without a loss or with
            `return_logits`.
        logits_per_text: its transpose.
        text_embeds: `[C, D]`, L2-normalised.
        image_embeds: `[N, D]`, L2-normalised.
        text_model_output, vision_model_output: outputs of the towers.
        statistics: scalars to log, with a loss.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    statistics: dict[str, torch.Tensor] | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class DualEncoderPreTrainedModel(PreTrainedModel):
    """Loading, saving, initialisation and capabilities of the two-tower models."""

    config_class = DualEncoderConfig
    config: DualEncoderConfig
    base_model_prefix = "clipplus"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = [
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
        "CLIPPooledEncoderLayer",
        "CLIPVisionEmbeddings",
        "SiglipTextEmbeddings",
        "SiglipEncoderLayer",
        "SiglipVisionEmbeddings",
        "SiglipMultiheadAttentionPoolingHead",
    ]
    _can_record_outputs = {
        "hidden_states": [CLIPEncoderLayer, SiglipEncoderLayer],
        "attentions": [CLIPAttention, SiglipAttention],
    }
    # float32 under any loading dtype: exp(logit_scale) in bfloat16 is off by up to 1%
    _keep_in_fp32_modules_strict = ["logit_scale"]  # and the bias of models that have one
    accepts_loss_kwargs = False  # the loss is a mean of ours; Trainer must not rescale it

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers guards against initialisers that ignore what was loaded, and the guard leaves CLIP's
        attention and MLP weights at std 0.02 where a checkpoint lacks them. `_init_weights` here needs no guard."""
        return False

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that the optimizer must not decay (vectors and scalars never are)."""
        return set()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViewFusion):
            module.start_as_mean()
        if not isinstance(module, DualEncoderModel):
            return
        factor = self.config.initializer_factor
        for projection in (module.visual_projection, module.text_projection):
            if isinstance(projection, nn.Linear):
                init.normal_(projection.weight, mean=0.0, std=projection.in_features**-0.5 * factor)
        init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        if module.logit_bias is not None:
            init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class DualEncoderModel(FinerVisionMixin, SegmentedTextMixin, DualEncoderPreTrainedModel):
    """Two towers into one space. A variant with a loss overrides `contrast`, the second public step.

    Class attributes:
        output_class: what `forward` returns.
        image_inputs, text_inputs: names of the batch entries that `embed` takes, by side; everything else in a batch
            is a target of `contrast`. Gradient caching cuts a batch along these.
    """

    output_class: type[DualEncoderOutput] = DualEncoderOutput
    image_inputs = ("pixel_values",)
    text_inputs = ("input_ids", "attention_mask", "position_ids")

    def __init__(self, config: DualEncoderConfig):
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.text_model = TEXT_TOWERS[text.model_type]._from_config(text)
        self.vision_model = VISION_TOWERS[vision.model_type]._from_config(vision)
        if config.has_siglip_towers:
            self.visual_projection, self.text_projection = nn.Identity(), nn.Identity()
        else:
            allow_pooling(self.text_model)
            allow_pooling(self.vision_model)
            self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        shape = (1,) if config.has_siglip_towers else ()  # the published shapes
        self.logit_scale = nn.Parameter(torch.full(shape, float(config.logit_scale_init_value)))
        self.logit_bias = None
        if config.has_logit_bias:
            self.logit_bias = nn.Parameter(torch.full(shape, float(config.logit_bias_init_value)))
            self._keep_in_fp32_modules_strict = [*self._keep_in_fp32_modules_strict, "logit_bias"]
        self.add_modules()
        self.add_view_fusion()
        self.post_init()

    def add_modules(self) -> None:
        """What a variant has beside the towers, made before weights are initialised."""

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embeddings.token_embedding = value

    @can_return_tuple
    @at_every_scale
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output; `pooler_output` is the projected, not normalised embedding `[N, D]`.

        Args:
            pixel_values: `[N, 3, H, W]`, normalised as the processor does; with `config.finer_vision` as much larger
                than the tower's size as that needs, and the result is a `FinerVisionOutput`.
            interpolate_pos_encoding: accept another image size than the configured one.
            guide_embeds: `[N, D]` or `[1, D]`, with crops of finer vision: embeddings of texts whose likeness chooses
                the regions, instead of the class token.
        """
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The text tower's output; `pooler_output` is the projected, not normalised embedding `[C, D]`.

        A CLIP tower reads the batch up to its longest text only, which changes nothing but the length of
        `last_hidden_state`; asking for hidden states or attentions gives all positions.

        Args:
            input_ids: `[C, L]`; longer than the context, the end is cut and the end token kept (with a warning).
            attention_mask: `[C, L]`, 0 on padding.
            position_ids: `[C, L]` or `[1, L]`.
        """
        input_ids, attention_mask = self._fit_context(input_ids, attention_mask)
        asked = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        if not asked and self._can_trim_texts(input_ids):
            longest = int(text_lengths(input_ids, self.config.text_config.eos_token_id).max())
            input_ids, attention_mask, position_ids = (
                None if part is None else part[:, :longest] for part in (input_ids, attention_mask, position_ids)
            )
        return self._text_outputs(input_ids, attention_mask, position_ids, **kwargs)

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool = True, **kwargs) -> torch.Tensor:
        """Image embeddings `[N, D]`, L2-normalised unless told otherwise."""
        if kwargs or not self._can_pool(self.config.vision_config):
            embeds = self.get_image_features(pixel_values, **kwargs).pooler_output
        else:
            embeds = self._pooled_image_embeds(pixel_values)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def encode_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        normalize: bool = True,
        segment_owner: torch.Tensor | None = None,
        segment_shares: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Text embeddings `[C, D]`, L2-normalised unless told otherwise; a CLIP tower never reads padding (exact).

        With `segment_owner` the rows are segments of C texts, see `encode_text_segments`.
        """
        if segment_owner is not None:
            texts = self.encode_text_segments(input_ids, attention_mask, segment_owner, normalize, segment_shares)
            return texts.text_embeds
        embeds = self._text_embeds(input_ids, attention_mask, **kwargs)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def embed(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segment_owner: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        segment_shares: torch.Tensor | None = None,
        **kwargs,
    ) -> DualEncoderEmbeddings:
        """First public step: inputs to embeddings. Either side may be left out.

        In training, CLIP towers do no more than the embeddings need: texts are encoded in groups of like length
        (`text_buckets`), the last layer computes the pooled token alone (`pooled_layer`), and the towers' outputs are
        left out. Asking for any `output_...`, or `eval()`, gives them. With `segment_owner` the texts come in
        segments, see `encode_text_segments`, and there is no `text_model_output` either.
        """
        found = DualEncoderEmbeddings()
        if pixel_values is not None and self.training and not kwargs and self._can_pool(self.config.vision_config):
            embeds = self._pooled_image_embeds(pixel_values, interpolate_pos_encoding)
            found["image_embeds"] = F.normalize(embeds, dim=-1)
        elif pixel_values is not None:
            vision = self.get_image_features(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
            found["vision_model_output"], found["image_embeds"] = vision, F.normalize(vision.pooler_output, dim=-1)
        if input_ids is not None and segment_owner is not None:
            segments = {"segment_owner": segment_owner, "segment_shares": segment_shares}
            found["text_embeds"] = self.encode_text(input_ids, attention_mask, **segments)
        elif input_ids is not None and self.training and not kwargs and self._can_trim_texts(input_ids):
            found["text_embeds"] = F.normalize(
                self._trimmed_text_embeds(input_ids, attention_mask, position_ids), dim=-1
            )
        elif input_ids is not None:
            text = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
            found["text_model_output"], found["text_embeds"] = text, F.normalize(text.pooler_output, dim=-1)
        return found

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        segment_owner: torch.Tensor | None = None,
        return_loss: bool | None = None,
        return_logits: bool | None = None,
        interpolate_pos_encoding: bool = False,
        segment_shares: torch.Tensor | None = None,
        **kwargs,
    ) -> DualEncoderOutput:
        """Embed a batch and, when asked, compute the loss over the batches of all processes.

        Args:
            pixel_values: `[N, 3, H, W]`.
            input_ids, attention_mask, position_ids: `[C, L]`; for the loss the captions of the images.
            segment_owner: `[C]`, when the rows are segments of texts, see `encode_text_segments`.
            return_loss: compute the loss.
            return_logits: give `logits_per_image` beside the loss (N x C numbers); default: only without a loss.
            interpolate_pos_encoding: accept another image size than the configured one.
            segment_shares: `[C]`, how much each segment counts in its text, see `encode_text_segments`.
            kwargs: `output_...` of the towers; everything else is a target of `contrast`, which says what it takes.
        """
        options = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("output_")}
        embeddings = self.embed(
            pixel_values,
            input_ids,
            attention_mask,
            position_ids,
            segment_owner=segment_owner,
            interpolate_pos_encoding=interpolate_pos_encoding,
            segment_shares=segment_shares,
            **options,
        )
        output = dict(embeddings)
        complete = pixel_values is not None and input_ids is not None
        if return_loss:
            if not complete:
                raise ValueError("return_loss=True needs both pixel_values and input_ids.")
            output |= self.contrast(embeddings, **kwargs)
        if complete and (return_logits or (return_logits is None and not return_loss)):
            logits = self.similarity_logits(embeddings.image_embeds, embeddings.text_embeds)
            if self.adds_logit_bias:
                logits = logits + self.logit_bias.to(logits.dtype)
            output["logits_per_image"], output["logits_per_text"] = logits, logits.T
        return self.output_class(**output)

    def contrast(self, embeddings: DualEncoderEmbeddings, **targets) -> dict[str, torch.Tensor]:
        """Second public step, of a variant with a loss: embeddings to `loss` and `statistics`.

        Args:
            embeddings: `image_embeds [N, D]` and `text_embeds [C, D]` of this process.
            targets: what the variant learns from beside the images and texts, by name.

        Raises:
            ValueError: this model has no contrastive loss.
        """
        raise ValueError(f"{type(self).__name__} has no contrastive loss: return_loss=True asks for one.")

    @torch.no_grad()
    def extend_context(self, *, kept: int = KEPT, ratio: int = RATIO) -> int:
        """Make room for longer texts by stretching the table of positions (Long-CLIP), in place: 77 become 248.

        Args:
            kept, ratio: see `ops.position.stretch_positions`.

        Returns:
            The new context, to be given to the processor: `processor.tokenizer.model_max_length = ...`.

        Raises:
            ValueError: the text tower is not CLIP's.
        """
        if self.config.text_config.model_type != "clip_text_model":
            raise ValueError(f"only CLIP's text tower can be extended, this is {self.config.text_config.model_type}.")
        embeddings = self.text_model.embeddings
        table = embeddings.position_embedding
        table.weight = nn.Parameter(
            stretch_positions(table.weight, kept=kept, ratio=ratio), table.weight.requires_grad
        )
        table.num_embeddings = context = len(table.weight)
        embeddings.position_ids = torch.arange(context, device=table.weight.device).expand((1, -1))
        for config in (self.config.text_config, self.text_model.config):
            config.max_position_embeddings = context
        return context

    def similarity_logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """`[N, C]` scaled cosines without the bias; the full matrix, so for inference and small batches."""
        return self.logit_scale.exp().to(image_embeds.dtype) * image_embeds @ text_embeds.T.to(image_embeds.device)

    @property
    def adds_logit_bias(self) -> bool:
        """Whether `logit_bias` is part of the logits."""
        return self.logit_bias is not None

    @torch.no_grad()
    def clamp_logit_scale(self, maximum: float = 100.0) -> None:
        """Keep the inverse temperature in [1, maximum] (CLIP's habit); called after every optimizer step."""
        self.logit_scale.clamp_(0.0, float(torch.tensor(maximum).log()))

    def _can_trim_texts(self, input_ids: torch.Tensor) -> bool:
        """Whether the tower pools at the end token under a causal mask, and nobody wants what stands behind it."""
        ready = input_ids.ndim == 2 and len(input_ids) > 0 and not torch.compiler.is_compiling()
        return ready and only_pooled(self.config, self.config.text_config)

    def _can_pool(self, tower) -> bool:
        """Whether the last layer of this tower may leave out what is not pooled; a variant may read more."""
        return can_pool(self.config, tower)

    def _pooled_image_embeds(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        return self.get_image_features(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            pooled_positions=first_positions(pixel_values),
        ).pooler_output

    def _text_outputs(self, input_ids, attention_mask, position_ids, **kwargs) -> BaseModelOutputWithPooling:
        """The text tower on inputs that fit the context, with the projected embedding."""
        outputs = self.text_model(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def _text_embeds(self, input_ids, attention_mask=None, **kwargs) -> torch.Tensor:
        """`[C, D]`, projected and not normalised, by the cheapest way."""
        if kwargs or not self._can_trim_texts(input_ids):
            return self.get_text_features(input_ids, attention_mask, **kwargs).pooler_output
        return self._trimmed_text_embeds(input_ids, attention_mask)

    def _trimmed_text_embeds(self, input_ids, attention_mask=None, position_ids=None) -> torch.Tensor:
        input_ids, attention_mask = self._fit_context(input_ids, attention_mask)
        end_token = self.config.text_config.eos_token_id

        def encode(input_ids, attention_mask, position_ids):
            pool = self._can_pool(self.config.text_config)
            pooled = {"pooled_positions": text_lengths(input_ids, end_token) - 1} if pool else {}
            return self._text_outputs(input_ids, attention_mask, position_ids, **pooled).pooler_output

        return encode_in_buckets(
            encode,
            text_lengths(input_ids, end_token),
            input_ids,
            attention_mask,
            None if position_ids is None else position_ids[:, : input_ids.shape[1]],
        )

    def _fit_context(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None):
        limit = self.config.text_config.max_position_embeddings
        if input_ids.shape[-1] <= limit:
            return input_ids, attention_mask
        logger.warning_once(
            f"Texts of up to {input_ids.shape[-1]} tokens are longer than the context of {limit}: "
            "their end is cut, the end token is kept. Pass truncation=True to the processor to count them."
        )
        end = self.config.text_config.eos_token_id
        # published CLIP configurations say 2 and pool at the highest id of the row
        end = input_ids.amax(-1, keepdim=True) if end == 2 else torch.full_like(input_ids[:, :1], end)
        fitted = input_ids[:, :limit].clone()
        fitted[:, -1:] = torch.where(fitted.ne(end).all(-1, keepdim=True), end, fitted[:, -1:])
        return fitted, None if attention_mask is None else attention_mask[:, :limit]
