"""Converts DreamLIP checkpoints, and any other in open_clip's layout, to DreamLIP folders and back.

    python -m hf_clipplus.models.dreamlip.convert_dreamlip from-open-clip model.pt folder --processor openai/clip-vit-base-patch16
    python -m hf_clipplus.models.dreamlip.convert_dreamlip to-open-clip folder model.safetensors

A published checkpoint has no grouping loss (its patch projection is commented out there), so the folder has none
either; `visual.proj2` and `logit_scale_local` are taken where a checkpoint has them.
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

from .configuration_dreamlip import DreamLIPConfig
from .modeling_dreamlip import DreamLIPModel
from .processing_dreamlip import DreamLIPProcessor

GROUPING = {"visual.proj2": "patch_projection.weight", "logit_scale_local": "logit_scale_local"}
CLASSIFIER = "multi_classifier."
SCALARS = ("logit_scale", "logit_scale_local")


def dreamlip_from_open_clip(
    path: str | Path, *, vision_heads: int | None = None, text_heads: int | None = None, **config
) -> tuple[DreamLIPModel, ConversionReport]:
    """A DreamLIP model from a published checkpoint, or from another one of open_clip with exact GELU.

    Args:
        path: `.safetensors` or `.pt` file (a pickle is read with `weights_only=True`).
        vision_heads, text_heads: attention heads; width / 64 when None.
        config: further fields of `DreamLIPConfig`. `use_grouping_loss` is what the checkpoint has when left out; True
            where it has no patch projection starts a random one.

    Returns:
        The model, in the number type of the file, and the report.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape.
    """
    source = read_checkpoint(path)
    grouping = {key: source.pop(key) for key in GROUPING if key in source}
    classifier = [key for key in source if key.startswith(CLASSIFIER)]
    source = {key: tensor for key, tensor in source.items() if key not in classifier}
    towers = infer_tower_configs(source, hidden_act="gelu", vision_heads=vision_heads, text_heads=text_heads)
    state, report = from_open_clip(source)
    report.dropped |= dict.fromkeys(classifier, "a classifier that belongs to none of DreamLIP's losses")
    model = DreamLIPModel(DreamLIPConfig(**towers, **{"use_grouping_loss": "visual.proj2" in grouping} | config))
    if not model.config.use_grouping_loss:
        report.dropped |= dict.fromkeys(grouping, "of the grouping loss, which the configuration leaves out")
        grouping = {}
    elif absent := [target for key, target in GROUPING.items() if key not in grouping]:
        report.initialised |= dict.fromkeys(absent, "of the grouping loss, which the checkpoint was not trained with")
    for key, tensor in grouping.items():
        state[GROUPING[key]] = tensor.T if key == "visual.proj2" else tensor.reshape(())
        report.used.append((key, GROUPING[key], list(tensor.shape), list(state[GROUPING[key]].shape)))
    assign_state(model, state, report, float32=SCALARS)
    return model, report


def dreamlip_to_open_clip(model: DreamLIPModel) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """The tensors of a DreamLIP model in open_clip's layout, with the grouping loss's where it has them; bit-equal."""
    state = model.state_dict()
    grouping = {key: state.pop(target) for key, target in GROUPING.items() if target in state}
    converted, report = to_open_clip(state)
    for key, tensor in grouping.items():
        converted[key] = tensor.T.contiguous() if key == "visual.proj2" else tensor
        report.used.append((GROUPING[key], key, list(tensor.shape), list(converted[key].shape)))
    return converted, report


def main(arguments: list[str] | None = None) -> None:
    run(
        arguments,
        __doc__,
        read=dreamlip_from_open_clip,
        write=dreamlip_to_open_clip,
        model_class=DreamLIPModel,
        processor_class=DreamLIPProcessor,
    )


if __name__ == "__main__":
    main()
