"""Solves and rescalings for readers: mathematics only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxprune.readers.stats import FloatArray, Moments, total

# Pulls towards the weights to start from, relative to the mean variance of the inputs: early layers
# want the weakest, the last ones the strongest.
RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
# A channel is not scaled further than that: statistics of few samples exaggerate.
SCALES = (0.6, 2.0)
# Below it a variance is noise, and its inverse a catastrophe.
LEAST_VARIANCE = 1e-6
# Folds that are held out in turn to choose the pull, by the number of inputs: wide readers cost.
TURNS = ((256, 4), (1024, 2))
# Outputs that tell the pull; of n times as many, every n-th one is looked at.
OUTPUTS = 1024
# Relative error of a reader that was not touched: rounding.
EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class Affine:
    """What a reader computes: `weights` times its inputs plus `bias`.

    `weights` has shape (outputs, inputs), or (channels,) where each channel is scaled alone.
    """

    weights: FloatArray
    bias: FloatArray

    def mean(self, seen: Moments) -> FloatArray:
        """Mean of each output, without the bias."""
        return self.weights @ seen.mean_a if seen.is_full else self.weights * seen.mean_a

    def variance(self, seen: Moments) -> FloatArray:
        """Variance of each output."""
        found: FloatArray = (
            np.einsum("ok,ok->o", self.weights @ seen.covariance, self.weights)
            if seen.is_full
            else self.weights**2 * seen.covariance
        )
        return np.maximum(found, 0.0)

    def error(self, seen: Moments) -> float:
        """Mean squared distance from the targets, summed over outputs."""
        both = (
            np.einsum("ok,ko->o", self.weights, seen.cross)
            if seen.is_full
            else self.weights * seen.cross
        )
        off = self.mean(seen) + self.bias - seen.mean_t
        spread = self.variance(seen) - 2 * both + seen.variance_t
        return float(spread.sum() + (off**2).sum())


@dataclass(frozen=True, eq=False)
class Repair:
    """What was chosen for a reader, and its held-out error before and after."""

    line: Affine
    kind: str
    """`sliced`, `scaled`, `solved`, or `solved and scaled`."""
    before: float
    after: float


def ridge(seen: Moments, start: Affine, pull: float) -> Affine:
    """Least squares with a pull towards other weights.

    Raises: LinAlgError: the inputs do not vary.
    """
    covariance = seen.covariance
    weight = pull * float(covariance.diagonal().mean())
    missing = seen.cross - covariance @ start.weights.T
    covariance[np.diag_indices_from(covariance)] += weight
    factor = cho_factor(covariance.T, lower=True, overwrite_a=True, check_finite=False)
    moved = cho_solve(factor, missing, overwrite_b=True, check_finite=False)
    return _centred(seen, start.weights + moved.T)


def restored(seen: Moments, line: Affine) -> Affine:
    """The line with each output's mean and variance brought to those of its target.

    Least squares shrinks what it cannot predict, and that compounds with depth.
    """
    made, wanted = line.variance(seen), seen.variance_t
    varies = (made > LEAST_VARIANCE) & (wanted > LEAST_VARIANCE)
    ratio = np.divide(wanted, made, out=np.ones_like(made), where=varies)
    scale = np.sqrt(ratio).clip(*SCALES)
    return _centred(seen, line.weights * (scale[:, None] if seen.is_full else scale))


def repair(
    folds: Sequence[Moments],
    sliced: Affine,
    *,
    may_solve: bool,
    joins: bool = False,
    start: Affine | None = None,
) -> Repair:
    """The best of the variants, by the error on samples that none of them was fitted to.

    Restoring the variance costs error here and wins it back in the layers behind: it is taken
    wherever it is still better than the sliced reader. Where nothing else is to be had, a layer
    that lost no inputs gets it in any case: what is off there came from upstream, and grows with
    depth (a mobile net at 0.5 of the MACs: 0.44, with layers left alone that are better alone
    0.35).

    Args:
        folds: moments of disjoint samples; what is handed out is fitted to all of them. The last
            is held out to decide.
        may_solve: the reader lost inputs; else its channels are scaled one by one.
        joins: what it gives joins a stream.
        start: what solving is pulled towards, if not the sliced reader.
    """
    if not all(fold.is_finite for fold in folds):
        return Repair(sliced, "sliced", np.nan, np.nan)
    *rest, decide = folds
    fit, whole = total(rest), total(folds)
    before = sliced.error(decide)
    kept = Repair(sliced, "sliced", before, before)
    if before <= EXACT * decide.variance_t.sum():
        return kept
    if not may_solve:
        line = restored(whole, sliced)
        return Repair(line, "scaled", before, line.error(decide))
    for kind, make in _variants(folds, sliced, start or sliced, joins):
        made = make(whole)
        after = made.error(decide)
        if make(fit).error(decide) < before and after < before:
            return Repair(made, kind, before, after)
    return kept


def refit(folds: Sequence[Moments], sliced: Affine) -> Affine:
    """Least squares with the best pull; the sliced reader where nothing can be solved."""
    is_finite = all(fold.is_finite for fold in folds)
    pull = best_pull(folds, sliced) if is_finite else None
    return sliced if pull is None else ridge(total(folds), sliced, pull)


def _variants(
    folds: Sequence[Moments], sliced: Affine, start: Affine, joins: bool
) -> Iterator[tuple[str, Callable[[Moments], Affine]]]:
    """Ways to repair, the one with the most to win first.

    What joins a stream aims at all that is missing there, errors of others included: its variance
    is no measure then (mobile net at 0.7 of the MACs: 0.72 with it restored, 0.76 without).
    """
    pull = best_pull(folds, start)
    if pull is not None:
        both = ("solved", "solved and scaled") if joins else ("solved and scaled", "solved")
        for kind in both:
            yield kind, partial(_solved, start, pull, is_scaled=kind != "solved")
    yield "scaled", lambda seen: restored(seen, sliced)


def _solved(start: Affine, pull: float, seen: Moments, *, is_scaled: bool) -> Affine:
    line = ridge(seen, start, pull)
    return restored(seen, line) if is_scaled else line


def held_out(inputs: int) -> int:
    """How many folds are held out in turn, the last ones; the others need not be told apart."""
    return next((n for width, n in TURNS if inputs <= width), 1)


def best_pull(folds: Sequence[Moments], start: Affine) -> float | None:
    """The ridge with the least held-out error; None where nothing can be solved.

    Every fold is held out in turn; where that would take long, the last ones or one only.
    """
    inputs, step = len(folds[-1].a), max(len(start.bias) // OUTPUTS, 1)
    folds = [fold.every(step) for fold in folds]
    start = Affine(start.weights[::step], start.bias[::step])
    errors = dict.fromkeys(RIDGES, 0.0)
    for held in range(len(folds))[-held_out(inputs) :]:
        fit = total([fold for at, fold in enumerate(folds) if at != held])
        for pull in RIDGES:
            try:
                errors[pull] += folds[held].n * ridge(fit, start, pull).error(folds[held])
            except LinAlgError:
                errors[pull] = np.inf
    finite = {pull: error for pull, error in errors.items() if np.isfinite(error)}
    return min(finite, key=lambda pull: finite[pull]) if finite else None


def _centred(seen: Moments, weights: FloatArray) -> Affine:
    """The line through the means."""
    line = Affine(weights, np.zeros(len(weights)))
    return Affine(weights, seen.mean_t - line.mean(seen))
