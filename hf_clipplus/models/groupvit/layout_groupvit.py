"""GroupViT's three checkpoint layouts, key by key: the official files, transformers' GroupViTModel, and ours.

Ours has transformers' names plus `multi_label_logit_scale`. The official one keeps q, k and v in one matrix (in this
order) and its projectors as 1x1 convolutions.
"""

import re
from math import isqrt

import torch

from hf_clipplus.models.open_clip_layout import ConversionReport

from .configuration_groupvit import RELEASED_TEXT, GroupViTPlusConfig

PROMPTS_OF_RELEASE = 3
_VISION, _TEXT = "vision_model.encoder.stages", "text_model.encoder.layers"
# official -> ours, the first that matches; a joint matrix becomes three
_RULES = tuple(
    (re.compile(f"^{official}$"), ours)
    for official, ours in (
        (r"(logit_scale|multi_label_logit_scale)", r"\1"),
        (r"img_encoder\.pos_embed", "vision_model.embeddings.position_embeddings"),
        (r"img_encoder\.patch_embed\.proj\.(\w+)", r"vision_model.embeddings.patch_embeddings.projection.\1"),
        (r"img_encoder\.patch_embed\.norm\.(\w+)", r"vision_model.embeddings.layernorm.\1"),
        (r"img_encoder\.norm\.(\w+)", r"vision_model.layernorm.\1"),
        (r"img_encoder\.layers\.(\d+)\.group_token", rf"{_VISION}.\1.group_token"),
        (r"img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.norm(\d)\.(\w+)", rf"{_VISION}.\1.layers.\2.layer_norm\3.\4"),
        (r"img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(\w+)", rf"{_VISION}.\1.layers.\2.self_attn.QKV.\3"),
        (
            r"img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(\w+)",
            rf"{_VISION}.\1.layers.\2.self_attn.out_proj.\3",
        ),
        (r"img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc(\d)\.(\w+)", rf"{_VISION}.\1.layers.\2.mlp.fc\3.\4"),
        (
            r"img_encoder\.layers\.(\d+)\.downsample\.pre_assign_attn\.attn\.proj\.(\w+)",
            rf"{_VISION}.\1.downsample.pre_assign_attn.attn.out_proj.\2",
        ),
        (
            r"img_encoder\.layers\.(\d+)\.(downsample\.(?!reduction)[\w.]+|group_projector\.(?:0|1\.fc\d)\.\w+)",
            rf"{_VISION}.\1.\2",
        ),
        (r"text_encoder\.token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
        (r"text_encoder\.positional_embedding", "text_model.embeddings.position_embedding.weight"),
        (r"text_encoder\.ln_final\.(\w+)", r"text_model.final_layer_norm.\1"),
        (r"text_encoder\.transformer\.resblocks\.(\d+)\.ln_(\d)\.(\w+)", rf"{_TEXT}.\1.layer_norm\2.\3"),
        (r"text_encoder\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", rf"{_TEXT}.\1.self_attn.QKV.\2"),
        (
            r"text_encoder\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)",
            rf"{_TEXT}.\1.self_attn.out_proj.\2",
        ),
        (r"text_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", rf"{_TEXT}.\1.mlp.fc1.\2"),
        (r"text_encoder\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", rf"{_TEXT}.\1.mlp.fc2.\2"),
        (r"img_projector\.linear_hidden\.(\d)\.(\w+)", r"visual_projection.\1.\2"),
        (r"img_projector\.linear_out\.(\w+)", r"visual_projection.3.\1"),
        (r"text_projector\.linear_hidden\.(\d)\.(\w+)", r"text_projection.\1.\2"),
        (r"text_projector\.linear_out\.(\w+)", r"text_projection.3.\1"),
    )
)
_CONVOLUTION = re.compile(r"(?:img|text)_projector\.linear_(?:hidden\.0|out)\.weight")


def our_keys(official: str) -> tuple[str, ...]:
    """The key of ours that an official key becomes, or the three of a joint matrix; empty when it is unknown."""
    for pattern, ours in _RULES:
        if pattern.match(official):
            target = pattern.sub(ours, official)
            return tuple(target.replace("QKV", f"{x}_proj") for x in "qkv") if "QKV" in target else (target,)
    return ()


def from_official(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Rename, split and squeeze to our names; call `report.check` with the shapes that the model expects."""
    converted, report = {}, ConversionReport()
    for source, tensor in state.items():
        targets = our_keys(source)
        if not targets:
            report.unused.append(source)
            continue
        shape = list(tensor.shape)
        if _CONVOLUTION.fullmatch(source) and tensor.ndim == 3 and shape[2] == 1:
            tensor = tensor.squeeze(2)
        for target, part in zip(targets, tensor.chunk(len(targets)) if len(targets) > 1 else [tensor], strict=True):
            converted[target] = part.contiguous()
            report.used.append((source, target, shape, list(part.shape)))
    return converted, report


def to_official(
    state: dict[str, torch.Tensor], config: GroupViTPlusConfig
) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """The way back: exact, so that a round trip is bit-equal.

    Raises:
        ValueError: the model has parts that the official layout has no confirmed names for (`embed_factors`), or keys
            are not accounted for.
    """
    if config.vision_config.embed_factors is not None and len(set(config.vision_config.widths)) > 1:
        raise ValueError(
            f"embed_factors={config.vision_config.embed_factors}: stages of different widths occur in no published "
            "model, and the official names of their extra layers are not confirmed."
        )
    converted, report, left = {}, ConversionReport(), dict(state)
    for target in official_keys(config):
        sources = our_keys(target)
        if absent := [source for source in sources if source not in left]:
            report.missing += absent
            continue
        parts = [left.pop(source) for source in sources]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        tensor = tensor.unsqueeze(2) if _CONVOLUTION.fullmatch(target) else tensor
        converted[target] = tensor.contiguous()
        report.used += [
            (source, target, list(part.shape), list(tensor.shape)) for source, part in zip(sources, parts, strict=True)
        ]
    report.unused = list(left)
    report.check({}, {})
    return converted, report


def official_keys(config: GroupViTPlusConfig) -> list[str]:
    """Every key of an official checkpoint of this configuration."""
    vision, both = config.vision_config, ("weight", "bias")

    def with_parts(*names: str) -> list[str]:
        return [f"{name}.{part}" for name in names for part in both]

    def mlp(name: str) -> list[str]:
        return with_parts(f"{name}.fc1", f"{name}.fc2")

    keys = ["logit_scale", *(["multi_label_logit_scale"] if config.has_multi_label_scale else [])]
    keys += ["img_encoder.pos_embed"]
    keys += with_parts("img_encoder.patch_embed.proj", "img_encoder.patch_embed.norm", "img_encoder.norm")
    for stage, (depth, tokens) in enumerate(zip(vision.depths, vision.num_group_tokens, strict=True)):
        name = f"img_encoder.layers.{stage}"
        for block in (f"{name}.blocks.{i}" for i in range(depth)):
            keys += with_parts(*(f"{block}.{part}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2")))
            keys += mlp(f"{block}.mlp")
        if not tokens:
            continue
        down = f"{name}.downsample"
        attend = f"{down}.pre_assign_attn"
        norms = ("norm_tokens", "norm_x", "norm_post_tokens", "norm_new_x")
        projections = ("q_proj", "k_proj", "v_proj", "proj")
        keys += [f"{name}.group_token", *mlp(f"{down}.mlp_inter"), *mlp(f"{down}.mlp_channels")]
        keys += with_parts(*(f"{down}.{norm}" for norm in norms), *(f"{down}.assign.{x}" for x in projections))
        keys += with_parts(*(f"{attend}.attn.{x}" for x in projections), f"{attend}.norm2", f"{attend}.norm_post")
        keys += mlp(f"{attend}.mlp")
        if stage > 0:
            keys += with_parts(f"{name}.group_projector.0") + mlp(f"{name}.group_projector.1")
    keys += ["text_encoder.token_embedding.weight", "text_encoder.positional_embedding"]
    keys += with_parts("text_encoder.ln_final")
    for block in (f"text_encoder.transformer.resblocks.{i}" for i in range(config.text_config.num_hidden_layers)):
        keys += with_parts(*(f"{block}.{x}" for x in ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")))
        keys += [f"{block}.attn.in_proj_{part}" for part in both]
    for projector in ("img_projector", "text_projector"):
        keys += with_parts(*(f"{projector}.{x}" for x in ("linear_hidden.0", "linear_hidden.1", "linear_out")))
        keys += [f"{projector}.linear_hidden.1.{x}" for x in ("running_mean", "running_var", "num_batches_tracked")]
    return keys


def infer_config(
    state: dict[str, torch.Tensor], *, vision: dict | None = None, text: dict | None = None, **config
) -> GroupViTPlusConfig:
    """Configuration of an official checkpoint from its shapes.

    Args:
        state: tensors under official names.
        vision, text: fields of the encoders' configurations that shapes do not tell, e.g. `num_attention_heads`
            (width / 64 when not given) or `drop_path_rate`.
        config: further fields of `GroupViTPlusConfig`, e.g. `prompts_per_image` (3 when the file has a scale for the
            multi-label loss).

    Raises:
        ValueError: keys that tell a size are missing, the positions are no square, or a width is no multiple of 64
            and the heads are not given.
    """
    needed = (
        *("img_encoder.pos_embed", "img_encoder.patch_embed.proj.weight", "text_encoder.token_embedding.weight"),
        *("text_encoder.positional_embedding", "img_projector.linear_out.weight", "img_encoder.layers.0.group_token"),
    )
    if missing := [key for key in needed if key not in state]:
        raise ValueError(
            f"not an official GroupViT checkpoint: keys {missing} are missing (found {len(state)} keys, e.g. "
            f"{sorted(state)[:3]}). Pass the tensors under its key 'model'."
        )
    shape = {key: tuple(tensor.shape) for key, tensor in state.items()}
    _, patches, width = shape["img_encoder.pos_embed"]
    if isqrt(patches) ** 2 != patches:
        raise ValueError(f"img_encoder.pos_embed has {patches} positions, which is no square.")
    layers = [f"img_encoder.layers.{i}" for i in range(1 + _highest(state, r"img_encoder\.layers\.(\d+)\."))]
    grouping = [layer for layer in layers if f"{layer}.group_token" in state]
    _, channels, _, patch = shape["img_encoder.patch_embed.proj.weight"]
    down = f"{grouping[0]}.downsample"
    context, text_width = shape["text_encoder.positional_embedding"]
    vocabulary = shape["text_encoder.token_embedding.weight"][0]
    blocks = "text_encoder.transformer.resblocks"
    vision_config = {
        "hidden_size": width,
        "depths": [1 + _highest(state, rf"{re.escape(layer)}\.blocks\.(\d+)\.") for layer in layers],
        "num_group_tokens": [shape.get(f"{layer}.group_token", (1, 0))[1] for layer in layers],
        "num_output_groups": [shape[f"{layer}.downsample.mlp_inter.fc2.weight"][0] for layer in grouping],
        "image_size": isqrt(patches) * patch,
        "patch_size": patch,
        "num_channels": channels,
        "mlp_ratio": shape["img_encoder.layers.0.blocks.0.mlp.fc1.weight"][0] / width,
        "assign_mlp_ratio": [
            shape[f"{down}.mlp_inter.fc1.weight"][0] / width,
            shape[f"{down}.mlp_channels.fc1.weight"][0] / width,
        ],
    }
    text_config = RELEASED_TEXT | {
        "hidden_size": text_width,
        "intermediate_size": shape[f"{blocks}.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": 1 + _highest(state, rf"{re.escape(blocks)}\.(\d+)\."),
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # a text is pooled at its highest id: the last of the vocabulary
    }
    joint, inner = shape["img_projector.linear_out.weight"][:2]
    sizes = {"projection_dim": joint, "projection_intermediate_dim": inner}
    return GroupViTPlusConfig(
        text_config=text_config | _heads(text_width, text, "text"),
        vision_config=vision_config | _heads(width, vision, "vision"),
        **sizes | {"prompts_per_image": PROMPTS_OF_RELEASE if "multi_label_logit_scale" in state else 0} | config,
    )


def _highest(state: dict[str, torch.Tensor], pattern: str) -> int:
    found = (re.match(pattern, key) for key in state)
    return max((int(match.group(1)) for match in found if match), default=-1)


def _heads(width: int, given: dict | None, tower: str) -> dict:
    """The given fields, with heads of width 64 where there are none."""
    if "num_attention_heads" not in (given or {}) and width % 64:
        raise ValueError(f"{tower} encoder: width {width} is no multiple of 64, give its num_attention_heads.")
    return {"num_attention_heads": max(1, width // 64)} | (given or {})
