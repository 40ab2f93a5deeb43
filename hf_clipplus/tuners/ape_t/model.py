"""The tuner of APE-T, and what people call: attach an untrained adapter to a model, or a published one."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from hf_clipplus.models.ape import APEForImageClassification, ZeroShotHead
from hf_clipplus.models.ape.checks_ape import as_features, as_labels, check_every_class_has_images
from hf_clipplus.models.ape.convert_ape import OfficialCache, read_ape_t_checkpoint
from hf_clipplus.models.ape.heads_ape import default_channels
from hf_clipplus.models.ape.processing_ape import prompt_facts
from hf_clipplus.ops.cache_classifier import cache_keys, channel_criterion, select_channels
from hf_clipplus.tuners.base import UnmergeableTuner

from .config import APETConfig
from .layer import APETLayer


class APETModel(UnmergeableTuner):
    """Puts `APETLayer` around the zero-shot classifier of `APEForImageClassification`."""

    prefix = "ape_t_"
    tuner_layer_cls = APETLayer
    target_module_mapping = {"clipplus_ape": ["classifier"]}

    def _wrap(self, target: nn.Module, adapter_name: str, config: APETConfig, key: str) -> APETLayer:
        if not isinstance(target, ZeroShotHead):
            raise TypeError(
                f"APE-T sits on a zero-shot classifier (APEForImageClassification.set_classes), {key} is "
                f"{type(target).__name__}."
            )
        return APETLayer(target, adapter_name, config)


def attach_ape_t(
    model: APEForImageClassification,
    features: Any,
    labels: Any,
    *,
    num_channels: int | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    channel_weights: tuple[float, float] = (0.2, 0.8),
    decay_to_one: bool = False,
    adapter_name: str = "default",
) -> PeftModel:
    """An untrained APE-T adapter on a zero-shot model; its cache and channels come from the support set.

    Args:
        model: with its classes set (`set_classes`), or a PeftModel that has it, to add a further adapter.
        features: `[N, D]` unit rows or `[A, N, D]` raw views, see `FewShotHead.fit`.
        labels: `[N]` class indices or names.
        num_channels: Q; None takes floor(800 D / 1024).
        alpha, beta: fixed while training.
        channel_weights: (w0, w1) of the criterion, which sees texts only.
        decay_to_one: see `APETConfig`.
        adapter_name: under which PEFT knows it.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.head
    text, names = head.text_weight.detach(), head.class_names
    rows = as_features(features, text.shape[1], "features", views=True)
    classes = as_labels(labels, names, len(text), rows.shape[-2], "the support set")
    check_every_class_has_images(classes, names, len(text))
    keys = cache_keys(rows) if rows.ndim == 3 else rows
    channels = default_channels(text.shape[1], 800) if num_channels is None else num_channels
    indices = select_channels(channel_criterion(text, weights=channel_weights), channels)
    config = APETConfig(
        class_names=list(names),
        feature_dim=text.shape[1],
        num_channels=channels,
        cache_size=len(keys),
        alpha=alpha,
        beta=beta,
        channel_weights=list(channel_weights),
        decay_to_one=decay_to_one,
        fit_report=_facts(head, rows, classes),
    )
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
        model.set_adapter(adapter_name)
    else:
        model = get_peft_model(model, config, adapter_name=adapter_name)
    model.get_base_model().classifier.set_cache(adapter_name, keys, classes, indices)
    return model


def _facts(head: ZeroShotHead, rows: Tensor, labels: Tensor) -> dict[str, Any]:
    """What the adapter's report says before training: the base's prompts, shots, views, protocol."""
    counts = torch.bincount(labels, minlength=head.classes)
    views, shots = len(rows) if rows.ndim == 3 else 1, [int(counts.min()), int(counts.max())]
    return prompt_facts(head.fit_report) | {
        "shots": shots,
        "views": views,
        "protocol": "no validation",
        "warnings": [],
    }


def import_ape_t(
    model: APEForImageClassification,
    cache: OfficialCache,
    file: str | Path,
    *,
    alpha: float,
    beta: float,
    adapter_name: str = "default",
) -> PeftModel:
    """A trained APE-T adapter from a published checkpoint.

    Args:
        model: zero-shot; its text classifier must be the cache's (`set_classes(..., text_weight=cache.text_weight)`).
        cache: of `read_official_cache`; the checkpoint has neither keys nor labels.
        file: `APE-T_{K}shots.pt`, see `read_ape_t_checkpoint`.
        alpha, beta: as searched; the checkpoint does not have them.
        adapter_name: under which PEFT knows it.

    Raises:
        ValueError: the checkpoint is of other classes or another number of images.
    """
    found = read_ape_t_checkpoint(file)
    shapes = {"res": [len(cache.text_weight), len(found["indices"])], "value_weights": [len(cache.keys), 1]}
    wrong = {name: list(found[name].shape) for name in shapes if list(found[name].shape) != shapes[name]}
    if wrong:
        raise ValueError(f"{file} does not fit the cache: {wrong}, expected {shapes}.")
    options = {"num_channels": len(found["indices"]), "alpha": alpha, "beta": beta, "adapter_name": adapter_name}
    adapted = attach_ape_t(model, cache.keys, cache.labels, **options)
    layer = adapted.get_base_model().classifier
    layer.set_cache(adapter_name, cache.keys, cache.labels, found["indices"])
    layer.ape_t_res[adapter_name].data.copy_(found["res"])
    layer.ape_t_value_weights[adapter_name].data.copy_(found["value_weights"])
    return adapted
