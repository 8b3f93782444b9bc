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
from onnxprune.samples.metrics import Kind, kind_of
from onnxprune.verification.compare import DISTRIBUTIONS, divergences

# With fewer folds there is none to spare: one to fit on, and one to decide on.
LEAST_FOLDS = 2
# MACs of a model times samples, up to which that is a matter of seconds.
SMALL_MACS = 1e9


@dataclass(frozen=True, eq=False)
class Trials:
    """A model and the samples that plans for it are tried on."""

    original: Subject
    dims: Dims
    folds: Sequence[Dataset]
    seed: int = 0
    custom_ops: Sequence[str] = ()
    copies: bool = False
    """Plans are tried with copies of small shared weights."""

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
        """What a plan leaves, as it was cut and repaired on all samples, without copies.

        Args:
            alive: shape (channels,).
        """
        return self._made(alive, self.folds, copies=False)

    def _made(
        self, alive: BoolArray, folds: Sequence[Dataset], *, copies: bool
    ) -> tuple[Cut, Model]:
        subject = self.original
        thin = cut(
            subject.model, self.dims, subject.sizes, subject.shapes, ~alive, load_rules(), {}
        )
        model, _ = repaired(
            subject, thin, self.dims, alive, folds, self.seed, self.custom_ops, copies=copies
        )
        return thin, model

    def _error(self, alive: BoolArray) -> float:
        """On samples that it is not repaired on, as long as two folds are left for that.

        Few samples tell plans apart by a handful of hard ones: of a small model, each fold is held
        out in turn, of a larger one the last.
        """
        if len(self.folds) <= LEAST_FOLDS:
            return self._held_out(alive, len(self.folds))
        samples = sum(fold.n for fold in self.folds)
        is_small = self.original.cost.macs * samples <= SMALL_MACS
        turns = range(len(self.folds)) if is_small else [len(self.folds) - 1]
        return float(np.mean([self._held_out(alive, turn) for turn in turns]))

    def _held_out(self, alive: BoolArray, turn: int) -> float:
        """The error on one fold, repaired on the others; on the last, repaired on all, if there
        are no more."""
        fit = [fold for at, fold in enumerate(self.folds) if at != turn]
        _, model = self._made(alive, fit, copies=self.copies)
        held = self.folds[min(turn, len(self.folds) - 1)]
        return output_error(self.original.model, model, held, self.custom_ops)


def output_error(
    original: Model, other: Model, data: Dataset, custom_ops: Sequence[str] = ()
) -> float:
    """How far a model's outputs are from the original's, mean over outputs.

    The Kullback-Leibler divergence in nats of distributions and class scores; of other outputs the
    squared difference relative to their variance. Integers are not compared, but what is behind
    them, where nothing else is there. Outputs count alike. Returns: 0 where nothing can be
    compared.
    """
    for names in (original.output_names, witnesses(original)):
        known = [name for name in names if name in original.producer and name in other.producer]
        parts = batches([data])
        walks = [Walk(parts, [set()], custom_ops).step(m, known) for m in (original, other)]
        found = [Distance(name) for name in known]
        for ours, theirs in zip(*walks, strict=True):
            for one in found:
                one.add(ours[one.name], theirs[one.name])
        if errors := [one.mean for one in found if one.mean is not None]:
            return float(np.mean(errors))
    return 0.0


@dataclass(eq=False)
class Distance:
    """Between two models at one output, added up batch by batch."""

    name: str
    kind: Kind | None = None
    error: float = 0.0
    """Sum over samples."""
    scale: float = 0.0

    def add(self, ours: Array, theirs: Array) -> None:
        """A batch of the original and of the other."""
        if ours.dtype.kind != "f" or ours.shape != theirs.shape or not ours.size:
            return
        self.kind = self.kind or kind_of(ours, self.name)
        if self.kind in DISTRIBUTIONS:
            found = divergences(self.kind, ours, theirs)
            self.error += float(found.sum())
            self.scale += len(found)
            return
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        spread = a - a.mean(axis=tuple(range(a.ndim - 1)), keepdims=True)
        self.error += float(((b - a) ** 2).sum())
        self.scale += float((spread**2).sum())

    @property
    def mean(self) -> float | None:
        """None where it tells nothing."""
        return self.error / self.scale if self.scale > 0 else None
