"""MA-CLIP: "Multimodal Adaptation of CLIP for Few-Shot Action Recognition" (2308.01532)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .adapters_ma_clip import AdapterSettings as AdapterSettings
    from .configuration_ma_clip import MACLIPConfig as MACLIPConfig
    from .modeling_ma_clip import MACLIPForFewShotVideoClassification as MACLIPForFewShotVideoClassification
    from .processing_ma_clip import MACLIPProcessor as MACLIPProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
