"""CLIP-FSAR: "CLIP-guided Prototype Modulating for Few-shot Action Recognition" (2303.02982)."""

from typing import TYPE_CHECKING

from transformers.utils import _LazyModule
from transformers.utils.import_utils import define_import_structure

if TYPE_CHECKING:
    from .configuration_clip_fsar import CLIPFSARConfig as CLIPFSARConfig
    from .modeling_clip_fsar import CLIPFSARForFewShotVideoClassification as CLIPFSARForFewShotVideoClassification
    from .processing_clip_fsar import CLIPFSARProcessor as CLIPFSARProcessor
else:
    import sys

    sys.modules[__name__] = _LazyModule(__name__, __file__, define_import_structure(__file__), module_spec=__spec__)
