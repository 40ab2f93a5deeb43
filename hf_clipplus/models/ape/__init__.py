"""APE: "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement" (2304.01195)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_ape import APEConfig as APEConfig
    from .heads_ape import APEHead as APEHead
    from .heads_ape import FewShotHead as FewShotHead
    from .heads_ape import GDAHead as GDAHead
    from .heads_ape import ProKeRHead as ProKeRHead
    from .heads_ape import SearchGrid as SearchGrid
    from .heads_ape import TipAdapterFHead as TipAdapterFHead
    from .heads_ape import TipAdapterHead as TipAdapterHead
    from .heads_ape import ZeroShotHead as ZeroShotHead
    from .modeling_ape import APEForImageClassification as APEForImageClassification
    from .modeling_ape import APEOutput as APEOutput
    from .processing_ape import APEProcessor as APEProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
