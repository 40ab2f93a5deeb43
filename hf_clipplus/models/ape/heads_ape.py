"""The few-shot heads: fit, predict, predict_proba and score on feature arrays, or as the classifier of a model.

Example, for people who come with feature arrays:

    head = APEHead().fit(features, labels, text_weight, validation=(val_features, val_labels))
    head.score(test_features, test_labels)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from hf_clipplus.ops import cache_classifier as ops
from hf_clipplus.ops.cache_search import correct_on_grid, correct_on_lines, first_maximum, published_axis

from .checks_ape import (
    as_features,
    as_labels,
    check_every_class_has_images,
    check_honest_validation,
    row_hashes,
    set_digest,
)

logger = logging.get_logger(__name__)

PROTOCOLS = ("honest", "paper")


def logarithmic_axis(first: float, last: float, steps: int) -> list[float]:
    """`steps` values from `first` to `last`, both included, at equal ratios."""
    return torch.logspace(math.log10(first), math.log10(last), steps, dtype=torch.float64).tolist()


@dataclass(frozen=True)
class SearchGrid:
    """Values of the hyper-parameters that validation chooses among; a head searches those that it has.

    The default reaches every useful weight of the cache for every head, so that comparing heads compares heads and not
    grids (the published grids of alpha end at 7 for APE, whose exp(gamma d) then reaches further than Tip-Adapter).

    Args:
        betas: sharpness (Tip-Adapter, APE, ProKeR).
        alphas: weight of the cache term (Tip-Adapter, APE).
        gammas: exponent of the difficulty (APE).
        gda_alphas: weight of GDA's linear classifier (published: up to 100).
        strengths: lambda of ProKeR.
    """

    betas: Sequence[float] = field(default_factory=lambda: logarithmic_axis(0.1, 30, 20))
    alphas: Sequence[float] = field(default_factory=lambda: logarithmic_axis(0.1, 1e4, 120))
    gammas: Sequence[float] = field(default_factory=lambda: published_axis(1, 20, 0.0))
    gda_alphas: Sequence[float] = field(default_factory=lambda: [10.0**e for e in range(-4, 5)])
    strengths: Sequence[float] = field(default_factory=lambda: logarithmic_axis(1e-3, 10, 9))

    @classmethod
    def published(cls, scale: Sequence[float], steps: Sequence[int]) -> "SearchGrid":
        """The published grids: scale and steps of beta, alpha and, for APE, gamma."""
        axes = [published_axis(*axis) for axis in zip(scale, steps, (0.1, 0.1, 0.0))]  # noqa: B905  Tip has two
        named = dict(zip(("betas", "alphas", "gammas"), axes))  # noqa: B905
        return cls(**named, gda_alphas=[10.0**e for e in range(-4, 3)])


class FewShotHead(nn.Module):
    """A classifier on L2-normalised image features, after scikit-learn's habits.

    Tensors are frozen parameters and buffers, so that a head is saved, loaded and moved like any module.

    Args:
        classes, dim, cache_size, num_channels: sizes to allocate before weights are loaded; `fit` sets them.
        text_scale, alpha, beta, gamma, strength, channel_weights: see `APEConfig`.
    """

    name = "zero_shot"
    searched: tuple[str, ...] = ()

    def __init__(
        self,
        classes: int = 0,
        dim: int = 0,
        *,
        cache_size: int = 0,
        num_channels: int = 0,
        text_scale: float = 100.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.1,
        strength: float = 1.0,
        channel_weights: Sequence[float] = (0.5, 0.5),
    ):
        super().__init__()
        self.text_scale, self.alpha, self.beta, self.gamma = text_scale, alpha, beta, gamma
        self.strength, self.channel_weights, self.num_channels = strength, tuple(channel_weights), num_channels
        self.class_names: list[str] = []
        self.fit_report: dict[str, Any] | None = None
        self._answers_are_names = False
        self.text_weight = _frozen(torch.zeros(classes, dim))
        self._allocate(classes, dim, cache_size)

    def _allocate(self, classes: int, dim: int, cache_size: int) -> None:
        """Make room for the tensors that the head has beside `text_weight`."""

    @property
    def classes(self) -> int:
        return len(self.text_weight)

    # the head as a module

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of L2-normalised features `[B, D]`; computed in the head's dtype."""
        features = features.to(self.text_weight.dtype)
        return self.text_logits(features) + self.image_logits(features)

    def text_logits(self, features: Tensor) -> Tensor:
        """`text_scale * features @ text_weight.T`, `[B, C]`."""
        return self.text_scale * features @ self.text_weight.T

    def image_logits(self, features: Tensor) -> Tensor | float:
        """What the images of the support set add, `[B, C]`."""
        return 0.0

    # scikit-learn's habits

    def fit(
        self,
        features: Any,
        labels: Any,
        text_weight: Any,
        *,
        class_names: Sequence[str] | None = None,
        validation: tuple[Any, Any] | None = None,
        protocol: str = "honest",
        grid: SearchGrid | None = None,
    ) -> "FewShotHead":
        """Build the head from a support set; choose its hyper-parameters on validation, if there is one.

        Args:
            features: `[N, D]` with unit rows, or `[A, N, D]` raw encoder outputs of A augmented views.
            labels: `[N]` class indices or class names, any order, any number per class, each class at least once.
            text_weight: `[C, D]` text classifier, unit rows.
            class_names: C names.
            validation: features `[V, D]` and labels; None leaves alpha, beta and gamma as they are.
            protocol: "honest": at most min(shots, 4) validation images per class. "paper": any number, as the
                published code does with thousands; the choice is kept in `fit_report`.
            grid: what to choose among.

        Raises:
            ValueError, TypeError: see `checks_ape`; also when validation and support share images.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol={protocol!r} is unknown: choose one of {', '.join(PROTOCOLS)}.")
        text = as_features(text_weight, None, "text_weight")
        views = as_features(features, text.shape[1], "features", views=True)
        self.class_names = [str(name) for name in class_names] if class_names is not None else []
        if self.class_names and len(self.class_names) != len(text):
            raise ValueError(f"text_weight has {len(text)} rows, but there are {len(self.class_names)} class names.")
        self._answers_are_names = _are_names(labels)
        labels = as_labels(labels, self.class_names, len(text), views.shape[-2], "the support set")
        check_every_class_has_images(labels, self.class_names, len(text))
        keys = ops.cache_keys(views) if views.ndim == 3 else views
        self.text_weight = _frozen(text)
        shots = torch.bincount(labels, minlength=len(text))
        self.fit_report = {
            "head": self.name,
            "protocol": protocol if validation is not None else "no validation",
            "shots": [int(shots.min()), int(shots.max())],
            "views": len(views) if views.ndim == 3 else 1,
            "warnings": [],
        }
        self._build(F.normalize(views, dim=-1) if views.ndim == 3 else views[None], keys, labels)
        if validation is not None:
            queries = as_features(validation[0], text.shape[1], "validation features")
            targets = as_labels(validation[1], self.class_names, len(text), len(queries), "the validation set")
            self._check_validation(queries, targets, keys, labels, protocol)
            self.search(queries, targets, grid)
        elif self.searched:
            self._warn(
                f"no validation set: {', '.join(self.searched)} stay at "
                f"{[round(getattr(self, name), 4) for name in self.searched]}."
            )
        self._warn_of_saturation(keys, labels)
        return self

    def predict(self, features: Any) -> np.ndarray:
        """Classes `[B]`: names if the head was fitted on names, else indices."""
        found = self.decision_function(features).argmax(1)
        return np.asarray(self.class_names)[found] if self._answers_are_names else found

    def predict_proba(self, features: Any) -> np.ndarray:
        """Softmax of the logits, `[B, C]`."""
        return torch.from_numpy(self.decision_function(features)).softmax(-1).numpy()

    @torch.no_grad()
    def decision_function(self, features: Any) -> np.ndarray:
        """Logits `[B, C]`."""
        self._check_fitted()
        rows = as_features(features, self.text_weight.shape[1], "features")
        return self(rows.to(self.text_weight.device)).float().cpu().numpy()

    def score(self, features: Any, labels: Any, *, allow_test_selection: bool = False) -> float:
        """Share of right answers.

        Raises:
            ValueError: these are the images on which the hyper-parameters were chosen (`allow_test_selection=True`
                says that you know).
        """
        logits = self.decision_function(features)
        rows = as_features(features, self.text_weight.shape[1], "features")
        chosen_on = (self.fit_report or {}).get("validation_digest")
        if chosen_on == set_digest(row_hashes(rows)) and not allow_test_selection:
            raise ValueError(
                "this is the validation set, on which the hyper-parameters were chosen: its accuracy is too good. "
                "Score on other images, or pass allow_test_selection=True."
            )
        targets = as_labels(labels, self.class_names, self.classes, len(logits), "the test set")
        return float((logits.argmax(1) == targets.numpy()).mean())

    def add_classes(self, text_weight: Any, class_names: Sequence[str] = ()) -> None:
        """Append classes known by their texts alone; the logits of the others stay as they are.

        Args:
            text_weight: `[new, D]`, unit rows.
            class_names: their names; needed if the others have names.
        """
        self._check_fitted()
        new = as_features(text_weight, self.text_weight.shape[1], "text_weight of the new classes")
        names = [*self.class_names, *class_names]
        if self.class_names and (len(class_names) != len(new) or len(set(names)) != len(names)):
            raise ValueError(f"expected {len(new)} new, distinct class names, got {list(class_names)}.")
        self.class_names = names if self.class_names else []
        self.text_weight = _frozen(torch.cat([self.text_weight, new.to(self.text_weight)]))
        self._add_empty_classes(len(new))

    # what a head defines

    def _build(self, views: Tensor, keys: Tensor, labels: Tensor) -> None:
        """Make the head's tensors from unit views `[A, N, D]`, keys `[N, D]` and labels `[N]`."""

    def search(self, queries: Tensor, targets: Tensor, grid: SearchGrid | None = None) -> None:
        """Set the searched hyper-parameters to the first best point of the grid, and report."""
        counts = (self(queries).argmax(1) == targets).sum()
        self._report(counts, queries)

    def _add_empty_classes(self, count: int) -> None:
        """Make room for classes without images."""

    # shared parts

    def _check_fitted(self) -> None:
        if not self.classes:
            raise RuntimeError(f"{type(self).__name__} has no classes yet: call fit first.")

    def _check_validation(self, queries: Tensor, targets: Tensor, keys: Tensor, labels: Tensor, protocol: str) -> None:
        hashes = row_hashes(queries)
        shared = hashes & row_hashes(keys)
        if shared:
            raise ValueError(
                f"validation and support share {len(shared)} images: a cache recognises its own images, so every "
                "hyper-parameter would look perfect. Keep the sets disjoint."
            )
        if protocol == "honest":
            check_honest_validation(targets, labels, self.classes)
        self.fit_report |= {"validation_images": len(queries), "validation_digest": set_digest(hashes)}

    def _choose(self, counts: Tensor, axes: dict[str, Sequence[float]], queries: Tensor) -> None:
        """Take the first maximum of `counts`, whose dimensions are `axes`; warn where alpha ends on an edge."""
        for (name, axis), i in zip(axes.items(), first_maximum(counts), strict=True):
            setattr(self, name, float(axis[i]))
            self.fit_report[name] = float(axis[i])
            if name == "alpha" and len(axis) > 1 and i in (0, len(axis) - 1):
                edge, meaning = (
                    ("lower", "the images hardly help, or the grid starts too high")
                    if i == 0
                    else ("upper", "the best value may lie beyond it: give a grid that reaches further")
                )
                self._warn(f"alpha={axis[i]:.4g} is the {edge} edge of its grid: {meaning}.")
        self._report(counts.max(), queries)

    def _report(self, right: Tensor, queries: Tensor) -> None:
        self.fit_report["validation_accuracy"] = int(right) / len(queries)
        if int(right) == len(queries):
            self._warn(
                f"all {len(queries)} validation images are classified right at several settings: validation cannot "
                "tell them apart; take a larger or harder validation set."
            )

    @torch.no_grad()
    def _warn_of_saturation(self, keys: Tensor, labels: Tensor) -> None:
        accuracy = (self(keys).argmax(1) == labels).double().mean().item()
        self.fit_report["support_accuracy"] = accuracy
        if accuracy == 1.0:
            self._warn(
                f"all {len(keys)} support images are classified right (accuracy saturates at 100%): a cache holds its "
                "own images, so this says nothing about others, and training on them has almost no loss to learn from."
            )

    def _warn(self, message: str) -> None:
        self.fit_report["warnings"].append(message)
        logger.warning(f"{type(self).__name__}: {message}")


class ZeroShotHead(FewShotHead):
    """The text classifier alone; images of the support set are not used."""


class TipAdapterHead(FewShotHead):
    """Tip-Adapter (2207.09519): affinities to the cached images, summed per class."""

    name = "tip"
    searched = ("beta", "alpha")

    def _allocate(self, classes: int, dim: int, cache_size: int) -> None:
        self.cache_keys = _frozen(torch.zeros(cache_size, dim))
        self.register_buffer("cache_labels", cyclic(cache_size, classes))

    def _build(self, views: Tensor, keys: Tensor, labels: Tensor) -> None:
        self.cache_keys, self.cache_labels = _frozen(keys), labels

    def image_logits(self, features: Tensor) -> Tensor:
        return self.alpha * ops.cache_term(features, self.cache_keys, self.cache_labels, self.classes, beta=self.beta)

    @torch.no_grad()
    def search(self, queries: Tensor, targets: Tensor, grid: SearchGrid | None = None) -> None:
        grid = grid or SearchGrid()
        counts = correct_on_grid(
            queries,
            self.cache_keys,
            self.cache_labels,
            self.text_logits(queries),
            targets,
            betas=grid.betas,
            alphas=grid.alphas,
        )
        self._choose(counts[..., 0], {"beta": grid.betas, "alpha": grid.alphas}, queries)


class TipAdapterFHead(TipAdapterHead):
    """Tip-Adapter-F: Tip-Adapter whose keys are trained; equal to it until `training.few_shot` has done so."""

    name = "tip_f"
    searched = ()  # not by fit, whose keys are about to change, but after training

    def _build(self, views: Tensor, keys: Tensor, labels: Tensor) -> None:
        super()._build(views, keys, labels)
        self.cache_keys.requires_grad_()


class APEHead(FewShotHead):
    """APE (2304.01195), training-free: affinities on refined channels, weighted by the difficulty of each image.

    `num_channels` is Q; 0 takes floor(700 D / 1024), D means no selection.
    """

    name = "ape"
    searched = ("beta", "alpha", "gamma")

    def _allocate(self, classes: int, dim: int, cache_size: int) -> None:
        self.cache_keys = _frozen(torch.zeros(cache_size, dim))
        self.cache_values = _frozen(torch.ones(cache_size))
        self.register_buffer("cache_labels", cyclic(cache_size, classes))
        self.register_buffer("channel_indices", cyclic(self.num_channels, dim))

    def _build(self, views: Tensor, keys: Tensor, labels: Tensor) -> None:
        self.cache_keys, self.cache_labels = _frozen(keys), labels
        criterion = ops.channel_criterion(self.text_weight, keys, labels, weights=self.channel_weights)
        self.num_channels = self.num_channels or default_channels(keys.shape[1])
        self.channel_indices = ops.select_channels(self._rank(criterion), self.num_channels)
        self._weigh_keys()

    def _rank(self, criterion: Tensor) -> Tensor:
        """What channels are chosen by; ablations put something else in its place."""
        return criterion

    def difficulty(self) -> Tensor:
        """Of every key, in bits, `[N]`; see `ops.cache_classifier.key_difficulty`."""
        keys, text = (ops.refine(rows, self.channel_indices) for rows in (self.cache_keys, self.text_weight))
        return ops.key_difficulty(keys, self.cache_labels, text)

    @torch.no_grad()
    def _weigh_keys(self) -> None:
        self.cache_values = _frozen(torch.exp(self.gamma * self.difficulty()))

    def image_logits(self, features: Tensor) -> Tensor:
        return self.alpha * ops.cache_term(
            ops.refine(features, self.channel_indices),
            ops.refine(self.cache_keys, self.channel_indices),
            self.cache_labels,
            self.classes,
            beta=self.beta,
            values=self.cache_values,
        )

    @torch.no_grad()
    def search(self, queries: Tensor, targets: Tensor, grid: SearchGrid | None = None) -> None:
        grid = grid or SearchGrid()
        counts = correct_on_grid(
            ops.refine(queries, self.channel_indices),
            ops.refine(self.cache_keys, self.channel_indices),
            self.cache_labels,
            self.text_logits(queries),
            targets,
            betas=grid.betas,
            alphas=grid.alphas,
            gammas=grid.gammas,
            difficulty=self.difficulty(),
        )
        self._choose(counts, {"beta": grid.betas, "alpha": grid.alphas, "gamma": grid.gammas}, queries)
        self._weigh_keys()


class GDAHead(FewShotHead):
    """Gaussian discriminant analysis beside the text classifier (2402.04087); a linear head, no cache."""

    name = "gda"
    searched = ("alpha",)

    def _allocate(self, classes: int, dim: int, cache_size: int) -> None:
        self.image_weight = _frozen(torch.zeros(classes, dim))
        self.image_bias = _frozen(torch.zeros(classes))

    def _build(self, views: Tensor, keys: Tensor, labels: Tensor) -> None:
        weight, bias = ops.gda_classifier(views.flatten(0, 1), labels.repeat(len(views)), self.classes)
        self.image_weight, self.image_bias = _frozen(weight), _frozen(bias)

    def image_logits(self, features: Tensor) -> Tensor:
        return self.alpha * (features @ self.image_weight.T + self.image_bias)

    @torch.no_grad()
    def search(self, queries: Tensor, targets: Tensor, grid: SearchGrid | None = None) -> None:
        axis = (grid or SearchGrid()).gda_alphas
        slopes = (queries @ self.image_weight.T + self.image_bias).T[:, :, None]
        counts = correct_on_lines(self.text_logits(queries), slopes, targets, torch.tensor(axis))
        self._choose(counts[:, 0], {"alpha": axis}, queries)

    def _add_empty_classes(self, count: int) -> None:
        # an absolute level means nothing here, so a class without images gets the mean of the others
        for name in ("image_weight", "image_bias"):
            rows = getattr(self, name)
            setattr(self, name, _frozen(torch.cat([rows, rows.mean(0, keepdim=True).expand(count, *rows.shape[1:])])))


class ProKeRHead(FewShotHead):
    """ProKeR (2501.11175): kernel ridge regression of what the text classifier leaves over.

    The published logits are not scaled; ours are multiplied by `text_scale`, so that probabilities mean something.
    """

    name = "proker"
    searched = ("beta", "strength")

    def _allocate(self, classes: int, dim: int, cache_size: int) -> None:
        self.cache_keys = _frozen(torch.zeros(cache_size, dim))
        self.cache_values = _frozen(torch.zeros(cache_size, classes))
        self.register_buffer("cache_labels", cyclic(cache_size, classes))

    def _build(self, views: Tensor, keys: Tensor, labels: Tensor) -> None:
        self.cache_keys, self.cache_labels = _frozen(keys), labels
        self._solve()

    @torch.no_grad()
    def _solve(self) -> None:
        options = {"beta": self.beta, "strength": self.strength}
        self.cache_values = _frozen(
            ops.proker_coefficients(self.cache_keys, self.cache_labels, self.text_weight, **options)
        )

    def image_logits(self, features: Tensor) -> Tensor:
        options = {"beta": self.beta, "values": self.cache_values}
        return self.text_scale * ops.cache_term(features, self.cache_keys, self.cache_labels, self.classes, **options)

    @torch.no_grad()
    def search(self, queries: Tensor, targets: Tensor, grid: SearchGrid | None = None) -> None:
        grid = grid or SearchGrid()
        counts = torch.zeros(len(grid.betas), len(grid.strengths), dtype=torch.int64)
        for i, self.beta in enumerate(grid.betas):
            for j, self.strength in enumerate(grid.strengths):
                self._solve()
                counts[i, j] = (self(queries).argmax(1) == targets).sum()
        self._choose(counts, {"beta": grid.betas, "strength": grid.strengths}, queries)
        self._solve()

    def _add_empty_classes(self, count: int) -> None:
        self.cache_values = _frozen(F.pad(self.cache_values, (0, count)))


HEADS = {head.name: head for head in (ZeroShotHead, TipAdapterHead, TipAdapterFHead, APEHead, GDAHead, ProKeRHead)}


def default_channels(dim: int, of_1024: int = 700) -> int:
    """Channels to keep of D, from the published number for D = 1024: floor(Q D / 1024)."""
    return max(1, of_1024 * dim // 1024)


def cyclic(count: int, end: int) -> Tensor:
    """0, 1, ..., end - 1, 0, 1, ...: valid indices before real ones are loaded, `[count]` int64."""
    return torch.arange(count) % max(end, 1)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def _are_names(labels: Any) -> bool:
    return len(labels) > 0 and isinstance(labels[0], str)


__all__ = [
    "HEADS",
    "APEHead",
    "FewShotHead",
    "GDAHead",
    "ProKeRHead",
    "SearchGrid",
    "TipAdapterFHead",
    "TipAdapterHead",
    "ZeroShotHead",
]
