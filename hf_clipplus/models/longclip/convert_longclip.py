"""Converts Long-CLIP checkpoints to Long-CLIP folders and back.

    python -m hf_clipplus.models.longclip.convert_longclip from-open-clip longclip-B.pt folder --processor openai/clip-vit-base-patch16
    python -m hf_clipplus.models.longclip.convert_longclip to-open-clip folder longclip.safetensors

A published checkpoint has two tables of positions, of which it uses the first 20 rows of one and the rest of the other.
"""  # noqa: E501

from pathlib import Path

import torch

from hf_clipplus.models.open_clip_command import run
from hf_clipplus.models.open_clip_layout import (
    ConversionReport,
    assign_state,
    from_open_clip,
    infer_tower_configs,
    read_checkpoint,
    to_open_clip,
)
from hf_clipplus.ops.position import KEPT

from .configuration_longclip import LongCLIPConfig
from .modeling_longclip import LongCLIPModel
from .processing_longclip import LongCLIPProcessor

FIRST, REST = "positional_embedding", "positional_embedding_res"


def longclip_from_open_clip(
    path: str | Path,
    *,
    hidden_act: str = "quick_gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
    **config,
) -> tuple[LongCLIPModel, ConversionReport]:
    """A Long-CLIP model from a published checkpoint, or one with a single table of any length.

    Args:
        path: `.safetensors` or `.pt` file (a pickle is read with `weights_only=True`).
        hidden_act: activation the weights were trained with.
        vision_heads, text_heads: attention heads; width / 64 when None.
        config: further fields of `LongCLIPConfig`; `frozen_positions` is the number of rows of the first table.

    Returns:
        The model, in the number type of the file, and the report.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape.
    """
    source = read_checkpoint(path)
    kept = config.setdefault("frozen_positions", KEPT)
    rest = source.pop(REST, None)
    if rest is not None:
        source[FIRST] = torch.cat([source[FIRST][:kept], rest[kept:]])
    towers = infer_tower_configs(source, hidden_act=hidden_act, vision_heads=vision_heads, text_heads=text_heads)
    state, report = from_open_clip(source)
    if rest is not None:
        target = "text_model.embeddings.position_embedding.weight"
        report.used.append((f"{REST}, rows from {kept}", target, list(rest.shape), list(state[target].shape)))
    model = LongCLIPModel(LongCLIPConfig(**towers, **config))
    assign_state(model, state, report, float32=("logit_scale",))
    return model, report


def longclip_to_open_clip(model: LongCLIPModel) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """The tensors of a Long-CLIP model as published: both tables of positions are the whole table.

    Raises:
        ValueError: the model has an attention over segments, which the published layout has no place for.
    """
    converted, report = to_open_clip(model.state_dict())
    converted[REST] = converted[FIRST].clone()
    return converted, report


def main(arguments: list[str] | None = None) -> None:
    run(
        arguments,
        __doc__,
        read=longclip_from_open_clip,
        write=longclip_to_open_clip,
        model_class=LongCLIPModel,
        processor_class=LongCLIPProcessor,
    )


if __name__ == "__main__":
    main()
