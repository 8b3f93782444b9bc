"""Disjoint samples to fit on, and to decide on."""

from __future__ import annotations

from onnxprune.samples.dataset import Dataset

# Of the samples to fit on; the samples to decide on are one more.
FIT_FOLDS = 3


def folds(fit: Dataset, decide: Dataset, most: int) -> list[Dataset]:
    """Folds of at most so many samples in all; the last is the one to decide on.

    Every fold but the last has every third sample to fit on.
    """
    unit = fit.batch or 1
    count = min(fit.n, most * FIT_FOLDS // (FIT_FOLDS + 1)) // unit
    parts = [
        [at * unit + i for at in range(first, count, FIT_FOLDS) for i in range(unit)]
        for first in range(min(FIT_FOLDS, count))
    ]
    last = decide.subset(range(min(decide.n, most // (FIT_FOLDS + 1))))
    return [*(fit.subset(part) for part in parts), last]
