"""FFF: a CLIP dual encoder trained with mined positives, several captions per image and the sigmoid loss."""

from dataclasses import dataclass

import torch

from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings, DualEncoderModel, DualEncoderOutput
from hf_clipplus.models.mined_positives import MinedPositivesMixin

from .configuration_fff import FFFConfig


@dataclass
class FFFOutput(DualEncoderOutput):
    """What `FFFModel` returns beside the outputs of every dual encoder.

    `statistics` are `positive_logit`, `negative_logit`, and per image `mined`, `mined_image_text`,
    `mined_image_image`, `mined_text_text`.

    Args:
        positives: `[2, P]` int64, (own image, caption numbered over all ranks) of every positive pair of the loss.
    """

    positives: torch.Tensor | None = None


class FFFModel(MinedPositivesMixin, DualEncoderModel):
    """CLIP towers with the multi-positive sigmoid loss of FFF (2405.10286).

    Example:

    ```python
    >>> import hf_clipplus
    >>> from transformers import AutoModel, AutoProcessor

    >>> model = AutoModel.from_pretrained("org/fff-plus")
    >>> processor = AutoProcessor.from_pretrained("org/fff-plus")
    >>> batch = processor(images=[cat, dog], text=[["a cat", "a small cat"], ["a dog"]], return_tensors="pt")
    >>> loss = model(**batch, return_loss=True).loss
    ```
    """

    config_class = FFFConfig
    config: FFFConfig
    output_class = FFFOutput

    def contrast(self, embeddings: DualEncoderEmbeddings, **targets) -> dict[str, torch.Tensor]:
        """Second public step: embeddings to `loss`, `positives [2, P]` and `statistics`, over all processes' batches.

        Args:
            embeddings: `image_embeds [N, D]` and `text_embeds [C, D]` of this process.
            targets: of `multi_positive_loss`.
        """
        return self.multi_positive_loss(embeddings.image_embeds, embeddings.text_embeds, **targets)


__all__ = ["FFFModel", "FFFOutput"]
