"""Long texts encoded in parts, for every model whose `_text_embeds` encodes parts that fit the context."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from hf_clipplus.ops.segments import pad_segments, weighted_mean

from .text_buckets import text_lengths


@dataclass
class SegmentedTexts(ModelOutput):
    """Both levels of long texts: their segments, and the whole.

    Args:
        text_embeds: `[C, D]`, L2-normalised unless told otherwise.
        segment_embeds: `[C, S, D]`, L2-normalised; zeros where a text has fewer segments.
        segment_mask: `[C, S]` bool.
    """

    text_embeds: torch.Tensor | None = None
    segment_embeds: torch.Tensor | None = None
    segment_mask: torch.Tensor | None = None


class SegmentedTextMixin:
    """Encodes texts that the processor cut into segments (`text_mode="segmented"` or `"hierarchical"`).

    A text of one segment has exactly the embedding that the model gives it without segments.
    """

    def encode_text_segments(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        segment_owner: torch.Tensor | None = None,
        normalize: bool = True,
        segment_shares: torch.Tensor | None = None,
    ) -> SegmentedTexts:
        """Embeddings of the segments and of the texts.

        Args:
            input_ids, attention_mask: `[P, L]`, the segments of all texts in order.
            segment_owner: `[P]` int64, the text of each segment; every segment a text of its own when left out.
            normalize: whether `text_embeds` has unit norm; else it has that of the mean of unit vectors (of a single
                segment: of the tower's output).
            segment_shares: `[P]`, not negative and not all 0 in a text: how much each segment counts, times what
                `segment_weights` says; equal ones when left out.

        Raises:
            ValueError: owners out of order, not one share for each segment.
        """
        raw = self._text_embeds(input_ids, attention_mask)
        if segment_owner is None:
            segment_owner = torch.arange(len(raw), device=raw.device)
        segments, mask = pad_segments(F.normalize(raw, dim=-1), segment_owner)
        tokens, _ = pad_segments(text_lengths(input_ids, self.config.text_config.eos_token_id), segment_owner)
        weights = self.segment_weights(segments, mask, tokens)
        if segment_shares is not None:
            weights = weights * pad_segments(segment_shares.to(weights.dtype), segment_owner)[0]
        whole = weighted_mean(segments, weights)
        alone = mask.sum(-1, keepdim=True) == 1
        whole = torch.where(alone, raw[segment_owner.diff(prepend=segment_owner.new_tensor([-1])) == 1], whole)
        return SegmentedTexts(F.normalize(whole, dim=-1) if normalize else whole, segments, mask)

    def segment_weights(
        self, segment_embeds: torch.Tensor, segment_mask: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """How much each segment counts in its text, `[C, S]`, 0 where there is none; here all the same.

        Args:
            segment_embeds: `[C, S, D]`.
            segment_mask: `[C, S]` bool.
            tokens: `[C, S]`, tokens of each segment, both end tokens included.
        """
        return segment_mask.to(segment_embeds.dtype)
