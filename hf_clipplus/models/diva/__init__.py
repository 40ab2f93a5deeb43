"""DIVA: "Diffusion feedback helps CLIP see better" (2407.20171)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_diva import DIVAConfig as DIVAConfig
    from .feedback_diva import DIVAFeedbackOutput as DIVAFeedbackOutput
    from .feedback_diva import DIVAForDiffusionFeedback as DIVAForDiffusionFeedback
    from .generator_diva import DiffusionGenerator as DiffusionGenerator
    from .modeling_diva import DIVAModel as DIVAModel
    from .modeling_diva import DIVAOutput as DIVAOutput
    from .processing_diva import DIVAProcessor as DIVAProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
