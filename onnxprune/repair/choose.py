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
from onnxprune.readers.stats import Array, FloatArray, Moments, moments
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
        """The plan to take, and the mean errors of all.

        That is the one with the least error if it can be told from the first, else the first: by
        more than the standard error of the difference, sample by sample. Few samples tell plans
        apart by a handful of hard ones.

        Args:
            plans: by name, shape (channels,): what stays. Of equal ones the first is tried.
        """
        known: dict[bytes, FloatArray] = {}
        errors = {}
        for name, alive in plans.items():
            key = alive.tobytes()
            if key not in known:
                known[key] = self._errors(alive)
            errors[name] = known[key]
        first, *_ = errors
        means = {name: float(found.mean()) for name, found in errors.items()}
        finite = [name for name, mean in means.items() if np.isfinite(mean)]
        least = min(finite or means, key=lambda name: means[name])
        return (least if _is_less(errors[least], errors[first]) else first), means

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

    def _errors(self, alive: BoolArray) -> FloatArray:
        """Of each sample that it was not repaired on, as long as two folds are left for that.

        Of a small model each fold is held out in turn, of a larger one the last.
        """
        if len(self.folds) <= LEAST_FOLDS:
            return self._held_out(alive, len(self.folds))
        samples = sum(fold.n for fold in self.folds)
        is_small = self.original.cost.macs * samples <= SMALL_MACS
        turns = range(len(self.folds)) if is_small else [len(self.folds) - 1]
        return np.concatenate([self._held_out(alive, turn) for turn in turns])

    def _held_out(self, alive: BoolArray, turn: int) -> FloatArray:
        """The errors on one fold, repaired on the others; on the last, repaired on all, if there
        are no more."""
        fit = [fold for at, fold in enumerate(self.folds) if at != turn]
        _, model = self._made(alive, fit, copies=self.copies)
        held = self.folds[min(turn, len(self.folds) - 1)]
        return output_errors(self.original.model, model, held, self.custom_ops)


def _is_less(errors: FloatArray, others: FloatArray) -> bool:
    """True where the mean of some errors is less than that of others, beyond chance."""
    if not np.isfinite(others.mean()):
        return bool(np.isfinite(errors.mean()))
    saved = others - errors
    return bool(saved.mean() * np.sqrt(len(saved)) > saved.std())


def output_errors(
    original: Model, other: Model, data: Dataset, custom_ops: Sequence[str] = ()
) -> FloatArray:
    """How far a model's outputs are from the original's: of each sample, mean over outputs.

    The Kullback-Leibler divergence in nats of distributions and class scores; of other outputs the
    squared difference relative to their variance. Integers are not compared, but what is behind
    them, where nothing else is there. Outputs count alike. Returns: shape (samples,); 0 where
    nothing can be compared.
    """
    for names in (original.output_names, witnesses(original)):
        known = [name for name in names if name in original.producer and name in other.producer]
        parts = batches([data])
        walks = [Walk(parts, [set()], custom_ops).step(m, known) for m in (original, other)]
        found = [Distance(name) for name in known]
        for batch, ours, theirs in zip(parts, *walks, strict=True):
            for one in found:
                one.add(ours[one.name], theirs[one.name], len(batch.samples))
        if errors := [one.errors for one in found if one.scale() > 0]:
            made: FloatArray = np.mean(errors, axis=0)
            return made
    return np.zeros(data.n)


class Distance:
    """Between two models at one output, gathered batch by batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind: Kind | None = None
        self._errors: list[FloatArray] = []
        self._rows = 0
        self._seen: dict[int, tuple[FloatArray, Moments]] = {}
        """By the length of the last axis: where it is counted from, and moments of rows."""

    def add(self, ours: Array, theirs: Array, samples: int) -> None:
        """A batch of the original and of the other."""
        if ours.dtype.kind != "f" or ours.shape != theirs.shape or not ours.size:
            return
        self.kind = self.kind or kind_of(ours, self.name)
        if self.kind in DISTRIBUTIONS:
            found = divergences(self.kind, ours, theirs)
        else:
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            columns = a.shape[-1] if a.ndim > 1 or a.size != samples else 1
            self._see(a.reshape(-1, columns))
            found = ((b - a) ** 2).reshape(len(a) if a.ndim else 1, -1).sum(axis=1)
        self._rows += len(found)
        self._errors.append(_shared(found, samples))

    def _see(self, rows: FloatArray) -> None:
        """Rows of the original: sums of what is large and nearly constant would cancel."""
        columns = rows.shape[1]
        pivot = self._seen[columns][0] if columns in self._seen else rows.mean(axis=0)
        own = moments(rows - pivot, rows - pivot, is_full=False)
        self._seen[columns] = pivot, self._seen[columns][1] + own if columns in self._seen else own

    def scale(self) -> float:
        """What errors are relative to, summed over samples; 0 where nothing can be compared."""
        if self.kind in DISTRIBUTIONS:
            return float(self._rows)
        return sum(float(own.n * own.variance_t.sum()) for _, own in self._seen.values())

    @property
    def errors(self) -> FloatArray:
        """Of each sample, shape (samples,)."""
        found = np.concatenate(self._errors)
        return found * (len(found) / self.scale())


def _shared(rows: FloatArray, samples: int) -> FloatArray:
    """Sums over the rows of each sample; where rows are none of a sample's, in equal parts."""
    if len(rows) % samples:
        return np.full(samples, rows.sum() / samples)
    made: FloatArray = rows.reshape(samples, -1).sum(axis=1)
    return made
