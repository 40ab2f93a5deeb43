"""FFF: "Fixing Flawed Foundations in contrastive pre-training" (2405.10286)."""

from .configuration_fff import FFFConfig
from .modeling_fff import FFFModel, FFFOutput
from .processing_fff import FFFProcessor

__all__ = ["FFFConfig", "FFFModel", "FFFOutput", "FFFProcessor"]
