"""Seeded randomness: item `i` of epoch `e` depends only on (seed, e, i), whatever the worker, rank or restart."""

import numpy as np


def item_generator(seed: int, epoch: int, index: int, *extra: int) -> np.random.Generator:
    """A generator that belongs to one item of one epoch.

    Args:
        seed: the run's seed, >= 0.
        epoch: epoch number, >= 0.
        index: row of the data set, >= 0.
        extra: further non-negative integers that separate streams of the same item (e.g. 0 = image, 1 = text).

    Returns:
        A numpy generator; equal arguments give equal streams on every machine.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, index, *extra])))
