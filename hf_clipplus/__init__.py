"""hf_clipplus: a model zoo of published upgrades of CLIP. Importing it registers every variant with transformers."""

from .catalogue import VARIANTS, get_variant, list_models
from .registration import register_variants

__version__ = "0.1.0"

register_variants()

_CLASSES = {name: variant for variant in VARIANTS for name in (variant.config, variant.model, variant.processor)}

__all__ = ["get_variant", "list_models", *_CLASSES]


def __getattr__(name: str):
    """The variants' classes, loaded at their first use."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = _CLASSES[name].load(name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSES])
