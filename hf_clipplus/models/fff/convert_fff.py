"""Converts checkpoints to FFF and back: open_clip files, transformers CLIP folders, transformers SigLIP folders.

    python -m hf_clipplus.models.fff.convert_fff from-open-clip model.pt fff-folder --processor openai/clip-vit-base-patch16
    python -m hf_clipplus.models.fff.convert_fff to-open-clip fff-folder model.safetensors
    python -m hf_clipplus.models.fff.convert_fff from-transformers clip-folder fff-folder
    python -m hf_clipplus.models.fff.convert_fff to-transformers fff-folder clip-folder

Every conversion prints what became of each key and refuses when one is not accounted for.
"""  # noqa: E501

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, CLIPConfig, CLIPModel, CLIPProcessor

from hf_clipplus.models.open_clip_layout import (
    ConversionReport,
    assign_state,
    from_open_clip,
    infer_tower_configs,
    read_checkpoint,
    to_open_clip,
    write_checkpoint,
)

from .configuration_fff import FFFConfig
from .modeling_fff import FFFModel
from .processing_fff import FFFProcessor

SCALARS = ("logit_scale", "logit_bias")
NO_BIAS = (
    "the source has none (it was not trained with a sigmoid loss); set to {bias:g}. Let "
    "hf_clipplus.training.calibrate.set_auto_bias choose it before training, or set contrastive_loss='softmax'"
)
BIAS_DROPPED = "transformers' CLIPModel has no bias; its value was {bias:g}. Embeddings and rankings stay the same"


def fff_from_open_clip(
    path: str | Path,
    *,
    hidden_act: str = "gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
    **config,
) -> tuple[FFFModel, ConversionReport]:
    """An FFF model from a checkpoint of open_clip.

    Args:
        path: `.safetensors` or `.pt` file (a pickle is read with `weights_only=True`).
        hidden_act: activation the weights were trained with, "gelu" or "quick_gelu" (OpenAI's weights).
        vision_heads, text_heads: attention heads; width / 64 when None.
        config: further fields of `FFFConfig`.

    Returns:
        The model, in the number type of the file, and the report.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape.
    """
    source = read_checkpoint(path)
    towers = infer_tower_configs(source, hidden_act=hidden_act, vision_heads=vision_heads, text_heads=text_heads)
    state, report = from_open_clip(source)
    model = FFFModel(FFFConfig(**towers, **config))
    if "logit_bias" not in state:
        report.initialised["logit_bias"] = NO_BIAS.format(bias=model.logit_bias.item())
    assign_state(model, state, report, float32=SCALARS)
    return model, report


def fff_to_open_clip(model: FFFModel) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """The tensors of an FFF model with CLIP towers in open_clip's layout; a round trip is bit-equal."""
    _require_clip_towers(model.config, "open_clip's CLIP layout")
    return to_open_clip(model.state_dict())


def fff_from_transformers(folder: str | Path) -> tuple[FFFModel, ConversionReport]:
    """An FFF model from a folder (or Hub name) of transformers' CLIP or SigLIP; the configuration is translated.

    Raises:
        ValueError: another kind of model, or keys that are not accounted for.
    """
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind not in ("clip", "siglip"):
        raise ValueError(f"{folder}: model type {kind!r} cannot become FFF; expected 'clip' or 'siglip'.")
    model, info = FFFModel.from_pretrained(folder, output_loading_info=True)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    absent = set(info["missing_keys"])
    report = ConversionReport(
        used=[(key, key, shape, shape) for key, shape in shapes.items() if key not in absent],
        unused=sorted(info["unexpected_keys"]),
    )
    if kind == "clip":
        report.initialised["logit_bias"] = NO_BIAS.format(bias=model.logit_bias.item())
        absent -= {"logit_bias"}
    report.missing = sorted(absent)
    report.check({}, {})
    return model, report


def fff_to_transformers(model: FFFModel) -> tuple[CLIPModel, ConversionReport]:
    """transformers' `CLIPModel` with the same embeddings; the bias has no place there and is reported as dropped."""
    _require_clip_towers(model.config, "transformers' CLIPModel")
    config, state = model.config, model.state_dict()
    clip = CLIPModel(
        CLIPConfig(
            text_config=config.text_config.to_dict(),
            vision_config=config.vision_config.to_dict(),
            projection_dim=config.projection_dim,
            logit_scale_init_value=config.logit_scale_init_value,
        )
    )
    report = ConversionReport(dropped={"logit_bias": BIAS_DROPPED.format(bias=state.pop("logit_bias").item())})
    report.used = [(key, key, list(tensor.shape), list(tensor.shape)) for key, tensor in state.items()]
    assign_state(clip, state, report, float32=SCALARS)
    return clip, report


def _require_clip_towers(config: FFFConfig, where: str) -> None:
    if config.has_siglip_towers:
        raise ValueError(f"this model has SigLIP towers, which {where} cannot hold.")


def _save_processor(source: str | Path, destination: Path, processor_class: type) -> None:
    """Save the image processor and the tokenizer of `source` as a processor of another class."""
    found = FFFProcessor.from_pretrained(source)
    processor_class(found.image_processor, found.tokenizer).save_pretrained(destination)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, what in (
        ("from-open-clip", "open_clip checkpoint file -> FFF folder"),
        ("to-open-clip", "FFF folder -> open_clip checkpoint file (.safetensors or .pt)"),
        ("from-transformers", "transformers CLIP or SigLIP folder -> FFF folder"),
        ("to-transformers", "FFF folder with CLIP towers -> transformers CLIP folder"),
    ):
        sub = actions.add_parser(action, help=what, description=what)
        sub.add_argument("source")
        sub.add_argument("destination", type=Path)
        if action != "to-open-clip":
            sub.add_argument("--processor", help="folder or Hub name of the processor to save too")
        if action == "from-open-clip":
            sub.add_argument("--hidden-act", choices=("gelu", "quick_gelu"), default="gelu", help="(gelu)")
            sub.add_argument("--vision-heads", type=int, help="(width / 64)")
            sub.add_argument("--text-heads", type=int, help="(width / 64)")
    args = parser.parse_args(arguments)

    if args.action == "from-open-clip":
        heads = {"vision_heads": args.vision_heads, "text_heads": args.text_heads}
        result, report = fff_from_open_clip(args.source, hidden_act=args.hidden_act, **heads)
    elif args.action == "from-transformers":
        result, report = fff_from_transformers(args.source)
    elif args.action == "to-transformers":
        result, report = fff_to_transformers(FFFModel.from_pretrained(args.source))
    else:
        result, report = fff_to_open_clip(FFFModel.from_pretrained(args.source))
    print(report)
    if args.action == "to-open-clip":
        write_checkpoint(result, args.destination)
        return
    result.save_pretrained(args.destination)
    if args.processor:
        target = CLIPProcessor if args.action == "to-transformers" else FFFProcessor
        _save_processor(args.processor, args.destination, target)
    else:
        print(f"no processor was saved: add one to {args.destination}, or run again with --processor.")


if __name__ == "__main__":
    main()
