"""Loads a trained dual encoder by folder or Hub id; never hands out random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel

from hf_clipplus.models.configuration_dual_encoder import DualEncoderConfig
from hf_clipplus.models.configuration_finer_vision import FinerVision
from hf_clipplus.models.configuration_zoo import ZooConfig
from hf_clipplus.models.diva import DIVAModel, DIVAProcessor
from hf_clipplus.models.finer_vision import FUSION_PREFIX, fit_pictures

STOCK_TYPES = ("clip", "siglip")


def load_dual_encoder(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    finer_vision: dict[str, Any] | str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A model of the zoo or a CLIP/SigLIP-like model of transformers with its processor, in eval mode.

    Args:
        name: folder written by `save_pretrained`, or Hub id.
        device: where it runs; None takes the GPU if there is one.
        dtype: of the weights; "auto" takes the checkpoint's.
        finer_vision: scales and crops instead of the checkpoint's, see `FinerVision` (or its JSON); a CLIP or SigLIP
            of transformers is then loaded as `DIVAModel`, which embeds as they do. None: the checkpoint's own.

    Returns:
        (model, processor)

    Raises:
        FileNotFoundError: `name` looks like a path and is no folder.
        ValueError: nothing can be loaded from there, weights are missing or of another shape (transformers would
            leave them random; a fusion of finer vision starts as the mean), it is no dual encoder with an image
            processor and a tokenizer, or it has no finer vision.
    """
    name = str(name)
    is_path = Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"model {name!r} is no folder: expected what save_pretrained wrote, or a Hub id")
    options = {} if finer_vision is None else {"finer_vision": FinerVision.read(finer_vision).to_dict()}
    try:
        model_class = _finer_model_class(name) if options else AutoModel
        model, info = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot load model {name!r}: expected a folder written by save_pretrained (model and processor) or the "
            f"Hub id of a CLIP-like model (models of the zoo need `import hf_clipplus`): {error}"
        ) from error
    made_anew = (FUSION_PREFIX,) if options else ()
    if model_class is DIVAModel:
        made_anew += ("logit_bias",)  # 0, as CLIP has none
        pad_texts = model.config.has_siglip_towers
        processor = DIVAProcessor(processor.image_processor, processor.tokenizer, pad_texts=pad_texts)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(made_anew))
    if missing:
        raise ValueError(
            f"{name!r} lacks {len(missing)} weights of {type(model).__name__}, which would stay random: {missing[:5]}"
        )
    if not hasattr(model, "encode_image") and not hasattr(model, "get_image_features"):
        raise ValueError(f"{name!r} holds a {type(model).__name__}, which does not embed images and texts")
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ValueError(f"{name!r} has no complete processor (image processor and tokenizer): save the processor too")
    if options:
        fit_pictures(processor, model.config)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor


def _finer_model_class(name: str) -> type:
    """What can load a checkpoint with `finer_vision`."""
    config = AutoConfig.from_pretrained(name)
    if config.model_type in STOCK_TYPES:
        return DIVAModel
    if isinstance(config, ZooConfig):
        return AutoModel  # refuses with the reason where the variant has none
    raise ValueError(
        f"a {config.model_type!r} has no finer_vision: expected a model of the zoo with two towers "
        f"({DualEncoderConfig.__name__}) or one of {', '.join(STOCK_TYPES)}."
    )
