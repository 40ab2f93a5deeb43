"""APE-T (2304.01195) as a PEFT method: residuals on few channels of texts and cached images, a weight per image."""

from hf_clipplus.tuners.registration import register

from .config import APETConfig
from .layer import APETLayer
from .model import APETModel, attach_ape_t, import_ape_t

register("ape_t", APETConfig, APETModel)

__all__ = ["APETConfig", "APETLayer", "APETModel", "attach_ape_t", "import_ape_t"]
