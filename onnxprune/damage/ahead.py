"""How the readers further on weigh the errors of a reader's outputs.

An error of a hidden layer counts by what the next layers make of it, not by its own size: a local
stand-in for the Gauss-Newton matrix, from weights and moments alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.damage.sums import Sums
from onnxprune.identity.dims import Dims
from onnxprune.readers.stats import FloatArray, IntArray, total
from onnxprune.readers.view import View


def rows_read(dims: Dims, view: View, by: View) -> IntArray:
    """Which output of a view each input of another is; -1 for none. Returns: shape (inputs,)."""
    place = np.full(dims.count + 1, -1, np.int64)
    place[dims.of[view.rows]] = np.arange(len(view.rows))
    return np.where(by.columns >= 0, place[dims.of[by.columns]], -1)


def reads_ahead(dims: Dims, view: View, by: View) -> bool:
    """True where a view reads what another gives; both know their identities."""
    return bool((view.rows >= 0).all() and (rows_read(dims, view, by) >= 0).any())


def root(dims: Dims, view: View, later: Iterable[Sums]) -> FloatArray | None:
    """R, of which |R e|^2 is the damage of an error e of a view's outputs.

    That is the squared error it makes in a later reader relative to the variance of what that
    gives, mean over the readers; scales and nonlinearities between are left out. Shape (outputs,
    outputs); None where nothing is known to read the outputs.
    """
    if (view.rows < 0).any():
        return None
    found = [own for one in later if (own := _weight(rows_read(dims, view, one.view), one,
                                                     len(view.rows))) is not None]  # fmt: skip
    if not found:
        return None
    values, vectors = np.linalg.eigh(np.mean(found, axis=0))
    made: FloatArray = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return made


def _weight(read: IntArray, reader: Sums, count: int) -> FloatArray | None:
    """The products of a reader's columns, in units of the variance of what it gives."""
    columns = np.flatnonzero(read >= 0)
    if not len(columns):
        return None
    weights, seen = reader.view.weights, total(reader.folds)
    variance = float(np.einsum("ok,ok->", weights @ seen.covariance, weights))
    found = np.zeros((count, count))
    for own in _taps(read, columns):
        placed = np.zeros((len(weights), count))
        placed[:, read[own]] = weights[:, own]
        found += placed.T @ placed
    return found / variance if variance > 0 else None


def _taps(read: IntArray, columns: IntArray) -> Iterable[IntArray]:
    """Columns in sets that have each output once: a window has several of each."""
    order = columns[np.argsort(read[columns], kind="stable")]
    _, starts, sizes = np.unique(read[order], return_index=True, return_counts=True)
    nth = np.arange(len(order)) - np.repeat(starts, sizes)
    return (order[nth == n] for n in range(int(sizes.max())))
