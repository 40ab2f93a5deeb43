"""The tuner of APE-T, and the two calls that people need: attach an adapter to a model, and load one strictly."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel

from hf_clipplus.models.ape import APEForImageClassification, ZeroShotHead
from hf_clipplus.models.ape.checks_ape import as_features, as_labels, check_every_class_has_images
from hf_clipplus.models.ape.heads_ape import default_channels
from hf_clipplus.ops.cache_classifier import cache_keys, channel_criterion, select_channels

from .config import APETConfig
from .layer import APETLayer


class APETModel(BaseTuner):
    """Puts `APETLayer` around the zero-shot classifier of `APEForImageClassification`."""

    prefix = "ape_t_"
    tuner_layer_cls = APETLayer
    target_module_mapping = {"clipplus_ape": ["classifier"]}

    def _create_and_replace(
        self,
        peft_config: APETConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, APETLayer):
            target.update_layer(adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                target.set_adapter(self.active_adapters)
            return
        if not isinstance(target, ZeroShotHead):
            raise TypeError(
                f"APE-T sits on a zero-shot classifier (APEForImageClassification.set_classes), {current_key} is "
                f"{type(target).__name__}."
            )
        layer = APETLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # the inherited one copies child.weight, which a head has not

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        raise NotImplementedError(
            "APE-T keeps a cache beside the text classifier and cannot be merged into it; unload() gives the base."
        )


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
    head = base.classifier
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
    )
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
        model.set_adapter(adapter_name)
    else:
        model = get_peft_model(model, config, adapter_name=adapter_name)
    model.get_base_model().classifier.set_cache(adapter_name, keys, classes, indices)
    return model


def load_ape_t(base: PreTrainedModel, folder: str | Path, adapter_name: str = "default", **kwargs: Any) -> PeftModel:
    """`PeftModel.from_pretrained` that refuses adapters with missing or unknown tensors, where PEFT only warns."""
    if isinstance(base, PeftModel):
        found = base.load_adapter(str(folder), adapter_name, **kwargs)
        model = base
    else:
        model = PeftModel.from_pretrained(base, str(folder), adapter_name=adapter_name)
        found = model.load_adapter(str(folder), adapter_name, **kwargs)
    wrong = [key for key in found.missing_keys if "ape_t_" in key] + list(found.unexpected_keys)
    if wrong:
        raise ValueError(f"{folder} does not fit: missing or unknown tensors {wrong[:5]}.")
    return model
