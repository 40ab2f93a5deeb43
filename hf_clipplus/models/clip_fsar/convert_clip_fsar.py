"""Converts training checkpoints of the published CLIP-FSAR code, which hold no text tower, and back.

    python -m hf_clipplus.models.clip_fsar.convert_clip_fsar from-official checkpoint_epoch_00001.pyth ViT-B-16.pt folder \\
        --processor openai/clip-vit-base-patch16
    python -m hf_clipplus.models.clip_fsar.convert_clip_fsar to-official folder checkpoint.pyth

The text tower is read from a checkpoint of the original CLIP in OpenAI's or open_clip's layout. Every conversion
prints what became of each key and refuses when one is not accounted for.
"""  # noqa: E501

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from hf_clipplus.models.open_clip_layout import (
    ConversionReport,
    assign_state,
    from_open_clip,
    infer_text_config,
    infer_tower_configs,
    read_checkpoint,
    to_open_clip,
)

from ..configuration_clip_resnet import CLIPResNetConfig
from ..video_processing import VideoFrameProcessor
from .configuration_clip_fsar import CLIPFSARConfig
from .modeling_clip_fsar import CLIPFSARForFewShotVideoClassification
from .processing_clip_fsar import CLIPFSARProcessor

PREFIX = "head."
_LAYER = {
    "0.norm.weight": "norm.weight",
    "0.norm.bias": "norm.bias",
    "0.fn.to_q.weight": "q_proj.weight",
    "0.fn.to_k.weight": "k_proj.weight",
    "0.fn.to_v.weight": "v_proj.weight",
    "0.fn.to_out.0.weight": "out_proj.weight",
    "0.fn.to_out.0.bias": "out_proj.bias",
    "1.net.0.weight": "fc1.weight",
    "1.net.0.bias": "fc1.bias",
    "1.net.3.weight": "fc2.weight",
    "1.net.3.bias": "fc2.bias",
}
_CLIP_SCALE = "the temperature of CLIP; CLIP-FSAR has one of its own (scale)"
_BATCH_COUNT = "a counter that batch norm with a fixed momentum does not use; set to 0"
_TEXT = ("text_model.", "text_projection.")


def clip_fsar_from_official(
    state: Mapping[str, Tensor], clip: Mapping[str, Tensor], *, hidden_act: str = "quick_gelu", **config: Any
) -> tuple[CLIPFSARForFewShotVideoClassification, ConversionReport]:
    """A model from the tensors of a published checkpoint and the text tower of the CLIP that it started from.

    Args:
        state: `model_state` of the checkpoint, names with or without `head.`.
        clip: tensors of CLIP in OpenAI's layout; only its text tower is used.
        hidden_act: activation of both towers.
        config: further fields of `CLIPFSARConfig`; what shapes tell is inferred.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape.
    """
    state = {key.removeprefix(PREFIX): value for key, value in state.items()}
    joined = {key: value for key, value in clip.items() if not key.startswith("visual.")}
    joined |= {key.replace("backbone.", "visual."): v for key, v in state.items() if key.startswith("backbone.")}
    resnet = "visual.attnpool.positional_embedding" in joined
    towers = _resnet_configs(joined, hidden_act) if resnet else infer_tower_configs(joined, hidden_act=hidden_act)
    layers = [key.split(".")[2] for key in state if key.startswith("context2.layers.")]
    ffn = state.get("context2.layers.0.1.net.0.weight")
    shapes = {"temporal_depth": len(set(layers))}
    if ffn is not None:
        shapes["temporal_ffn_dim"] = ffn.shape[0]
    model = CLIPFSARForFewShotVideoClassification(CLIPFSARConfig(**towers, **shapes, **config))
    converted, report = _towers_from_open_clip(joined, resnet)
    for key, value in state.items():
        if key.startswith("backbone."):
            continue
        target = _our_key(key)
        if target is None:
            report.unused.append(key)
            continue
        converted[target] = value.reshape(()) if key == "scale" else value
        report.used.append((key, target, list(value.shape), list(converted[target].shape)))
    if converted.pop("logit_scale", None) is not None:
        report.dropped["logit_scale"] = _CLIP_SCALE
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    report.initialised |= dict.fromkeys(counters - converted.keys(), _BATCH_COUNT)
    assign_state(model, converted, report, ("video_text_scale",))
    return model, report


def clip_fsar_to_official(
    model: CLIPFSARForFewShotVideoClassification,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """The tensors as the published code saves them (`model_state`); text tower and support set are left out."""
    state, report = model.state_dict(), ConversionReport()
    for key in [key for key in state if key.startswith((*_TEXT, "support."))]:
        report.dropped[key] = "the published checkpoints hold no text tower and no support set"
    towers = {key: value for key, value in state.items() if key.startswith(("vision_model.", "visual_projection."))}
    if model.config.has_resnet:
        found = {key.replace("vision_model.", "backbone."): value for key, value in towers.items()}
    else:
        text = {key: value for key, value in state.items() if key.startswith(_TEXT)}
        open_clip, _ = to_open_clip(towers | text | {"logit_scale": torch.zeros(())})
        found = {key.replace("visual.", "backbone."): v for key, v in open_clip.items() if key.startswith("visual.")}
    found["scale"] = state["video_text_scale"].reshape(1)
    for i in range(model.config.temporal_depth):
        found |= {
            f"context2.layers.{i}.{source}": state[f"temporal_transformer.layers.{i}.{target}"]
            for source, target in _LAYER.items()
        }
    found = {PREFIX + key: value for key, value in found.items()}
    report.used = [(key, key, list(value.shape), list(value.shape)) for key, value in found.items()]
    return found, report


def _our_key(key: str) -> str | None:
    """Our name of a tensor of the published head, None if it has none."""
    if key == "scale":
        return "video_text_scale"
    if not key.startswith("context2.layers."):
        return None
    number, _, name = key.removeprefix("context2.layers.").partition(".")
    return f"temporal_transformer.layers.{number}.{_LAYER[name]}" if name in _LAYER else None


def _towers_from_open_clip(joined: dict[str, Tensor], resnet: bool) -> tuple[dict[str, Tensor], ConversionReport]:
    if not resnet:
        return from_open_clip(joined)
    own = {key: value for key, value in joined.items() if key.startswith("visual.")}
    converted, report = from_open_clip({key: value for key, value in joined.items() if key not in own})
    report.missing = [key for key in report.missing if not key.startswith("visual.")]
    for key, value in own.items():
        target = key.replace("visual.", "vision_model.")
        converted[target] = value
        report.used.append((key, target, list(value.shape), list(value.shape)))
    return converted, report


def _resnet_configs(state: dict[str, Tensor], hidden_act: str) -> dict[str, Any]:
    depths = [
        1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"visual.layer{stage}."))
        for stage in range(1, 5)
    ]
    places = len(state["visual.attnpool.positional_embedding"]) - 1
    vision = CLIPResNetConfig(
        width=2 * state["visual.conv1.weight"].shape[0],
        depths=depths,
        image_size=32 * round(places**0.5),
        projection_dim=state["visual.attnpool.c_proj.weight"].shape[0],
    )
    text = infer_text_config(state, hidden_act=hidden_act)
    return {
        "text_config": text.to_dict(),
        "vision_config": vision.to_dict(),
        "projection_dim": vision.projection_dim,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    back = commands.add_parser("from-official", help="published checkpoint and CLIP -> folder")
    back.add_argument("checkpoint"), back.add_argument("clip"), back.add_argument("folder")
    back.add_argument("--processor", help="Hub id or folder whose tokenizer the processor takes")
    there = commands.add_parser("to-official", help="folder -> published checkpoint")
    there.add_argument("folder"), there.add_argument("checkpoint")
    args = parser.parse_args(argv)
    if args.command == "to-official":
        state, report = clip_fsar_to_official(CLIPFSARForFewShotVideoClassification.from_pretrained(args.folder))
        torch.save({"model_state": state}, args.checkpoint)
        print(report)
        return
    model, report = clip_fsar_from_official(read_checkpoint(args.checkpoint), read_checkpoint(args.clip))
    model.save_pretrained(args.folder)
    if args.processor:
        side = model.config.vision_config.image_size
        frames = VideoFrameProcessor(resize=side * 256 // 224, crop=side, num_frames=model.config.num_frames)
        CLIPFSARProcessor(frames, AutoTokenizer.from_pretrained(args.processor)).save_pretrained(args.folder)
    print(report)
    print(f"saved in {Path(args.folder)}")


if __name__ == "__main__":
    main()
