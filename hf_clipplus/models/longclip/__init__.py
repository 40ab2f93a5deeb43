"""Long-CLIP: "Unlocking the Long-Text Capability of CLIP" (2403.15378)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_longclip import LongCLIPConfig as LongCLIPConfig
    from .modeling_longclip import LongCLIPModel as LongCLIPModel
    from .processing_longclip import LongCLIPProcessor as LongCLIPProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
