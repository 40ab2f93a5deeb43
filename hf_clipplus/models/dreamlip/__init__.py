"""DreamLIP: "Language-Image Pre-training with Long Captions" (2403.17007)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_dreamlip import DreamLIPConfig as DreamLIPConfig
    from .modeling_dreamlip import DreamLIPModel as DreamLIPModel
    from .modeling_dreamlip import DreamLIPOutput as DreamLIPOutput
    from .processing_dreamlip import DreamLIPProcessor as DreamLIPProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
