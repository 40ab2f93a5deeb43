"""Loads a trained dual encoder by folder or Hub id; never hands out random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, PreTrainedModel


def load_dual_encoder(
    name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, Any]:
    """A model of the zoo or a CLIP/SigLIP-like model of transformers with its processor, in eval mode.

    Args:
        name: folder written by `save_pretrained`, or Hub id.
        device: where it runs; None takes the GPU if there is one.
        dtype: of the weights; "auto" takes the checkpoint's.

    Returns:
        (model, processor)

    Raises:
        FileNotFoundError: `name` looks like a path and is no folder.
        ValueError: nothing can be loaded from there, weights are missing or of another shape (transformers would
            leave them random), or it is no dual encoder with an image processor and a tokenizer.
    """
    name = str(name)
    is_path = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"model {name!r} is no folder: expected what save_pretrained wrote, or a Hub id")
    try:
        model, info = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot load model {name!r}: expected a folder written by save_pretrained (model and processor) or the "
            f"Hub id of a CLIP-like model (models of the zoo need `import hf_clipplus`): {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, which would stay random: {missing[:5]}"
        )
    if not hasattr(model, "encode_image") and not hasattr(model, "get_image_features"):
        raise ValueError(f"{name!r} holds a {type(model).__name__}, which does not embed images and texts")
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ValueError(f"{name!r} has no complete processor (image processor and tokenizer): save the processor too")
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor
