"""hf_clipplus: a model zoo of published upgrades of CLIP. Importing it registers every variant with transformers."""

from importlib import import_module

import transformers

from .catalogue import VARIANTS, get_variant, list_models

__version__ = "0.1.0"


def _register() -> list[str]:
    """Make every variant known to the Auto classes; returns the names of the public classes."""
    names = []
    for variant in VARIANTS:
        module = import_module(f"{__name__}.models.{variant.id}")
        config, model, processor = (getattr(module, n) for n in (variant.config, variant.model, variant.processor))
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class in variant.auto_classes:
            getattr(transformers, auto_class).register(config, model, exist_ok=True)
        transformers.AutoProcessor.register(config, processor, exist_ok=True)
        for cls in (config, model, processor):
            globals()[cls.__name__] = cls
            names.append(cls.__name__)
    return names


__all__ = ["get_variant", "list_models", *_register()]
