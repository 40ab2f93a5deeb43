"""Training-free segmentation: every patch is named by its own similarity to the class names (SCLIP's protocol).

Example::

    evaluator = PatchSegmentation(read_voc("VOCdevkit/VOC2012"), CLASS_NAMES["voc"], background=None, short_side=336)
    evaluator(model, processor)  # as ZeroShotSegmentation
"""

from typing import Any

from torch import nn

from hf_clipplus.evaluation.segmentation import ZeroShotSegmentation
from hf_clipplus.models.groupvit.processing_groupvit import GroupViTPlusProcessor

from .patch_segmenter import PatchSegmenter


class PatchSegmentation(ZeroShotSegmentation):
    """Evaluator: `ZeroShotSegmentation` for models that have `get_patch_features` and no `segment`.

    A window is what the model was made for (224 pixels for a ViT-B), windows start every half of it, and the scores
    where they overlap are averaged. With a background threshold, pixels whose best probability is below it are
    background. Other arguments are those of `ZeroShotSegmentation`.
    """

    def __call__(self, model: nn.Module, processor: Any) -> dict[str, float]:
        """Evaluate `model` where it is; see `ZeroShotSegmentation`."""
        inputs = GroupViTPlusProcessor(processor.image_processor, processor.tokenizer)
        return super().__call__(PatchSegmenter(model), inputs)
