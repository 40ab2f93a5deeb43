"""Labels that images bring along, as further objectives of contrastive training: colour, texture, clusters.

Each objective is a linear head on the image embedding and a target made from the pixels of the batch (augmented as the
model sees them). Heads and clusters live beside the model: the optimizer trains them, a checkpoint keeps them for
resuming, and what the model saves knows nothing of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from hf_clipplus.data.image_statistics import (
    COLOUR_LEVELS,
    TEXTURE_CODES,
    TEXTURE_RADII,
    colour_histogram,
    texture_function,
    texture_histogram,
)
from hf_clipplus.data.pixel_scale import PixelScale
from hf_clipplus.ops.clusters import assign_clusters, balanced_kmeans
from hf_clipplus.ops.distributed import all_gather_ragged, gather_sizes, sum_over_ranks, world_size

SELF_LABELS = ("colour", "texture", "clusters")
CLUSTER_FEATURES = ("own", "frozen_model")
IMAGES_PER_CLUSTER = 32  # that the clusters are made from, the last ones seen
STATE_FILE = "self_labels.pt"


def parse_self_labels(entries: Sequence[str]) -> dict[str, float]:
    """`["colour=0.1", "clusters=0.5"]` to weights by name.

    Raises:
        ValueError: an entry that is not `name=weight`, an unknown or repeated name, a weight that is not positive.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if name not in SELF_LABELS:
            raise ValueError(f"self_labels: unknown label {name!r}; choose among {', '.join(SELF_LABELS)}.")
        try:
            weight = float(value)
        except ValueError:
            raise ValueError(f"self_labels: expected {name}=<weight>, e.g. {name}=0.1, got {entry!r}.") from None
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"self_labels: the weight of {name} must be positive, got {value}; leave out what is 0.")
        if name in weights:
            raise ValueError(f"self_labels: {name} is given twice.")
        weights[name] = weight
    return weights


class ClusterLabels:
    """Clusters of equal size over the features of the last images, as labels of the next ones.

    Args:
        clusters: how many.
        refresh_steps: optimizer steps from one k-means to the next; before the first there are no labels.
        seed: of the first centroids. Later ones start from those before, so that a cluster keeps its number.
    """

    def __init__(self, clusters: int, refresh_steps: int, seed: int):
        self.clusters, self.refresh_steps, self.seed = clusters, refresh_steps, seed
        self.features: torch.Tensor | None = None  # [M, D] of the last images, oldest first
        self.centroids: torch.Tensor | None = None  # [K, D]
        self.offsets: torch.Tensor | None = None  # [K]
        self.refreshed = 0  # step of the last k-means

    def refresh_if_due(self, step: int) -> bool:
        """Make new clusters every `refresh_steps` steps; equal on all processes, as the features are.

        Args:
            step: optimizer steps so far.

        Raises:
            ValueError: fewer images were seen than there are clusters.
        """
        if step % self.refresh_steps or step == self.refreshed:
            return False
        seen = 0 if self.features is None else len(self.features)
        if seen < self.clusters:
            raise ValueError(
                f"label_clusters={self.clusters} but only {seen} images were seen in {self.refresh_steps} steps: use "
                "fewer clusters, or a higher label_cluster_steps."
            )
        generator = torch.Generator().manual_seed(self.seed)
        self.centroids, self.offsets = balanced_kmeans(
            self.features, self.clusters, generator=generator, start=self.centroids
        )
        self.refreshed = step
        return True

    def label(self, features: torch.Tensor) -> torch.Tensor | None:
        """The cluster of each image, `[N]`, or None before the first refresh; the images enter the next one.

        Args:
            features: `[N, D]` of this process.
        """
        features = F.normalize(features.detach().float(), dim=-1)
        labels = None if self.centroids is None else assign_clusters(features, self.centroids, self.offsets)
        everyone = torch.cat(all_gather_ragged(features))
        if self.features is not None:
            everyone = torch.cat([self.features, everyone])
        self.features = everyone[-IMAGES_PER_CLUSTER * self.clusters :]
        return labels

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next labels depend on."""
        names = ("features", "centroids", "offsets", "refreshed")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, torch.Tensor) else value)


class SelfLabels:
    """The heads, and the losses of a batch.

    Args:
        weights: of the objectives, by name, see `parse_self_labels`.
        config: of the model that is trained.
        scale: of its processor.
        clusters, refresh_steps: see `ClusterLabels`.
        seed: of the heads and of the clusters.
        device: where the heads are.

    Raises:
        ImportError: texture without scikit-image.
    """

    def __init__(
        self,
        weights: dict[str, float],
        config: PreTrainedConfig,
        scale: PixelScale,
        *,
        clusters: int,
        refresh_steps: int,
        seed: int,
        device: torch.device,
    ):
        self.weights, self.scale, self.width = weights, scale, embedding_width(config)
        if "texture" in weights:
            texture_function()  # says at once that it is missing
        outputs = {
            "colour": COLOUR_LEVELS**3,
            "texture": len(TEXTURE_RADII) * TEXTURE_CODES,
            "clusters": clusters,
        }
        with torch.random.fork_rng(devices=[]):  # the run's own randomness does not change, heads or none
            torch.manual_seed(seed)
            heads = {name: nn.Linear(self.width, outputs[name]) for name in SELF_LABELS if name in weights}
        self.heads = nn.ModuleDict(heads).to(device)
        self.clusters = ClusterLabels(clusters, refresh_steps, seed) if "clusters" in weights else None

    def losses(
        self, image_embeds: torch.Tensor, pixel_values: torch.Tensor, cluster_features: torch.Tensor | None, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the objectives, and each one by its name in the log.

        Every one is the mean over the images of all processes, scaled so that gradients that are averaged over
        processes are those of that mean.

        Args:
            image_embeds: `[N, D]`, L2-normalised, with graph.
            pixel_values: `[N, 3, H, W]`, as the processor made them.
            cluster_features: `[N, Df]` of a frozen model; None takes the embeddings themselves.
            step: optimizer steps so far.
        """
        inputs = image_embeds.float() * self.width**0.5  # a mean square of 1 in each coordinate
        pixels = self.scale.to_unit(pixel_values)
        targets: dict[str, torch.Tensor | None] = {}
        if "colour" in self.weights:
            targets["colour"] = colour_histogram(pixels)
        if "texture" in self.weights:
            targets["texture"] = texture_histogram(pixels)
        if self.clusters is not None:
            self.clusters.refresh_if_due(step)
            targets["clusters"] = self.clusters.label(image_embeds if cluster_features is None else cluster_features)
        total, logged = inputs.new_zeros(()), {}
        share = world_size() / sum(gather_sizes(len(inputs), inputs.device))
        for name, target in targets.items():
            logits = self.heads[name](inputs)
            if target is None:
                loss = 0.0 * logits.sum()  # keeps the head in the graph: the processes average its gradient
            elif name == "clusters":
                loss = share * F.cross_entropy(logits, target, reduction="sum")
            else:
                loss = share * histogram_divergence(logits.view_as(target), target).sum()
            total = total + self.weights[name] * loss
            if target is not None:
                logged[f"loss_{name}"] = sum_over_ranks(loss.detach()) / world_size()
        return total, logged

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """For the optimizer: the heads' matrices decay, their biases do not."""
        parameters = list(self.heads.parameters())
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def state_dict(self) -> dict[str, Any]:
        """Heads and clusters."""
        clusters = None if self.clusters is None else self.clusters.state_dict()
        return {"heads": self.heads.state_dict(), "clusters": clusters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            RuntimeError: the heads are others.
        """
        self.heads.load_state_dict(state["heads"])
        if self.clusters is not None:
            self.clusters.load_state_dict(state["clusters"], next(self.heads.parameters()).device)


def histogram_divergence(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of each row's predicted histogram from the true one, 0 where they are equal.

    Args:
        logits: `[N, ..., bins]`.
        target: `[N, ..., bins]`, sums to 1 over the bins.

    Returns:
        `[N]`, the mean over the dimensions between.
    """
    found = F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1)
    return found.flatten(1).mean(1) if found.ndim > 1 else found


def embedding_width(config: PreTrainedConfig) -> int:
    """Width of the image embedding of a contrastive model of the zoo."""
    return config.vision_config.hidden_size if getattr(config, "has_siglip_towers", False) else config.projection_dim
