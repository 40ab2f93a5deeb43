"""Embeds many images or texts with any dual encoder: our zoo's, or a CLIP/SigLIP-like model of transformers."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_clipplus.data.images import load_image
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.ops.distributed import all_gather_ragged, gather_sizes, rank, world_size

logger = logging.get_logger(__name__)


def encode_images(
    model: nn.Module,
    processor: Any,
    images: Iterable,
    *,
    batch_size: int = 64,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    """Embeddings of all images, in their order.

    When `torch.distributed` is initialised every rank must call this with the same images: each encodes its share and
    all of them receive everything.

    Args:
        model: has `encode_image(pixel_values=..., normalize=False)` or `get_image_features(...).pooler_output`; it
            runs where it is, in eval mode and without gradient, and gets its training flags back.
        processor: `processor(images=[...], return_tensors="pt")` gives what the model takes.
        images: whatever `load_image` reads (PIL image, path, `{"bytes", "path"}`). Read lazily, a batch at a time.
            With more than one process a sequence is read by its share, an iterable in full by every process.
        batch_size: images per forward pass and process.
        autocast_dtype: run under `torch.autocast` with this dtype; None runs in the model's own.
        progress: show a progress bar (on rank 0).

    Returns:
        [images, dim] float32 on the CPU, L2-normalised.

    Raises:
        TypeError: the model has neither method.
        ValueError: there are no images, or an embedding is not finite.
    """
    forward = image_forward(model)

    def encode(batch: list) -> Tensor:
        inputs = processor(images=[load_image(image) for image in batch], return_tensors="pt")
        return forward(to_model(inputs, model))

    options = {"batch_size": batch_size, "autocast_dtype": autocast_dtype, "progress": progress}
    return encode_batches(model, images, encode, "images", **options)


def image_forward(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """The model's way from a processor's tensors to image embeddings `[N, dim]`, not normalised.

    Raises:
        TypeError: the model has no such method.
    """
    if hasattr(model, "encode_image"):
        return lambda inputs: model.encode_image(**inputs, normalize=False)
    if hasattr(model, "get_image_features"):
        return lambda inputs: model.get_image_features(**inputs).pooler_output
    raise TypeError(f"expected a model with encode_image or get_image_features, got {type(model).__name__}")


def encode_texts(
    model: nn.Module,
    processor: Any,
    texts: Iterable[str],
    *,
    batch_size: int = 256,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
    normalized: bool = True,
) -> Tensor:
    """Embeddings of all texts, in their order; like `encode_images`, for `encode_text` or `get_text_features`.

    Texts longer than the model's context are cut, with a warning that says how many. A model of the zoo
    tokenizes with its processor's own defaults.

    Returns:
        [texts, dim] float32 on the CPU, L2-normalised unless `normalized=False`.

    Raises:
        TypeError: the model has neither method, or a text is no string.
        ValueError: there are no texts, or an embedding is not finite.
    """
    if isinstance(texts, str):
        raise TypeError(f"expected several texts, got one string: pass [{texts!r}]")
    if hasattr(model, "encode_text"):
        forward = lambda inputs: model.encode_text(**inputs, normalize=False)  # noqa: E731
        tokenize = lambda batch: processor(text=batch, return_tensors="pt")  # noqa: E731
    elif hasattr(model, "get_text_features"):
        forward = lambda inputs: model.get_text_features(**inputs).pooler_output  # noqa: E731
        # SigLIP was trained on padded text, ignores the mask and pools the last position.
        padding = "max_length" if "siglip" in model.config.model_type else True
        max_length = model.config.text_config.max_position_embeddings
        options = {"padding": padding, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
        tokenize = lambda batch: processor.tokenizer(batch, **options)  # noqa: E731
    else:
        raise TypeError(f"expected a model with encode_text or get_text_features, got {type(model).__name__}")
    cut = 0

    def encode(batch: list) -> Tensor:
        nonlocal cut
        wrong = [text for text in batch if not isinstance(text, str)]
        if wrong:
            raise TypeError(f"expected texts as strings, got {type(wrong[0]).__name__}: {wrong[0]!r}")
        inputs = tokenize(batch)
        encodings = getattr(inputs, "encodings", None) or []  # of transformers' tokenizers
        cut += inputs.get("truncated_captions", sum(bool(encoding.overflowing) for encoding in encodings))
        return forward(to_model(inputs, model))

    embeds = encode_batches(
        model,
        texts,
        encode,
        "texts",
        batch_size=batch_size,
        autocast_dtype=autocast_dtype,
        progress=progress,
        normalized=normalized,
    )
    if cut:
        logger.warning(f"{cut} of the {len(embeds)} texts were longer than the model's context and were cut.")
    return embeds


def encode_batches(
    model: nn.Module,
    items: Iterable,
    encode: Callable[[list], Tensor],
    what: str,
    *,
    batch_size: int = 64,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
    normalized: bool = True,
) -> Tensor:
    """What `encode_images` and `encode_texts` share.

    Args:
        items: what is encoded; `what` names it in errors.
        encode: a batch of items to `[n, dim]`; called in eval mode and without gradient.
        batch_size, autocast_dtype, progress: see `encode_images`.
        normalized: whether rows are L2-normalised.
    """
    device = next(model.parameters()).device
    share, length = _own_share(items)
    parts = []
    with (
        evaluation_mode(model),
        torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
        tqdm(total=length, desc=f"encoding {what}", disable=not progress or rank() > 0) as bar,
    ):
        while batch := list(islice(share, batch_size)):
            embeds = encode(batch).float()
            parts.append((normalize(embeds, dim=-1) if normalized else embeds).cpu())
            bar.update(len(batch))
    embeds = _gather_in_order(torch.cat(parts) if parts else torch.zeros(0, 0), device)
    if not len(embeds):
        raise ValueError(f"there are no {what} to encode")
    wrong = (~torch.isfinite(embeds).all(1)).nonzero().flatten()
    if len(wrong):
        raise ValueError(f"the embeddings of {len(wrong)} {what} are NaN or infinite, the first is {int(wrong[0])}")
    return embeds


def _own_share(items: Iterable) -> tuple[Iterator, int | None]:
    """Every world-size-th item from this rank on, and how many that is where it can be known."""
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        indices = range(rank(), len(items), world_size())
        return (items[index] for index in indices), len(indices)
    return islice(iter(items), rank(), None, world_size()), None


def _gather_in_order(embeds: Tensor, device: torch.device) -> Tensor:
    """Undo `_own_share`: this rank's [n, dim] -> everything on the CPU. A rank without items passes [0, 0]."""
    if world_size() == 1:
        return embeds
    exchange = device if "nccl" in dist.get_backend() else torch.device("cpu")
    dim = max(gather_sizes(embeds.shape[1], exchange))
    if not len(embeds):
        embeds = torch.zeros(0, dim)
    parts = all_gather_ragged(embeds.to(exchange))
    out = torch.empty(sum(map(len, parts)), dim)
    for index, part in enumerate(parts):
        out[index :: len(parts)] = part.cpu()
    return out


def to_model(inputs: Any, model: nn.Module) -> dict[str, Tensor]:
    """The processor's tensors on the model's device, floating ones in its dtype."""
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    }
