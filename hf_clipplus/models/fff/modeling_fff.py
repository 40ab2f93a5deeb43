"""FFF: a CLIP dual encoder trained with mined positives, several captions per image and the sigmoid loss."""

from dataclasses import dataclass

import torch

from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings, DualEncoderModel, DualEncoderOutput
from hf_clipplus.models.mined_positives import MinedPositivesMixin
from hf_clipplus.ops.positives import apart_from_negatives

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

    def contrast(
        self, embeddings: DualEncoderEmbeddings, *, caption_owner: torch.Tensor | None = None, **targets
    ) -> dict[str, torch.Tensor]:
        """Second public step: embeddings to `loss`, `positives [2, P]` and `statistics`, over all processes' batches.

        Args:
            embeddings: `image_embeds [N, D]` and `text_embeds [C, D]` of this process.
            caption_owner: image of each caption, int64; contiguous groups of C/N when left out. With an entry of -1
                for each of M false captions among `text_embeds [C + M, D]`, which are negative for every image;
                everything else is of the C captions, in their order.
            targets: of `multi_positive_loss`.
        """
        texts, caption_owner, negatives = apart_from_negatives(embeddings.text_embeds, caption_owner)
        return self.multi_positive_loss(
            embeddings.image_embeds, texts, caption_owner=caption_owner, negatives=negatives, **targets
        )


__all__ = ["FFFModel", "FFFOutput"]
