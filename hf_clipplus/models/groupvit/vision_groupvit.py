"""The image encoder of GroupViT: stages of transformer blocks that end in grouping blocks, at any image size."""

from dataclasses import dataclass
from itertools import accumulate
from math import sqrt

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hf_clipplus.ops.grouping import assign_to_groups, at_least_float32, gumbel_noise, merge_weights

from .configuration_groupvit import GroupViTPlusVisionConfig


@dataclass
class GroupViTPlusVisionOutput(BaseModelOutputWithPooling):
    """What the image encoder returns.

    Args:
        last_hidden_state: `[B, G, C]`, the segments (groups of the last grouping stage) after the final norm.
        pooler_output: `[B, C]`, their mean.
        soft_assignments: with `output_assignments`, per grouping stage `[B, G, M]`, at least float32: the soft
            assignment of the M tokens without noise, which segmentation uses.
        hard_assignments: the same for the assignment that merged the tokens.
        hidden_states, attentions: of the blocks, when asked for.
    """

    soft_assignments: tuple[torch.Tensor, ...] | None = None
    hard_assignments: tuple[torch.Tensor, ...] | None = None


class GroupViTPlusMLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, inputs: int, inner: int, outputs: int, activation: str):
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = (
            nn.Linear(inputs, inner),
            ACT2FN[activation],
            nn.Linear(inner, outputs),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class GroupViTPlusTokenMLP(GroupViTPlusMLP):
    """The same over the token axis: `[B, inputs, C] -> [B, outputs, C]`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)


class GroupViTPlusAttention(nn.Module):
    """Attention of queries `[B, Q, C]` to keys `[B, K, C]` (which give the values too)."""

    def __init__(self, config: GroupViTPlusVisionConfig, width: int, heads: int):
        super().__init__()
        self.config, self.heads, self.scaling = config, heads, (width // heads) ** -0.5
        self.is_causal = False
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: torch.Tensor, key: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        by_head = [
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, tokens, C / heads]
            for projected in (self.q_proj(query), self.k_proj(key), self.v_proj(key))
        ]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        found, weights = attend(self, *by_head, None, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.out_proj(found.flatten(2)), weights


class GroupViTPlusSelfAttention(GroupViTPlusAttention):
    """Attention of tokens among themselves."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().forward(hidden_states, hidden_states, **kwargs)


class GroupViTPlusDropPath(nn.Module):
    """Leaves a branch out for whole images, with probability `rate` in training; the others are scaled up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class GroupViTPlusLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(self, config: GroupViTPlusVisionConfig, width: int, heads: int, drop_path: float):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = GroupViTPlusSelfAttention(config, width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = GroupViTPlusMLP(width, int(config.mlp_ratio * width), width, config.hidden_act)
        self.drop_path = GroupViTPlusDropPath(drop_path)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.layer_norm2(hidden_states)))


class GroupViTPlusPreAssign(nn.Module):
    """Lets the group tokens look at the segments before these are assigned; queries and keys are not normed."""

    def __init__(self, config: GroupViTPlusVisionConfig, width: int, heads: int):
        super().__init__()
        self.attn = GroupViTPlusAttention(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = GroupViTPlusMLP(width, int(config.mlp_ratio * width), width, config.hidden_act)
        self.norm_post = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, groups: torch.Tensor, segments: torch.Tensor, **kwargs) -> torch.Tensor:
        groups = groups + self.attn(groups, segments, **kwargs)[0]
        return self.norm_post(groups + self.mlp(self.norm2(groups)))


class GroupViTPlusAssign(nn.Module):
    """Assigns tokens to groups with one head and merges their values (Eq. 2-5)."""

    def __init__(self, config: GroupViTPlusVisionConfig, width: int):
        super().__init__()
        self.config, self.scaling = config, width**-0.5
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        groups: torch.Tensor,
        segments: torch.Tensor,
        noise: torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        logits = self.q_proj(groups) @ self.k_proj(segments).transpose(1, 2) * self.scaling  # [B, G, M]
        if noise is None and self.training and config.assign_gumbel:
            noise = gumbel_noise(logits, generator)
        # float32 under autocast too: a group's size and the straight-through difference do not survive bf16
        with torch.autocast(logits.device.type, enabled=False):
            used, soft = assign_to_groups(logits, hard=config.hard_assignment, noise=noise)
            weights = merge_weights(used, eps=config.assign_eps, normalize=not config.sum_assign)
        values = self.v_proj(segments)
        return self.proj(weights.to(values.dtype) @ values), used, soft


class GroupViTPlusGroupingBlock(nn.Module):
    """Merges segments `[B, M, C]` into groups `[B, G_out, C_out]`, led by group tokens `[B, G_in, C]` (Eq. 2-6).

    As in the published code, an MLP over the tokens first makes `G_out` of the `G_in` group tokens.
    """

    def __init__(
        self,
        config: GroupViTPlusVisionConfig,
        *,
        width: int,
        out_width: int,
        heads: int,
        group_tokens: int,
        output_groups: int,
    ):
        super().__init__()
        over_tokens, over_channels = (int(ratio * width) for ratio in config.assign_mlp_ratio)
        norm = lambda: nn.LayerNorm(width, eps=config.layer_norm_eps)  # noqa: E731
        self.norm_tokens, self.norm_x = norm(), norm()
        self.mlp_inter = GroupViTPlusTokenMLP(group_tokens, over_tokens, output_groups, config.hidden_act)
        self.norm_post_tokens = norm()
        self.pre_assign_attn = GroupViTPlusPreAssign(config, width, heads)
        self.assign = GroupViTPlusAssign(config, width)
        self.norm_new_x = norm()
        self.mlp_channels = GroupViTPlusMLP(width, over_channels, out_width, config.hidden_act)
        self.reduction = nn.Identity()
        if out_width != width:
            self.reduction = nn.Sequential(norm(), nn.Linear(width, out_width, bias=False))

    def forward(
        self,
        segments: torch.Tensor,
        group_tokens: torch.Tensor,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The groups, the assignment that was used and the soft one without noise (both `[B, G_out, M]`)."""
        segments = self.norm_x(segments)
        groups = self.norm_post_tokens(self.mlp_inter(self.norm_tokens(group_tokens)))
        groups = self.pre_assign_attn(groups, segments, **kwargs)
        merged, used, soft = self.assign(groups, segments, noise, generator)
        merged = merged + groups
        return self.reduction(merged) + self.mlp_channels(self.norm_new_x(merged)), used, soft


class GroupViTPlusStage(nn.Module):
    """Blocks over tokens and this stage's group tokens, then a grouping block; the last stage has blocks only."""

    def __init__(self, config: GroupViTPlusVisionConfig, stage: int, drop_path: list[float]):
        super().__init__()
        width, heads, tokens = config.widths[stage], config.heads[stage], config.num_group_tokens[stage]
        self.layers = nn.ModuleList(GroupViTPlusLayer(config, width, heads, rate) for rate in drop_path)
        self.is_first, self.tokens = stage == 0, tokens
        self.group_token = self.group_projector = self.downsample = None
        if not tokens:
            return
        self.group_token = nn.Parameter(torch.zeros(1, tokens, width))
        self.downsample = GroupViTPlusGroupingBlock(
            config,
            width=width,
            out_width=config.widths[stage + 1],
            heads=heads,
            group_tokens=tokens,
            output_groups=config.num_output_groups[stage],
        )
        if stage > 0:
            before = config.widths[stage - 1]
            norm = lambda: nn.LayerNorm(before, eps=config.layer_norm_eps)  # noqa: E731
            inner = config.hidden_size // 2
            mix = GroupViTPlusTokenMLP(config.num_group_tokens[stage - 1], inner, tokens, config.hidden_act)
            widen = [] if before == width else [norm(), nn.Linear(before, width, bias=False)]
            self.group_projector = nn.Sequential(norm(), mix, *widen)

    def forward(
        self,
        segments: torch.Tensor,
        group_tokens: torch.Tensor | None,
        noise: torch.Tensor | None,
        generator: torch.Generator | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Groups (or tokens), the group tokens after the blocks, and both assignments; the last three may be None."""
        hidden_states = segments
        if self.tokens:
            own = self.group_token.expand(len(segments), -1, -1)
            own = own if self.group_projector is None else own + self.group_projector(group_tokens)
            hidden_states = torch.cat([segments, own], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if not self.tokens:
            return hidden_states, None, None, None
        segments, own = hidden_states[:, : -self.tokens], hidden_states[:, -self.tokens :]
        groups, used, soft = self.downsample(segments, own, noise, generator, **kwargs)
        return groups, own, used, soft


class GroupViTPlusEncoder(nn.Module):
    """The stages, one after the other."""

    def __init__(self, config: GroupViTPlusVisionConfig):
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        ends = list(accumulate(config.depths))
        self.stages = nn.ModuleList(
            GroupViTPlusStage(config, stage, rates[end - depth : end])
            for stage, (depth, end) in enumerate(zip(config.depths, ends, strict=True))
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        gumbel_noise: list[torch.Tensor] | None,
        generator: torch.Generator | None,
        **kwargs,
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """The last segments, and the used and the soft assignment of each grouping stage."""
        group_tokens, all_used, all_soft = None, [], []
        noises = [*(gumbel_noise or [None] * (len(self.stages) - 1)), None]
        for stage, noise in zip(self.stages, noises, strict=True):
            hidden_states, group_tokens, used, soft = stage(hidden_states, group_tokens, noise, generator, **kwargs)
            if used is not None:
                all_used.append(used)
                all_soft.append(soft)
        return hidden_states, all_used, all_soft


class GroupViTPlusPatchEmbeddings(nn.Module):
    """The patch convolution; it has the name and place of transformers' GroupViT."""

    def __init__(self, config: GroupViTPlusVisionConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values.to(self.projection.weight.dtype))


class GroupViTPlusVisionEmbeddings(nn.Module):
    """Patches to normed tokens plus positions; no class token."""

    def __init__(self, config: GroupViTPlusVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = GroupViTPlusPatchEmbeddings(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        side = config.image_size // config.patch_size
        self.position_embeddings = nn.Parameter(torch.zeros(1, side * side, config.hidden_size))

    def positions(self, height: int, width: int) -> torch.Tensor:
        """The position embedding for a grid of patches, stretched (bicubic) unless it is the one of training."""
        learned = self.position_embeddings
        side = round(sqrt(learned.shape[1]))
        if (height, width) == (side, side):
            return learned
        grid = learned.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(at_least_float32(grid), size=(height, width), mode="bicubic", align_corners=False)
        return grid.to(learned.dtype).flatten(2).transpose(1, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patch = self.config.patch_size
        if min(pixel_values.shape[-2:]) < patch:
            height, width = pixel_values.shape[-2:]
            raise ValueError(f"an image of {height}x{width} pixels (h x w) is smaller than a patch of {patch} pixels.")
        patches = self.patch_embeddings(pixel_values)  # [B, C, h, w]
        tokens = self.layernorm(patches.flatten(2).transpose(1, 2))
        return tokens + self.positions(*patches.shape[-2:])


class GroupViTPlusVisionModel(PreTrainedModel):
    """GroupViT's image encoder: pictures of any size to segments and the assignment of patches to them."""

    config_class = GroupViTPlusVisionConfig
    config: GroupViTPlusVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["GroupViTPlusVisionEmbeddings", "GroupViTPlusLayer", "GroupViTPlusGroupingBlock"]
    _can_record_outputs = {"hidden_states": GroupViTPlusLayer, "attentions": GroupViTPlusSelfAttention}
    _input_embed_layer = "patch_embeddings"

    def __init__(self, config: GroupViTPlusVisionConfig):
        super().__init__(config)
        self.embeddings = GroupViTPlusVisionEmbeddings(config)
        self.encoder = GroupViTPlusEncoder(config)
        self.layernorm = nn.LayerNorm(config.widths[-1], eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        gumbel_noise: list[torch.Tensor] | None = None,
        generator: torch.Generator | None = None,
        output_assignments: bool = False,
        **kwargs,
    ) -> GroupViTPlusVisionOutput:
        """Encode pictures.

        Args:
            pixel_values: `[B, 3, H, W]`, any H and W of at least a patch; what a last incomplete patch holds is lost.
            gumbel_noise: per grouping stage `[B, G, M]`, added to the assignment logits in any mode; None draws it in
                training and adds none otherwise.
            generator: where the noise is drawn from; the global one when None.
            output_assignments: return both assignments of every stage.
        """
        hidden_states = self.embeddings(pixel_values)
        hidden_states, used, soft = self.encoder(hidden_states, gumbel_noise, generator, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        output = GroupViTPlusVisionOutput(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(1))
        if output_assignments:
            output["soft_assignments"], output["hard_assignments"] = tuple(soft), tuple(used)
        return output

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation; the patch convolution has PyTorch's own."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            init_like_pytorch(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, GroupViTPlusVisionEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
        elif isinstance(module, GroupViTPlusStage) and module.group_token is not None:
            if module.is_first:
                init.trunc_normal_(module.group_token, std=std)
            else:
                init.zeros_(module.group_token)


def init_like_pytorch(module: nn.Linear | nn.Conv2d) -> None:
    """PyTorch's default weights of a linear or convolution layer, through functions that spare what was loaded."""
    init.kaiming_uniform_(module.weight, a=sqrt(5))
    if module.bias is not None:
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)
