"""Scores of MMVP-VLM from similarities alone: pairs of texts and pairs of images, two right out of two count."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

CHANCE = 0.25  # two independent choices between two images


@dataclass(frozen=True)
class PairScores:
    """Which pairs were right, and under which pattern they stand.

    Args:
        correct: bool `[P]`.
        patterns: the pattern of each pair, length P.
    """

    correct: Tensor
    patterns: tuple[str, ...]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Pattern -> (pairs right, pairs), in order of first appearance."""
        found: dict[str, tuple[int, int]] = {}
        for right, pattern in zip(self.correct.tolist(), self.patterns, strict=True):
            before = found.get(pattern, (0, 0))
            found[pattern] = (before[0] + right, before[1] + 1)
        return found

    def shares(self) -> dict[str, float]:
        """Pattern -> share of its pairs that are right, in [0, 1]."""
        return {pattern: right / pairs for pattern, (right, pairs) in self.counts().items()}

    def average(self) -> float:
        """The plain mean of the patterns' shares."""
        shares = self.shares()
        return sum(shares.values()) / len(shares)


def first_image_wins(logits_per_text: Tensor) -> Tensor:
    """Whether each text chooses the pair's first image: its softmax is above 0.5; a tie goes to the second image.

    Args:
        logits_per_text: `[P, 2, 2]`, pair, text, image.

    Returns:
        bool `[P, 2]`.

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    if logits_per_text.ndim != 3 or logits_per_text.shape[1:] != (2, 2):
        raise ValueError(f"expected similarities [pairs, 2 texts, 2 images], got {list(logits_per_text.shape)}.")
    wrong = (~logits_per_text.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"the similarities of {len(wrong)} pairs are NaN or infinite, the first is {wrong[0]}.")
    return logits_per_text.softmax(-1)[..., 0] > 0.5


def score_pairs(logits_per_text: Tensor, first_is_true: Tensor, patterns: Sequence[str]) -> PairScores:
    """A pair is right when both of its texts choose their image.

    Args:
        logits_per_text: `[P, 2, 2]`, see `first_image_wins`.
        first_is_true: bool `[P, 2]`, whether the first image is each text's own (published: its question id is odd).
        patterns: length P.
    """
    correct = (first_image_wins(logits_per_text) == first_is_true.bool()).all(1)
    if len(patterns) != len(correct):
        raise ValueError(f"{len(correct)} pairs but {len(patterns)} patterns.")
    return PairScores(correct, tuple(patterns))


def mcnemar(before: Tensor, after: Tensor) -> tuple[int, int, float]:
    """Pairs won, pairs lost, and the two-sided p-value that as many would be by chance (exact binomial test).

    Args:
        before, after: bool `[P]`, the same pairs.
    """
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    changed = won + lost
    tail = sum(comb(changed, k) for k in range(min(won, lost) + 1)) / 2**changed
    return won, lost, min(1.0, 2 * tail)


def comparison_table(scores: dict[str, PairScores]) -> str:
    """Markdown: a row per pattern and the average, a column per model, pairs right of pairs in percent; below it, how
    each later model differs from the first pair by pair.

    Args:
        scores: name of a model -> its scores, all of the same pairs.
    """
    (first, reference), *others = scores.items()
    if apart := [name for name, one in others if one.patterns != reference.patterns]:
        raise ValueError(f"{', '.join(apart)} and {first} were scored on different pairs.")
    lines = ["| pattern | pairs | " + " | ".join(scores) + " |", "| --- | ---: |" + " ---: |" * len(scores)]
    for pattern, (_, pairs) in reference.counts().items():
        cells = (f"{100 * one.shares()[pattern]:.1f} ({one.counts()[pattern][0]})" for one in scores.values())
        lines.append(f"| {pattern} | {pairs} | " + " | ".join(cells) + " |")
    averages = (f"{100 * one.average():.1f} ({int(one.correct.sum())})" for one in scores.values())
    lines += [f"| average | {len(reference.correct)} | " + " | ".join(averages) + " |", ""]
    for name, one in others:
        won, lost, p = mcnemar(reference.correct, one.correct)
        lines.append(f"{name} against {first}: {won} pairs won, {lost} lost, McNemar p = {p:.3f}.")
    return "\n".join(lines).rstrip()


def logits_of_pairs(texts: Tensor, images: Tensor) -> Tensor:
    """`[P, 2, 2]` similarities of each pair's texts and images.

    Args:
        texts: `[2 P, D]`, L2-normalised, the two of a pair one after the other.
        images: `[2 P, D]`, likewise; of unit length but for a published rule that leaves it alone.
    """
    return torch.einsum("ptd,pid->pti", texts.unflatten(0, (-1, 2)), images.unflatten(0, (-1, 2)))
