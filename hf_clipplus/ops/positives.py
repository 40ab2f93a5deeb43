"""Which image-caption pairs are positive: sparse sets of pairs from owners, ids and mined similarities."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

MINING_RULES = ("gated", "plain")
STT_MODES = ("group_mean", "caption_mean")
NO_IMAGE = -1  # the owner of a text that belongs to no image: a false caption


@dataclass(frozen=True)
class Positives:
    """A sparse set of positive pairs of N images and C captions, sorted by (row, column), without repetition.

    Args:
        rows: `[P]` int64, image of each pair.
        cols: `[P]` int64, caption of each pair.
        shape: (N, C).
    """

    rows: torch.Tensor
    cols: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def from_pairs(cls, rows: torch.Tensor, cols: torch.Tensor, shape: tuple[int, int]) -> "Positives":
        """Sort and deduplicate coordinates; raises ValueError when one lies outside `shape`."""
        n, c = shape
        if rows.numel():
            for what, index, limit in (("image", rows, n), ("caption", cols, c)):
                low, high = int(index.min()), int(index.max())
                if low < 0 or high >= limit:
                    raise ValueError(
                        f"positives: {what} index out of range: found {low if low < 0 else high}, "
                        f"the batch has {limit} {what}s (0 to {limit - 1})."
                    )
        keys = torch.unique(rows.long() * c + cols.long())
        return cls(keys // c if c else keys, keys % c if c else keys, (n, c))

    @classmethod
    def coerce(cls, value, shape: tuple[int, int]) -> "Positives":
        """Read any accepted form of positives.

        Args:
            value: `Positives`; or owners `[C]` (integer: the image of each caption); or coordinates `[2, P]`
                (integer); or a dense mask `[N, C]` (bool).
            shape: (N, C).

        Raises:
            ValueError: wrong shape or dtype, or an index out of range.
        """
        if isinstance(value, cls):
            if value.shape != tuple(shape):
                raise ValueError(
                    f"positives are for a batch of shape {value.shape}, the embeddings are {tuple(shape)}."
                )
            return value
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"positives: expected a tensor or Positives, got {type(value).__name__}.")
        n, c = shape
        if value.dtype == torch.bool:
            if tuple(value.shape) != (n, c):
                raise ValueError(f"positives: a dense mask must be [{n}, {c}], got {list(value.shape)}.")
            rows, cols = value.nonzero(as_tuple=True)
            return cls(rows, cols, (n, c))
        if value.is_floating_point():
            raise ValueError(f"positives: expected bool or integer values, got {value.dtype}.")
        if value.ndim == 1:
            if value.shape[0] != c:
                raise ValueError(f"caption_owner: expected one entry per caption ({c}), got {value.shape[0]}.")
            return cls.from_pairs(value, torch.arange(c, device=value.device), (n, c))
        if value.ndim == 2 and value.shape[0] == 2:
            return cls.from_pairs(value[0], value[1], (n, c))
        raise ValueError(
            f"positives: expected owners [{c}], coordinates [2, P] or a bool mask [{n}, {c}], "
            f"got {value.dtype} {list(value.shape)}."
        )

    def union(self, *others: "Positives") -> "Positives":
        """The pairs that are in any of the sets."""
        everyone = (self, *others)
        keys = torch.unique(torch.cat([p.rows * self.shape[1] + p.cols for p in everyone]))
        return Positives(keys // max(self.shape[1], 1), keys % max(self.shape[1], 1), self.shape)

    def between(self, first: int, last: int) -> "Positives":
        """The pairs of images `first <= i < last`, numbered from `first`."""
        inside = (self.rows >= first) & (self.rows < last)
        return Positives(self.rows[inside] - first, self.cols[inside], (last - first, self.shape[1]))

    def to_mask(self) -> torch.Tensor:
        """Dense bool `[N, C]`; for small batches and tests."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.rows.device)
        mask[self.rows, self.cols] = True
        return mask

    def __len__(self) -> int:
        return self.rows.numel()


def default_owners(images: int, captions: int, device: torch.device | None = None) -> torch.Tensor:
    """Owners of contiguous groups of equal size: `[C]` int64. Raises ValueError when C is no multiple of N."""
    if images == 0 or captions % images:
        raise ValueError(
            f"{captions} captions cannot be shared out evenly to {images} images: "
            "pass caption_owner (the image of each caption)."
        )
    return torch.arange(images, device=device).repeat_interleave(captions // images)


def apart_from_negatives(
    texts: torch.Tensor, owner: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Captions, their owners, and the texts whose owner is `NO_IMAGE` (None when there is none), each in order.

    Args:
        texts: `[T, D]`, the embeddings of all texts of a batch.
        owner: `[T]` int64, or None: every text is a caption.

    Raises:
        ValueError: not one owner for each text, or one below -1.
    """
    if owner is None:
        return texts, None, None
    if owner.shape != texts.shape[:1]:
        raise ValueError(f"caption_owner: expected one entry per text ({len(texts)}), got {list(owner.shape)}.")
    false = owner == NO_IMAGE
    if not false.any():
        return texts, owner, None
    return texts[~false], owner[~false], texts[false]


def equal_pairs(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All (i, j) with `left[i] == right[j]`, by sorting: O((n + m) log m + pairs), never n x m."""
    ordered, order = right.sort(stable=True)
    start, end = torch.searchsorted(ordered, left), torch.searchsorted(ordered, left, right=True)
    counts = end - start
    rows = torch.arange(left.numel(), device=left.device).repeat_interleave(counts)
    within = torch.arange(rows.numel(), device=left.device) - (counts.cumsum(0) - counts)[rows]
    return rows, order[start[rows] + within]


def positives_from_ids(
    owner: torch.Tensor,
    images: int,
    *,
    image_ids: torch.Tensor | None = None,
    caption_ids: torch.Tensor | None = None,
) -> Positives:
    """Own captions, captions of images with the same id, and captions whose id an own caption has (fff spec, sec. 3).

    Args:
        owner: `[C]` int64, the image of each caption.
        images: N.
        image_ids: `[N]` int64; equal id means the same picture, a negative one that nothing is known.
        caption_ids: `[C]` int64; equal id means the same text, a negative one that nothing is known.

    Returns:
        The union of the three kinds.
    """
    shape = (images, owner.numel())
    found = Positives.coerce(owner, shape)
    if image_ids is not None:
        if image_ids.shape != (images,):
            raise ValueError(f"image_ids: expected [{images}], got {list(image_ids.shape)}.")
        image, caption = (image_ids >= 0).nonzero().squeeze(1), (image_ids[owner] >= 0).nonzero().squeeze(1)
        rows, cols = equal_pairs(image_ids[image], image_ids[owner[caption]])
        found = found.union(Positives.from_pairs(image[rows], caption[cols], shape))
    if caption_ids is not None:
        if caption_ids.shape != owner.shape:
            raise ValueError(f"caption_ids: expected {list(owner.shape)}, got {list(caption_ids.shape)}.")
        known = (caption_ids >= 0).nonzero().squeeze(1)
        own_caption, other_caption = equal_pairs(caption_ids[known], caption_ids[known])
        found = found.union(Positives.from_pairs(owner[known[own_caption]], known[other_caption], shape))
    return found


@dataclass(frozen=True)
class MiningSimilarities:
    """Row tiles of the three similarity matrices of FFF, each `[rows, C]`, cosines without gradient."""

    image_text: torch.Tensor
    image_image: torch.Tensor
    text_text: torch.Tensor


@dataclass(frozen=True)
class _MiningFeatures:
    """Normalised features and what can be derived from them once per batch."""

    image: torch.Tensor  # [N, Df]
    look: torch.Tensor  # [N, any], what S_ii compares; `image` unless given apart
    text: torch.Tensor  # [C, Df]
    group: torch.Tensor  # [N, Df], mean of the normalised caption features of each image (not normalised again)
    owner: torch.Tensor  # [C]

    @classmethod
    def prepare(cls, image_features, text_features, owner: torch.Tensor, image_image_features=None):
        image, text = F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)
        look = image if image_image_features is None else F.normalize(image_image_features.float(), dim=-1)
        group = text.new_zeros(image.shape[0], text.shape[1]).index_add_(0, owner, text)
        counts = torch.bincount(owner, minlength=image.shape[0]).clamp(min=1)
        return cls(image, look, text, group / counts[:, None], owner)

    def tile(self, start: int, end: int, stt: str) -> MiningSimilarities:
        image, look, group = self.image[start:end], self.look[start:end], self.group[start:end]
        if stt == "group_mean":  # mean over the k x k caption pairs = product of the group means
            text_text = (group @ self.group.T)[:, self.owner]
        else:
            text_text = group @ self.text.T
        return MiningSimilarities(image @ self.text.T, (look @ self.look.T)[:, self.owner], text_text)


def mining_similarities(
    image_features: torch.Tensor, text_features: torch.Tensor, owner: torch.Tensor, *, stt: str = "group_mean"
) -> MiningSimilarities:
    """S_it, S_ii and S_tt of FFF, dense `[N, C]`; for calibration and tests (`mine_positives` works in tiles).

    Args:
        image_features: `[N, Df]`, any norm.
        text_features: `[C, Df]`, any norm.
        owner: `[C]` int64.
        stt: "group_mean" (mean over the pairs of captions of two images) or "caption_mean" (of image i's captions
            against caption c alone).
    """
    features = _MiningFeatures.prepare(image_features, text_features, owner)
    return features.tile(0, image_features.shape[0], stt)


@torch.no_grad()
def mine_positives(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    owner: torch.Tensor,
    *,
    p1: float,
    p1_gate: float,
    p2: float,
    p3: float,
    rule: str = "gated",
    stt: str = "group_mean",
    image_image_features: torch.Tensor | None = None,
    rows: tuple[int, int] | None = None,
    tile_size: int = 256,
) -> tuple[Positives, dict[str, torch.Tensor]]:
    """Mine positive pairs from feature similarities (FFF, assignment matrix M; strict `>` everywhere).

    `gated`: `M = own | S_it > p1 | (S_ii > p2 & S_it > p1_gate) | S_tt > p3`; `plain` leaves the gate out. Which of
    the two the authors use is not confirmed. M is neither symmetric nor transitive, and is not closed.

    Args:
        image_features: `[N, Df]` features of all images (of all ranks), any norm.
        text_features: `[C, Df]` features of all captions (of all ranks).
        owner: `[C]` int64, the image of each caption.
        p1, p1_gate, p2, p3: thresholds on cosines; meaningful only for the feature model they were calibrated on.
        rule: "gated" or "plain".
        stt: see `mining_similarities`.
        image_image_features: `[N, any]` features for S_ii alone, e.g. of a self-supervised vision model;
            `image_features` when None.
        rows: half-open range of images whose pairs are wanted (a rank's own images); all when None.
        tile_size: images per tile; memory is tile_size x C, whatever N.

    Returns:
        The positives (own pairs included), rows relative to `rows[0]`; and the number of mined pairs (not own) as
        int64 scalars: `total`, `image_text`, `image_image`, `text_text` (a pair may count in several branches).
    """
    if rule not in MINING_RULES:
        raise ValueError(f"mining rule {rule!r} is unknown: choose one of {MINING_RULES}.")
    if stt not in STT_MODES:
        raise ValueError(f"stt {stt!r} is unknown: choose one of {STT_MODES}.")
    first, last = rows or (0, image_features.shape[0])
    features = _MiningFeatures.prepare(image_features, text_features, owner, image_image_features)
    found, counts = [], torch.zeros(4, dtype=torch.long, device=owner.device)
    for start in range(first, last, tile_size):
        end = min(start + tile_size, last)
        similarity = features.tile(start, end, stt)
        own = owner[None, :] == torch.arange(start, end, device=owner.device)[:, None]
        by_text = similarity.image_text > p1
        by_image = similarity.image_image > p2
        if rule == "gated":
            by_image &= similarity.image_text > p1_gate
        by_caption = similarity.text_text > p3
        mined = by_text | by_image | by_caption
        counts += torch.stack([(branch & ~own).sum() for branch in (mined, by_text, by_image, by_caption)])
        pair_rows, pair_cols = (mined | own).nonzero(as_tuple=True)
        found.append((pair_rows + (start - first), pair_cols))
    empty = owner.new_zeros(0)
    pair_rows, pair_cols = (torch.cat([pair[i] for pair in found]) if found else empty for i in (0, 1))
    statistics = dict(zip(("total", "image_text", "image_image", "text_text"), counts.unbind(), strict=True))
    return Positives(pair_rows, pair_cols, (last - first, owner.numel())), statistics
