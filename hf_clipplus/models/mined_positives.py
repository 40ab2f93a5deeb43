"""Positives from owners, equal ids and mined similarities, and the loss of them all (FFF), for any dual encoder."""

import torch
from transformers.utils import logging

from hf_clipplus.ops.contrastive import logit_statistics, sigmoid_loss, softmax_loss
from hf_clipplus.ops.distributed import all_gather_ragged, gather_integers, gather_sizes, rank
from hf_clipplus.ops.positives import Positives, default_owners, mine_positives, positives_from_ids

logger = logging.get_logger(__name__)

SUSPICIOUS_MINED_SHARE = 0.05


class MinedPositivesMixin:
    """A dual encoder with any number of positives per image; its configuration is a `MinedPositivesConfig`."""

    @property
    def adds_logit_bias(self) -> bool:
        return self.config.contrastive_loss == "sigmoid"

    def multi_positive_loss(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        *,
        caption_owner: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        mining_image_features: torch.Tensor | None = None,
        mining_text_features: torch.Tensor | None = None,
        positives: torch.Tensor | None = None,
        mine_online: bool | None = None,
        negatives: torch.Tensor | None = None,
        **_,
    ) -> dict[str, torch.Tensor]:
        """Embeddings to loss, over the batches of all processes.

        Args:
            images: `[N, D]`, L2-normalised, of this process.
            texts: `[C, D]`, L2-normalised.
            caption_owner: `[C]` int64, image of each caption; contiguous groups of C/N when left out.
            image_ids: `[N]` int64, equal id = same picture (also across processes), negative = not known.
            caption_ids: `[C]` int64, equal id = same text, negative = not known.
            mining_image_features, mining_text_features: `[N, Df]`, `[C, Df]` features to mine from; a row of zeros is
                similar to nothing. Not used when `config.mining_features` is None or "online".
            positives: instead of all of the above: bool `[N, C]` or coordinates `[2, P]` (captions numbered over all
                processes).
            mine_online: whether online mining has begun; the trainer sets it after the warm-up.
            negatives: `[M, D]`, L2-normalised; texts of no image, negative for every image.

        Returns:
            `loss`, `positives [2, P]` and `statistics`.

        Raises:
            ValueError: an owner out of range, ids or features of the wrong length, only one kind of mining features,
                NaN features, features of another width in another process.
        """
        if positives is None:
            if self.config.mining_features in (None, "online"):
                mining_image_features = mining_text_features = None
            if self.config.mining_features == "online" and self._online_mining_begun(mine_online):
                mining_image_features, mining_text_features = images.detach(), texts.detach()
            if caption_owner is None:
                caption_owner = default_owners(len(images), len(texts), images.device)
            Positives.coerce(caption_owner, (len(images), len(texts)))  # checked before it is shifted by the rank
            pairs, mined = self._assign(
                images.shape[0],
                caption_owner,
                image_ids,
                caption_ids,
                mining_image_features,
                mining_text_features,
            )
        else:
            captions = sum(gather_sizes(texts.shape[0], texts.device))
            pairs, mined = Positives.coerce(positives, (images.shape[0], captions)), {}
        options = {"tile_size": self.config.loss_tile_size, "negatives": negatives}
        if self.config.contrastive_loss == "softmax":
            loss = softmax_loss(images, texts, pairs, self.logit_scale, **options)
            loss = loss + 0.0 * self.logit_bias.sum()  # the bias stays part of the graph: DDP wants every parameter
        else:
            options["normalizer"] = self.config.loss_normalizer
            loss = sigmoid_loss(images, texts, pairs, self.logit_scale, self.logit_bias, **options)
        bias = self.logit_bias.detach().reshape(()) if self.adds_logit_bias else 0.0
        statistics = logit_statistics(images, texts, pairs, self.logit_scale.reshape(()), bias) | mined
        return {"loss": loss, "positives": torch.stack([pairs.rows, pairs.cols]), "statistics": statistics}

    def _assign(
        self,
        images: int,
        owner: torch.Tensor,
        image_ids: torch.Tensor | None,
        caption_ids: torch.Tensor | None,
        image_features: torch.Tensor | None,
        text_features: torch.Tensor | None,
    ) -> tuple[Positives, dict[str, torch.Tensor]]:
        """Positives of this process's images among the captions of all processes, and what was mined per image."""
        if (image_features is None) != (text_features is None):
            raise ValueError("mining needs both mining_image_features and mining_text_features.")
        owner, sizes, targets = _gather_targets(
            images,
            owner,
            image_ids=image_ids,
            caption_ids=caption_ids,
            mining_image_features=image_features,
            mining_text_features=text_features,
        )
        start = sum(sizes[: rank()])
        own = (start, start + images)
        image_features, text_features = targets.pop("mining_image_features"), targets.pop("mining_text_features")
        pairs = positives_from_ids(owner, sum(sizes), **targets).between(*own)
        if image_features is None:
            return pairs, {}
        if not (torch.isfinite(image_features).all() and torch.isfinite(text_features).all()):
            raise ValueError("mining features contain NaN or infinite values.")
        config = self.config
        found, counts = mine_positives(
            image_features,
            text_features,
            owner,
            p1=config.p1,
            p1_gate=config.p1_gate,
            p2=config.p2,
            p3=config.p3,
            rule=config.mining_rule,
            stt=config.stt_mode,
            rows=own,
        )
        everything = found.shape[0] * found.shape[1]
        if counts["total"] > SUSPICIOUS_MINED_SHARE * everything:
            logger.warning_once(
                f"{int(counts['total'])} of {everything} pairs were mined as positives: the thresholds p1, p1_gate, "
                "p2, p3 do not fit the feature model. hf_clipplus.training.calibrate proposes others."
            )
        names = {"total": "mined", **{key: f"mined_{key}" for key in ("image_text", "image_image", "text_text")}}
        return pairs.union(found), {names[key]: count / max(images, 1) for key, count in counts.items()}

    def _online_mining_begun(self, mine_online: bool | None) -> bool:
        if mine_online is None:
            logger.warning_once(
                "mining_features='online' but nobody says that the warm-up is over (mine_online): nothing is mined. "
                "ContrastiveTrainer does this; an untrained model would mine almost every pair."
            )
        return bool(mine_online)


def _gather_targets(images: int, owner: torch.Tensor, **targets: torch.Tensor | None) -> tuple:
    """Owners (of images numbered over all processes), images per process, and the targets of all processes by name.

    A target is None only where no process has it. Where others have it and this batch does not, its rows count as not
    known (id -1, features of zeros): otherwise the processes would wait for each other for ever.
    """
    rows = {name: images if "image" in name else len(owner) for name in targets}
    for name, target in targets.items():
        ndim = 1 if name.endswith("_ids") else 2
        if target is not None and (target.ndim != ndim or len(target) != rows[name]):
            raise ValueError(f"{name}: expected {rows[name]} rows in {ndim} dimension(s), got {list(target.shape)}.")
    widths = [0 if target is None else target[0].numel() for target in targets.values()]
    image_sizes, caption_sizes, *widths = zip(
        *gather_integers([images, len(owner), *widths], owner.device), strict=True
    )
    gathered = dict.fromkeys(targets)
    for (name, target), width in zip(targets.items(), map(set, widths), strict=True):
        width.discard(0)
        if len(width) > 1:
            raise ValueError(f"{name} differ in width between processes: {sorted(width)}.")
        if not width:
            continue
        if target is None:
            target = -torch.ones(rows[name]) if name.endswith("_ids") else torch.zeros(rows[name], *width)
        target = target.to(owner.device, torch.int64 if name.endswith("_ids") else torch.float32)
        gathered[name] = torch.cat(all_gather_ragged(target, image_sizes if "image" in name else caption_sizes))
    owner = owner + sum(image_sizes[: rank()])
    return torch.cat(all_gather_ragged(owner, caption_sizes)), image_sizes, gathered
