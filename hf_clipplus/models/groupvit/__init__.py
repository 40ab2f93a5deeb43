"""GroupViT: "Semantic segmentation emerges from text supervision" (2202.11094)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_groupvit import GroupViTPlusConfig as GroupViTPlusConfig
    from .configuration_groupvit import GroupViTPlusVisionConfig as GroupViTPlusVisionConfig
    from .modeling_groupvit import GroupViTPlusModel as GroupViTPlusModel
    from .modeling_groupvit import GroupViTPlusVisionModel as GroupViTPlusVisionModel
    from .processing_groupvit import GroupViTPlusProcessor as GroupViTPlusProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
