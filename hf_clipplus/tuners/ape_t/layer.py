"""The layer of APE-T: wraps a zero-shot classifier and holds residuals, image weights and cache of its adapters."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from hf_clipplus.models.ape import ZeroShotHead
from hf_clipplus.ops.cache_classifier import add_residuals, cache_term
from hf_clipplus.ops.cache_search import correct_on_grid
from hf_clipplus.tuners.base import UnmergeableLayer

from .config import APETConfig

BUFFERS = ("ape_t_indices", "ape_t_cache_keys", "ape_t_cache_labels")


class APETLayer(nn.Module, UnmergeableLayer):
    """`ZeroShotHead` plus APE-T adapters by name; disabled it is the zero-shot head.

    Per adapter: `ape_t_res` `[C, Q]` and `ape_t_value_weights` `[N, 1]` are trained; `ape_t_indices` `[Q]`,
    `ape_t_cache_keys` `[N, D]` and `ape_t_cache_labels` `[N]` are kept with it.
    """

    adapter_layer_names = ("ape_t_res", "ape_t_value_weights")
    other_param_names = (*BUFFERS, "settings")
    why_not_merged = "APE-T keeps a cache beside the text classifier and cannot be merged into it;"

    def __init__(self, base_layer: ZeroShotHead, adapter_name: str, config: APETConfig):
        super().__init__()
        self.start(base_layer, adapter_name)
        self.ape_t_res, self.ape_t_value_weights = nn.ParameterDict(), nn.ParameterDict()
        self.ape_t_indices, self.ape_t_cache_keys = BufferDict(persistent=True), BufferDict(persistent=True)
        self.ape_t_cache_labels = BufferDict(persistent=True)
        self.settings: dict[str, APETConfig] = {}
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: APETConfig) -> None:
        """Add an adapter: residuals 0, weights 1, an empty cache to be loaded or given by `set_cache`.

        Raises:
            ValueError: the adapter was made for another width, or for classes that are not the base's first ones.
        """
        base = self.get_base_layer()
        if base.text_weight.shape[1] != config.feature_dim:
            raise ValueError(
                f"the adapter is for features {config.feature_dim} wide, the base has {base.text_weight.shape[1]}."
            )
        classes = len(config.class_names)
        if list(config.class_names) != list(base.class_names[:classes]):
            lost, new = (
                sorted(set(a) - set(b))[:5]
                for a, b in ((config.class_names, base.class_names), (base.class_names, config.class_names))
            )
            raise ValueError(
                f"the adapter is for {classes} classes, which must be the first of the base's "
                f"{len(base.class_names)}; only the adapter has {lost}, only the base has {new}."
            )
        start = torch.zeros if config.decay_to_one else torch.ones
        self.ape_t_res[adapter_name] = nn.Parameter(torch.zeros(classes, config.num_channels))
        self.ape_t_value_weights[adapter_name] = nn.Parameter(start(config.cache_size, 1))
        self.ape_t_indices[adapter_name] = torch.arange(config.num_channels) % max(config.feature_dim, 1)
        self.ape_t_cache_keys[adapter_name] = torch.zeros(config.cache_size, config.feature_dim)
        self.ape_t_cache_labels[adapter_name] = torch.arange(config.cache_size) % max(classes, 1)
        self.settings[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name, device=base.text_weight.device)
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def set_cache(self, adapter_name: str, keys: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Give an adapter its cache and its channels."""
        device = self.get_base_layer().text_weight.device
        for name, value in zip(BUFFERS, (indices, keys, labels), strict=True):
            stored = getattr(self, name)[adapter_name]
            if stored.shape != value.shape:
                raise ValueError(f"{name}: expected shape {list(stored.shape)}, got {list(value.shape)}.")
            getattr(self, name)[adapter_name] = value.to(device)

    # what people ask of a head

    @property
    def text_weight(self) -> Tensor:
        return self.get_base_layer().text_weight

    @property
    def class_names(self) -> list[str]:
        return self.get_base_layer().class_names

    @property
    def text_scale(self) -> float:
        return self.get_base_layer().text_scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of L2-normalised features `[B, D]`."""
        name = self.one_active(self.ape_t_res)
        if name is None:
            return self.get_base_layer()(features)
        text_logits, cache = self.parts(features, name)
        return text_logits + self.settings[name].alpha * cache

    def parts(self, features: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Text logits and cache term, each `[B, C]`, of one adapter."""
        base = self.get_base_layer()
        text, keys = self.adapted(name)
        features = features.to(text.dtype)
        cache = cache_term(
            features,
            keys,
            self.ape_t_cache_labels[name],
            base.classes,
            beta=self.settings[name].beta,
            values=self.image_weights(name),
        )
        return base.text_scale * features @ text.T, cache

    def adapted(self, name: str) -> tuple[Tensor, Tensor]:
        """Text classifier `[C, D]` and keys `[N, D]` with the residuals of an adapter."""
        text, residuals = self.get_base_layer().text_weight, self.ape_t_res[name]
        residuals = F.pad(residuals, (0, 0, 0, len(text) - len(residuals)))  # classes added later have none
        return add_residuals(
            text, self.ape_t_cache_keys[name], self.ape_t_cache_labels[name], residuals, self.ape_t_indices[name]
        )

    def image_weights(self, name: str) -> Tensor:
        """Weights of the cached images, `[N]`."""
        stored = self.ape_t_value_weights[name].squeeze(1)
        return 1 + stored if self.settings[name].decay_to_one else stored

    @torch.no_grad()
    def correct_on_grid(
        self, name: str, queries: Tensor, targets: Tensor, betas: Sequence[float], alphas: Sequence[float]
    ) -> Tensor:
        """How many queries an adapter classifies right, `[betas, alphas]` int64; see `ops.cache_search`."""
        text_logits, _ = self.parts(queries, name)
        _, keys = self.adapted(name)
        labels, values = self.ape_t_cache_labels[name], self.image_weights(name)
        options = {"betas": betas, "alphas": alphas, "values": values}
        return correct_on_grid(queries, keys, labels, text_logits, targets, **options)[..., 0]
