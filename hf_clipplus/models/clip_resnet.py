"""OpenAI's modified ResNet, the vision tower of CLIP RN50, which transformers does not have.

Attribute names are those of the published state dict, so that its keys load as they are. The blocks are not
checkpointed: running one twice would move the running statistics of its batch norms twice.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_clip_resnet import CLIPResNetConfig

EXPANSION = 4


class CLIPResNetBlock(nn.Module):
    """Bottleneck whose stride is an average pooling, in the branch before the last convolution and in the shortcut."""

    def __init__(self, channels: int, inner: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner * EXPANSION)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or channels != inner * EXPANSION:
            shortcut = nn.Conv2d(channels, inner * EXPANSION, 1, bias=False)
            layers = [("-1", nn.AvgPool2d(stride)), ("0", shortcut), ("1", nn.BatchNorm2d(inner * EXPANSION))]
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        residual = pixels if self.downsample is None else self.downsample(pixels)
        pixels = F.relu(self.bn1(self.conv1(pixels)))
        pixels = self.avgpool(F.relu(self.bn2(self.conv2(pixels))))
        return F.relu(self.bn3(self.conv3(pixels)) + residual)


class CLIPResNetAttentionPool(nn.Module):
    """Attention of the mean over all places to the places and itself, into the joint space."""

    def __init__(self, config: CLIPResNetConfig):
        super().__init__()
        width, places = config.hidden_size, (config.image_size // 32) ** 2
        self.heads = config.heads
        self.positional_embedding = nn.Parameter(torch.empty(places + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, config.projection_dim)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:  # [N, C, h, w] -> [N, D]
        tokens = pixels.flatten(2).transpose(1, 2)
        if tokens.shape[1] + 1 != len(self.positional_embedding):
            raise ValueError(
                f"the attention pooling has {len(self.positional_embedding) - 1} places, the picture gives "
                f"{tokens.shape[1]}: use the configured image_size."
            )
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, keys, values = (
            projection(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, places, d]
            for projection, rows in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        pooled = F.scaled_dot_product_attention(query, keys, values)
        return self.c_proj(pooled.transpose(1, 2).flatten(1))


class CLIPResNetModel(PreTrainedModel):
    """CLIP's ResNet: pictures to features of the joint space (`pooler_output`, not normalised)."""

    config_class = CLIPResNetConfig
    config: CLIPResNetConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["CLIPResNetBlock"]

    def __init__(self, config: CLIPResNetConfig):
        super().__init__(config)
        half, width = config.width // 2, config.width
        self.conv1 = nn.Conv2d(config.num_channels, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        for stage, depth in enumerate(config.depths):
            inner, blocks = width * 2**stage, []
            for block in range(depth):
                blocks.append(CLIPResNetBlock(channels, inner, 2 if stage and not block else 1))
                channels = inner * EXPANSION
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = CLIPResNetAttentionPool(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.conv1

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        width = self.config.hidden_size
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, CLIPResNetAttentionPool):
            init.normal_(module.positional_embedding, std=self.config.initializer_range * width**-0.5)
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                init.normal_(projection.weight, std=width**-0.5)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """`last_hidden_state [N, places, C]` before the pooling, `pooler_output [N, D]` in the joint space."""
        pixels = pixel_values
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            pixels = F.relu(norm(conv(pixels)))
        pixels = self.avgpool(pixels)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            pixels = stage(pixels)
        return BaseModelOutputWithPooling(
            last_hidden_state=pixels.flatten(2).transpose(1, 2), pooler_output=self.attnpool(pixels)
        )


__all__ = ["CLIPResNetModel"]
