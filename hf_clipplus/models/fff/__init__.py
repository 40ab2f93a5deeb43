"""FFF: "Fixing Flawed Foundations in contrastive pre-training" (2405.10286)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_fff import FFFConfig as FFFConfig
    from .modeling_fff import FFFModel as FFFModel
    from .modeling_fff import FFFOutput as FFFOutput
    from .processing_fff import FFFProcessor as FFFProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
