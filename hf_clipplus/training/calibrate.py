"""Chooses numbers that depend on the model at hand: mining thresholds for its features, and the first bias."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from hf_clipplus.ops.contrastive import auto_bias
from hf_clipplus.ops.distributed import gather_sizes
from hf_clipplus.ops.positives import mine_positives, mining_similarities

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Calibration:
    """Quantiles of similarities of one feature model and the thresholds they propose.

    Args:
        quantiles: name of the similarity -> value at each of `QUANTILES`.
        thresholds: `p1`, `p1_gate`, `p2`, `p3`, to be passed to `FFFConfig`.
        mined_per_image: pairs mined per image at these thresholds, in a batch of `batch_size` images.
        batch_size: images per batch that `mined_per_image` is stated for.
    """

    quantiles: dict[str, list[float]]
    thresholds: dict[str, float]
    mined_per_image: float
    batch_size: int

    def __str__(self) -> str:
        head = f"{'cosine of':28}" + "".join(f"{f'{100 * q:g}%':>8}" for q in QUANTILES)
        lines = [f"{name:28}" + "".join(f"{value:8.3f}" for value in row) for name, row in self.quantiles.items()]
        chosen = ", ".join(f"{name}={value:.4f}" for name, value in self.thresholds.items())
        mined = f"{self.mined_per_image:.3f} mined pairs per image in batches of {self.batch_size}"
        return "\n".join([head, *lines, f"proposed: {chosen}", mined])


@torch.no_grad()
def calibrate(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    owner: torch.Tensor,
    *,
    batch_size: int,
    target: float = 0.1,
    gate_quantile: float = 0.3,
    rule: str = "gated",
    stt: str = "group_mean",
    generator: torch.Generator | None = None,
) -> Calibration:
    """Propose mining thresholds at which each branch mines about `target` pairs per image.

    The paper's thresholds are not confirmed and depend on the feature model, so they are chosen from quantiles of the
    cosines of random (not own) pairs: the share `target / captions of a batch` of them lies above each of p1, p2 and
    p3 (a branch whose values repeat, or that the gate cuts, mines less). The gate is a low quantile of the own pairs:
    a caption passes that fits the image as well as the weaker own captions do.

    Args:
        image_features: `[N, Df]`, of >= 1000 images (10,000 and more make the far quantiles firm).
        text_features: `[C, Df]`.
        owner: `[C]` int64.
        batch_size: images in a training batch over all processes.
        target: wanted mined pairs per image and branch; 0.01 to 1 is sensible.
        gate_quantile: quantile of the own pairs' image-text cosine that becomes p1_gate.
        rule, stt: as in `mine_positives`.
        generator: draws the batches.

    Raises:
        ValueError: fewer images than one batch.
    """
    n = image_features.shape[0]
    if n < batch_size:
        raise ValueError(f"calibration needs at least one batch of {batch_size} images, got features of {n}.")
    own_values, other = [], {"image-text": [], "image-image": [], "text-text": []}
    batches = list(torch.randperm(n, generator=generator).split(batch_size))
    batches = [batch for batch in batches if len(batch) == batch_size][:64]
    batches = [_sub_batch(image_features, text_features, owner, rows) for rows in batches]
    for images, texts, local_owner in batches:
        similarity = mining_similarities(images, texts, local_owner, stt=stt)
        own = local_owner[None] == torch.arange(len(images), device=local_owner.device)[:, None]
        own_values.append(similarity.image_text[own])
        for name, values in zip(
            other, (similarity.image_text, similarity.image_image, similarity.text_text), strict=True
        ):
            other[name].append(values[~own])
    own_pairs = torch.cat(own_values)
    others = {name: torch.cat(values) for name, values in other.items()}
    quantiles = {"own image-text pairs": [_quantile(own_pairs, q) for q in QUANTILES]}
    quantiles |= {f"random {name} pairs": [_quantile(values, q) for q in QUANTILES] for name, values in others.items()}
    captions_per_image = text_features.shape[0] / n
    share = min(target / (batch_size * captions_per_image), 0.5)
    thresholds = {
        "p1": _quantile(others["image-text"], 1 - share),
        "p1_gate": _quantile(own_pairs, gate_quantile),
        "p2": _quantile(others["image-image"], 1 - share),
        "p3": _quantile(others["text-text"], 1 - share),
    }
    mined = [mine_positives(*batch, rule=rule, stt=stt, **thresholds)[1]["total"] for batch in batches]
    per_image = float(torch.stack(mined).sum()) / (len(batches) * batch_size)
    return Calibration(quantiles, thresholds, per_image, batch_size)


@torch.no_grad()
def set_auto_bias(model: nn.Module, batches: Iterable[dict], *, device: torch.device) -> float:
    """Set `model.logit_bias` so that the mean pair is as likely as the share of positives (`ops.auto_bias`).

    Args:
        model: has `logit_scale`, `logit_bias`, `embed` and `contrast`.
        batches: a few batches as the collator makes them; as many, of other rows, in every process.
        device: where the model lives.

    Returns:
        The bias.

    Raises:
        ValueError: the batches hold no pair that is not positive, e.g. a single image.
    """
    cosines, positives, pairs = 0.0, 0, 0
    for batch in batches:
        batch = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        names = model.image_inputs + model.text_inputs
        found = model.embed(**{name: batch[name] for name in names if name in batch})
        images, captions = len(found.image_embeds), sum(gather_sizes(len(found.text_embeds), device))
        # the mean over all pairs; those of this process stand for all
        mean = (found.image_embeds.float().mean(0) @ found.text_embeds.float().mean(0)).item()
        cosines += images * captions * mean
        targets = {key: value for key, value in batch.items() if key not in names}
        positives += model.contrast(found, **targets)["positives"].shape[1]
        pairs += images * captions
    if positives >= pairs:
        raise ValueError(
            f"all {pairs} image-caption pairs of the first batches are positive: without negatives there is nothing "
            "to contrast and no bias to choose. Use more images per batch, or start from the model's bias "
            "(bias_init='config')."
        )
    bias = auto_bias(cosines / pairs, positives / pairs, model.logit_scale.item())
    model.logit_bias.fill_(bias)
    return bias


def _quantile(values: torch.Tensor, q: float) -> float:
    """Exact quantile by partial sort (`torch.quantile` refuses more than 16 M values)."""
    return values.kthvalue(min(int(q * len(values)) + 1, len(values))).values.item()


def _sub_batch(image_features, text_features, owner, rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    position = owner.new_full((image_features.shape[0],), -1)
    position[rows] = torch.arange(len(rows), device=owner.device)
    captions = (position[owner] >= 0).nonzero().squeeze(1)
    return image_features[rows], text_features[captions], position[owner[captions]]
