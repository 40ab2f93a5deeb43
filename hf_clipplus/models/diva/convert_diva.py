"""Converts released DIVA checkpoints, and exports tuned models as stock CLIP or SigLIP.

    python -m hf_clipplus.models.diva.convert_diva from-released OpenAI-ViT-L-14-224.pth diva-folder \\
        --preset openai-l14-224 --processor openai/clip-vit-large-patch14
    python -m hf_clipplus.models.diva.convert_diva to-transformers diva-folder clip-folder

Read are the state dicts of OpenAI's CLIP, open_clip's CLIP and open_clip's SigLIP (timm's tower), alone
or in a training checkpoint (`class_model.model.*`, with the frozen diffusion model beside it, which is dropped). Every
conversion prints what became of each key and refuses when one is not accounted for.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from hf_clipplus.models.open_clip_layout import (
    NO_WEIGHTS,
    ConversionReport,
    assign_state,
    count_layers,
    from_open_clip,
    infer_tower_configs,
    read_checkpoint,
)

from .configuration_diva import DIVAConfig
from .feedback_diva import DIVAForDiffusionFeedback
from .modeling_diva import DIVAModel
from .presets_diva import PRESETS, preset
from .processing_diva import DIVAProcessor

TRAINING_PREFIX = "class_model.model."
FROZEN = {
    "vae.": "the frozen VAE",
    "unet.": "the frozen UNet",
    "text_encoder.": "the diffusion model's text encoder",
    "class_model.final_fc.": "a left-over that is never trained",
}
SCALARS = ("logit_scale", "logit_bias")
NO_BIAS = "CLIP has none; 0 leaves its logits alone"
_TIMM_TOP = {
    "visual.trunk.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.trunk.patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}
_TIMM_MODULES = {
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
    "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
    "visual.trunk.attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
    "visual.trunk.attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
    "text.ln_final": "text_model.final_layer_norm",
    "text.text_projection": "text_model.head",
}
# blocks of a tower: prefix there, prefix here, names of a block's modules, name of the joint q, k, v matrix
_TIMM_BLOCK = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
_TIMM_BLOCK |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_TEXT_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_TEXT_BLOCK |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_SIGLIP_BLOCKS = (
    ("visual.trunk.blocks", "vision_model.encoder.layers", _TIMM_BLOCK, "attn.qkv."),
    ("text.transformer.resblocks", "text_model.encoder.layers", _TEXT_BLOCK, "attn.in_proj_"),
)
_IN_PROJ = "vision_model.head.attention.in_proj_"


def diva_from_released(
    path: str | Path,
    *,
    hidden_act: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    **config,
) -> tuple[DIVAModel, ConversionReport]:
    """A DIVA model from a released or a training checkpoint.

    Args:
        path: `.pth`, `.pt` (read with `weights_only=True`) or `.safetensors`.
        hidden_act: activation; None: "quick_gelu" for CLIP (OpenAI, MetaCLIP, DFN), "gelu_pytorch_tanh" for SigLIP.
        vision_heads, text_heads: attention heads; width / 64 when None (16 for SigLIP SO400M).
        config: further fields of `DIVAConfig`, e.g. of a preset.

    Returns:
        The model in the number type of the file (`DIVAForDiffusionFeedback` where the file has the projector), and
        the report.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape.
    """
    source, dropped = _without_frozen_parts(read_checkpoint(path))
    projector = {key: source.pop(key) for key in list(source) if key.startswith("visual_proj.")}
    siglip = any(key.startswith("visual.trunk.") for key in source)
    if siglip:
        towers = _siglip_configs(source, hidden_act or "gelu_pytorch_tanh", vision_heads, text_heads)
        state, report = _from_timm_siglip(source)
    else:
        act = hidden_act or "quick_gelu"
        towers = infer_tower_configs(source, hidden_act=act, vision_heads=vision_heads, text_heads=text_heads)
        state, report = from_open_clip(source)
    report.dropped |= dropped
    if projector:
        config |= {"condition_dim": projector["visual_proj.weight"].shape[0]}
        report.used += [(key, key, list(part.shape), list(part.shape)) for key, part in projector.items()]
    model = (DIVAForDiffusionFeedback if projector else DIVAModel)(DIVAConfig(**towers, **config))
    if "logit_bias" not in state:
        report.initialised["logit_bias"] = NO_BIAS
    elif siglip:
        state |= {key: state[key].reshape(1) for key in SCALARS}
    assign_state(model, state | projector, report, float32=SCALARS)
    return model, report


def diva_to_transformers(model: DIVAModel) -> tuple[PreTrainedModel, ConversionReport]:
    """transformers' `CLIPModel` or `SiglipModel` with the tuned tower; the projector and a CLIP's bias are dropped."""
    config, state = model.config, model.state_dict()
    towers = {side: getattr(config, side).to_dict() for side in ("text_config", "vision_config")}
    report = ConversionReport()
    for key in [key for key in state if key.startswith("visual_proj.")]:
        report.dropped[key] = "the projector, of use in training only"
    if config.has_siglip_towers:
        stock = SiglipModel(SiglipConfig(**towers))
    else:
        scale = {"logit_scale_init_value": config.logit_scale_init_value, "projection_dim": config.projection_dim}
        stock = CLIPModel(CLIPConfig(**towers, **scale))
        report.dropped["logit_bias"] = f"CLIPModel has none; its value was {state['logit_bias'].item():g}"
    state = {key: value for key, value in state.items() if key not in report.dropped}
    report.used = [(key, key, list(value.shape), list(value.shape)) for key, value in state.items()]
    assign_state(stock, state, report, float32=SCALARS)
    return stock, report


def _without_frozen_parts(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Keys without the training checkpoint's prefix; what is not the CLIP or the projector, and why it is dropped."""
    kept, dropped = {}, {}
    training = any(key.startswith(TRAINING_PREFIX) for key in state)
    for key, value in state.items():
        reason = next((why for prefix, why in FROZEN.items() if key.startswith(prefix)), None) if training else None
        if reason is None:
            kept[key.removeprefix(TRAINING_PREFIX)] = value
        else:
            dropped[key] = reason
    return kept, dropped


def _from_timm_siglip(source: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Rename and split to the keys of `SiglipModel`; the pool's q, k and v become one matrix."""
    left, state, report = dict(source), {}, ConversionReport()

    def take(key: str, targets: tuple[str, ...]) -> None:
        if key not in left:
            report.missing.append(key)
            return
        value = left.pop(key)
        if key.endswith("pos_embed"):
            value = value[0]
        parts = value.chunk(len(targets)) if len(targets) > 1 else [value]
        for target, part in zip(targets, parts, strict=True):
            state[target] = part.contiguous()
            report.used.append((key, target, list(source[key].shape), list(part.shape)))

    for key, target in _TIMM_TOP.items():
        take(key, (target,))
    for module, target in _TIMM_MODULES.items():
        for part in ("weight", "bias"):
            take(f"{module}.{part}", (f"{target}.{part}",))
    for there, here, modules, joint in _SIGLIP_BLOCKS:
        for i in range(count_layers(source, there)):
            for part in ("weight", "bias"):
                for module, target in modules.items():
                    take(f"{there}.{i}.{module}.{part}", (f"{here}.{i}.{target}.{part}",))
                take(f"{there}.{i}.{joint}{part}", tuple(f"{here}.{i}.self_attn.{x}_proj.{part}" for x in "qkv"))
    for part in ("weight", "bias"):
        keys = [f"visual.trunk.attn_pool.{name}.{part}" for name in ("q", "kv")]
        if absent := [key for key in keys if key not in left]:
            report.missing += absent
            continue
        state[_IN_PROJ + part] = torch.cat([left.pop(key) for key in keys])
        shape = list(state[_IN_PROJ + part].shape)
        report.used += [(key, _IN_PROJ + part, list(source[key].shape), shape) for key in keys]
    report.dropped = {key: NO_WEIGHTS[key] for key in left if key in NO_WEIGHTS}
    report.unused = [key for key in left if key not in NO_WEIGHTS]
    return state, report


def _siglip_configs(source: dict[str, torch.Tensor], hidden_act: str, vision_heads, text_heads) -> dict:
    """Configurations of both SigLIP towers from the shapes; ValueError where a key that tells one is missing."""
    needed = ["visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "visual.trunk.blocks.0.mlp.fc1.weight"]
    needed += ["text.token_embedding.weight", "text.positional_embedding"]
    needed += ["text.transformer.resblocks.0.mlp.c_fc.weight"]
    if missing := [key for key in needed if key not in source]:
        raise ValueError(f"not an open_clip checkpoint of SigLIP: keys {missing} are missing.")
    patch, positions, hidden, tokens, context, text_hidden = (source[key].shape for key in needed)
    side, heads = round(positions[1] ** 0.5), 16 if patch[0] == 1152 else patch[0] // 64
    vision = SiglipVisionConfig(
        hidden_size=patch[0],
        intermediate_size=hidden[0],
        num_hidden_layers=count_layers(source, "visual.trunk.blocks"),
        num_attention_heads=vision_heads or heads,
        image_size=side * patch[2],
        patch_size=patch[2],
        hidden_act=hidden_act,
    )
    text = SiglipTextConfig(
        hidden_size=tokens[1],
        intermediate_size=text_hidden[0],
        num_hidden_layers=count_layers(source, "text.transformer.resblocks"),
        num_attention_heads=text_heads or (16 if tokens[1] == 1152 else tokens[1] // 64),
        max_position_embeddings=context[0],
        vocab_size=tokens[0],
        hidden_act=hidden_act,
        projection_size=patch[0],
    )
    return {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": patch[0]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    released = actions.add_parser("from-released", help="released or training checkpoint -> DIVA folder")
    exported = actions.add_parser("to-transformers", help="DIVA folder -> transformers CLIP or SigLIP folder")
    for sub in (released, exported):
        sub.add_argument("source")
        sub.add_argument("destination", type=Path)
    released.add_argument("--preset", choices=tuple(PRESETS), help="settings to record in the configuration")
    released.add_argument("--processor", help="folder or Hub name of the backbone's processor, to save too")
    released.add_argument("--hidden-act", help="(quick_gelu for CLIP, gelu_pytorch_tanh for SigLIP)")
    released.add_argument("--vision-heads", type=int, help="(width / 64)")
    released.add_argument("--text-heads", type=int, help="(width / 64)")
    args = parser.parse_args(arguments)
    if args.action == "to-transformers":
        model, report = diva_to_transformers(DIVAModel.from_pretrained(args.source))
        processor = AutoProcessor.from_pretrained(args.source)
        processor.image_processor.save_pretrained(args.destination)
        processor.tokenizer.save_pretrained(args.destination)
    else:
        fields = preset(args.preset).config if args.preset else {}
        heads = {"vision_heads": args.vision_heads, "text_heads": args.text_heads}
        model, report = diva_from_released(args.source, hidden_act=args.hidden_act, **heads, **fields)
        if args.processor:
            stock = AutoProcessor.from_pretrained(args.processor)
            options = {"pad_texts": model.config.has_siglip_towers}
            DIVAProcessor(stock.image_processor, stock.tokenizer, **options).save_pretrained(args.destination)
    print(report)
    model.save_pretrained(args.destination)


if __name__ == "__main__":
    main()
