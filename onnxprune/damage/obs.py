"""Optimal brain surgeon over all readers of a Dim: what removing channels costs after repair.

Source: Hassibi and Stork, "Second order derivatives for network pruning", NIPS 1992; structured
blocks as in Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, eq. (7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, lapack

from onnxprune.readers.stats import FloatArray, IntArray, Moments, total

# Weight of the identity in the covariance that orders are found on, relative to its mean diagonal.
ORDER_RIDGE = 1e-3
# Rounds in which a part is emptied.
ROUNDS = 48
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(eq=False)
class Problem:
    """One reader of a Dim.

    Args:
        weights: shape (outputs, inputs), in units of the norm.
        owner: shape (inputs,): the channel that each input belongs to, as counted in the Dim; -1
            for inputs of other Dims.
        folds: moments of the inputs.
    """

    weights: FloatArray
    owner: IntArray
    folds: list[Moments]

    @property
    def train(self) -> Moments:
        """Moments of all folds but the last, which is held out."""
        return total(self.folds[:-1])


def inverse(matrix: FloatArray) -> FloatArray:
    """Inverse of a symmetric positive definite matrix.

    Raises: LinAlgError: it is not positive definite.
    """
    factor, failed = lapack.dpotrf(matrix.T, lower=1, clean=0)
    if failed:
        raise LinAlgError("not positive definite")
    found, failed = lapack.dpotri(factor, lower=1)
    if failed:
        raise LinAlgError("not positive definite")
    lower = np.tril(found)
    whole: FloatArray = lower + np.tril(lower, -1).T
    return whole


def damped(covariance: FloatArray, ridge: float) -> FloatArray:
    """The covariance with the identity added, relative to its mean diagonal."""
    made = covariance.copy()
    mean = float(made.diagonal().mean())
    made[np.diag_indices_from(made)] += ridge * mean if mean > 0 else 1.0
    return made


class Elimination:
    """One reader while channels go."""

    def __init__(self, problem: Problem) -> None:
        self.inverse = inverse(damped(problem.train.covariance, ORDER_RIDGE))
        weights = problem.weights
        if len(weights) > weights.shape[1]:  # costs depend on products of columns only
            weights = np.asarray(np.linalg.qr(weights, mode="r"), np.float64)
        self.weights = weights.copy()
        self.owner = problem.owner.copy()

    def costs(self, count: int) -> FloatArray:
        """What each channel's removal adds to the error now, shape (channels,)."""
        found = np.zeros(count)
        columns = np.flatnonzero(self.owner >= 0)
        order = columns[np.argsort(self.owner[columns], kind="stable")]
        channels, starts, sizes = np.unique(
            self.owner[order], return_index=True, return_counts=True
        )
        for size in np.unique(sizes):
            mine = sizes == size
            at = order[starts[mine][:, None] + np.arange(size)]  # (channels, columns of each)
            blocks = self.inverse[at[:, :, None], at[:, None, :]]
            taken = self.weights[:, at]
            products = np.einsum("ocs,oct->cst", taken, taken, optimize=True)
            if size == 1:
                found[channels[mine]] = products[:, 0, 0] / blocks[:, 0, 0]
            else:
                solved = np.linalg.solve(blocks, products)
                found[channels[mine]] = np.trace(solved, axis1=1, axis2=2)
        return found

    def remove(self, gone: IntArray) -> None:
        """Take channels out, their readers' other weights moved to make up for them."""
        is_gone = np.isin(self.owner, gone)
        out, kept = np.flatnonzero(is_gone), np.flatnonzero(~is_gone)
        if not len(out):
            return
        across = self.inverse[np.ix_(out, kept)]
        factor = cho_factor(self.inverse[np.ix_(out, out)], lower=True, check_finite=False)
        share = cho_solve(factor, across, check_finite=False)
        self.weights = self.weights[:, kept] - self.weights[:, out] @ share
        self.inverse = self.inverse[np.ix_(kept, kept)] - across.T @ share
        self.owner = self.owner[kept]


def eliminate(
    problems: Sequence[Problem], parts: Sequence[IntArray], count: int
) -> FloatArray:
    """When each channel of a Dim goes: 0 for the first, larger for what is worth more.

    Args:
        parts: channels of each part, as counted in the Dim; parts shrink at the same pace.
        count: channels of the Dim; those in no part are gone already, and stay at 0.
    Raises: LinAlgError: the inputs do not vary.
    """
    runs = [Elimination(p) for p in problems]
    left = [part.copy() for part in parts]
    when, clock = np.zeros(count), 1
    longest = max(map(len, parts))
    for round_ in range(ROUNDS):
        goal = [len(p) - round(len(p) * (round_ + 1) / min(ROUNDS, longest)) for p in parts]
        costs = np.sum([run.costs(count) for run in runs], axis=0)
        gone = []
        for at, (own, keep) in enumerate(zip(left, goal, strict=True)):
            order = own[np.argsort(costs[own], kind="stable")]
            first = order[: max(len(own) - max(keep, 0), 0)]
            when[first] = clock + np.arange(len(first))
            left[at] = np.setdiff1d(own, first)
            gone.append(first)
        clock += longest
        if all(len(own) == 0 for own in left):
            break
        for run in runs:
            run.remove(np.concatenate(gone))
    return when


def lost(problem: Problem, gone: IntArray, ridges: Sequence[float]) -> float:
    """Held-out error after channels went and the rest was refit, in units of the norm.

    Mean squared error summed over outputs; the ridge towards the old weights with the least.

    Args:
        gone: channels, as counted in the Dim.
    """
    is_gone = np.isin(problem.owner, gone)
    out, kept = np.flatnonzero(is_gone), np.flatnonzero(~is_gone)
    if not len(out):
        return 0.0
    train, other = problem.train, problem.folds[-1]
    covariance, seen = train.covariance, other.covariance
    shift = other.mean_a - train.mean_a
    own, across = covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, out)]
    weights = problem.weights[:, out]
    errors = [
        _error(weights, _shares(own, across, ridge), seen, shift, out, kept) for ridge in ridges
    ]
    return float(min(errors))


def _shares(own: FloatArray, across: FloatArray, ridge: float) -> FloatArray:
    """How kept inputs tell what those that went would have been, shape (gone, kept)."""
    if not len(own):
        return np.zeros(across.T.shape)
    try:
        factor = cho_factor(damped(own, ridge), lower=True, check_finite=False)
    except LinAlgError:
        return np.zeros(across.T.shape)
    found: FloatArray = cho_solve(factor, across, check_finite=False).T
    return found


def _error(
    weights: FloatArray,
    shares: FloatArray,
    seen: FloatArray,
    shift: FloatArray,
    out: IntArray,
    kept: IntArray,
) -> float:
    both = shares @ seen[np.ix_(kept, out)]
    residual = seen[np.ix_(out, out)] - both - both.T
    residual += shares @ seen[np.ix_(kept, kept)] @ shares.T
    off = weights @ (shift[out] - shares @ shift[kept])
    return float(np.einsum("os,os->", weights @ residual, weights) + off @ off)
