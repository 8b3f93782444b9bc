"""Which of several plans costs the outputs least, each cut, repaired and run on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.cutting.cut import Cut, cut
from onnxprune.cutting.oracle import witnesses
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.manager import Subject
from onnxprune.model.graph import Model
from onnxprune.readers.frontier import Walk, batches
from onnxprune.readers.stats import Array
from onnxprune.repair.sweep import repaired
from onnxprune.rules import load_rules
from onnxprune.samples.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Trials:
    """A model and the samples that plans for it are tried on."""

    original: Subject
    dims: Dims
    folds: Sequence[Dataset]
    seed: int = 0
    custom_ops: Sequence[str] = ()

    def best(self, plans: Mapping[str, BoolArray]) -> tuple[str, dict[str, float]]:
        """The plan with the least error, and the errors of all.

        Args:
            plans: by name, shape (channels,): what stays. Of equal ones the first is tried.
        """
        known: dict[bytes, float] = {}
        errors = {}
        for name, alive in plans.items():
            key = alive.tobytes()
            if key not in known:
                known[key] = self._error(alive)
            errors[name] = known[key]
        finite = [name for name, error in errors.items() if np.isfinite(error)]
        return min(finite or errors, key=lambda name: errors[name]), errors

    def made(self, alive: BoolArray) -> tuple[Cut, Model]:
        """What a plan leaves, as it was cut and repaired. Args: alive: shape (channels,)."""
        subject = self.original
        thin = cut(
            subject.model, self.dims, subject.sizes, subject.shapes, ~alive, load_rules(), {}
        )
        model, _ = repaired(
            subject, thin, self.dims, alive, self.folds, self.seed, self.custom_ops
        )
        return thin, model

    def _error(self, alive: BoolArray) -> float:
        _, model = self.made(alive)
        return output_error(self.original.model, model, self.folds[-1], self.custom_ops)


def output_error(
    original: Model, other: Model, data: Dataset, custom_ops: Sequence[str] = ()
) -> float:
    """Squared difference of the outputs relative to their variance, mean over outputs.

    A softmax or arg max at the end is looked through; integers are not compared. Outputs count
    alike. Returns: 0 where nothing can be compared.
    """
    names = [name for name in witnesses(original) if name in other.producer]
    known = batches([data])
    walks = [Walk(known, [set()], custom_ops).step(m, names) for m in (original, other)]
    sums = np.zeros((len(names), 2))
    for ours, theirs in zip(*walks, strict=True):
        sums += [_squares(ours[name], theirs[name]) for name in names]
    tells = sums[:, 1] > 0
    return float((sums[tells, 0] / sums[tells, 1]).mean()) if tells.any() else 0.0


def _squares(ours: Array, theirs: Array) -> tuple[float, float]:
    """Squared difference, and squared distance from the mean over all but the last axis."""
    if ours.dtype.kind != "f" or ours.shape != theirs.shape:
        return 0.0, 0.0
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    spread = a - a.mean(axis=tuple(range(a.ndim - 1)), keepdims=True)
    return float(((b - a) ** 2).sum()), float((spread**2).sum())
