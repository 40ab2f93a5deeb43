"""Scores of Winoground from similarities alone: the text, image and group score of pairs of texts and images."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .mmvp_scores import PairScores, first_image_wins, mcnemar, score_pairs

# what four independent similarities reach: two choices of two right, and both of the diagonal above both others
CHANCES = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


@dataclass(frozen=True)
class FineGrainedScores:
    """Which pairs were right, by Winoground's three scores and by MMVP's.

    Args:
        logits: `[P, 2, 2]`, pair, text, image; text t is true of image t alone.
        patterns: the kind of each pair, length P.

    Raises:
        ValueError: see `first_image_wins`; another number of patterns.
    """

    logits: Tensor
    patterns: tuple[str, ...]

    def __post_init__(self):
        first_image_wins(self.logits)
        if len(self.logits) != len(self.patterns):
            raise ValueError(f"{len(self.logits)} pairs but {len(self.patterns)} patterns.")

    @cached_property
    def text(self) -> PairScores:
        """Each image is more similar to its own text; a tie is wrong."""
        return self._beats(other=self.logits.flip(1))

    @cached_property
    def image(self) -> PairScores:
        """Each text is more similar to its own image; a tie is wrong."""
        return self._beats(other=self.logits.flip(2))

    @cached_property
    def group(self) -> PairScores:
        """Both of the above."""
        return PairScores(self.text.correct & self.image.correct, self.patterns)

    @cached_property
    def mmvp(self) -> PairScores:
        """MMVP's score: that of images, but a tie goes to the second image."""
        truth = torch.tensor([[True, False]]).expand(len(self.logits), 2)
        return score_pairs(self.logits, truth, self.patterns)

    def _beats(self, other: Tensor) -> PairScores:
        own, false = (logits.diagonal(dim1=1, dim2=2) for logits in (self.logits, other))  # [P, 2]
        return PairScores((own > false).all(1), self.patterns)


def fine_grained_table(scores: dict[str, FineGrainedScores]) -> str:
    """Markdown: a row per kind with text, image and group score in percent, a column per model; below it, how each
    later model differs from the first in pairs that are right in both ways.

    Args:
        scores: name of a model -> its scores, all of the same pairs.

    Raises:
        ValueError: other pairs.
    """
    (first, reference), *others = scores.items()
    if apart := [name for name, one in others if one.patterns != reference.patterns]:
        raise ValueError(f"{', '.join(apart)} and {first} were scored on different pairs.")
    lines = [
        "| text / image / group | pairs | " + " | ".join(scores) + " |",
        "| --- | ---: |" + " ---: |" * len(scores),
    ]
    for pattern, (_, pairs) in reference.group.counts().items():
        cells = (_cell(*(getattr(one, name).shares()[pattern] for name in CHANCES)) for one in scores.values())
        lines.append(f"| {pattern} | {pairs} | " + " | ".join(cells) + " |")
    averages = (_cell(*(getattr(one, name).average() for name in CHANCES)) for one in scores.values())
    lines.append(f"| average | {len(reference.patterns)} | " + " | ".join(averages) + " |")
    lines += ["| chance | | " + " | ".join([_cell(*CHANCES.values())] * len(scores)) + " |", ""]
    for name, one in others:
        won, lost, p = mcnemar(reference.group.correct, one.group.correct)
        lines.append(f"{name} against {first}, group: {won} pairs won, {lost} lost, McNemar p = {p:.3f}.")
    return "\n".join(lines).rstrip()


def _cell(*shares: float) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)
