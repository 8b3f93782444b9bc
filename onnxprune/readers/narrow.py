"""Readers of wide windows, seen in fewer directions of what each channel shows them.

A 3x3 layer over 1,024 channels sums over 9,216 inputs, one behind a Flatten of 7x7 maps over 49 a
channel: the products of all inputs would not fit into memory. What a channel shows is seen along
the few directions of its taps that matter most to the sum, the same ones for all channels; what the
other directions give stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxprune.backend.threads import one_thread
from onnxprune.identity.dims import BoolArray
from onnxprune.model.graph import Model
from onnxprune.readers.frontier import Walk, batches, sample
from onnxprune.readers.stats import Array, FloatArray, IntArray, positions
from onnxprune.readers.view import Changes, LinearView, View
from onnxprune.samples.dataset import Dataset

# Inputs of a reader that are solved for together: their products are a matrix of this size.
MOST_TOGETHER = 4608
# Samples that tell which directions matter.
SAMPLES = 16
# Taps of a channel: their products are looked at, too.
MOST_TAPS = 2304
# Outputs whose weights are held in float64 together.
CHUNK = 256
# Weight of the identity in what taps show, relative to its mean diagonal.
RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class Narrowing:
    """Directions of the taps of a reader's channels."""

    place: IntArray
    """Shape (channels, taps): which of the reader's inputs each tap of each channel is."""
    encode: FloatArray
    """Shape (taps, directions): orthonormal; what is seen, from what the taps show."""
    decode: FloatArray
    """Shape (taps, directions): what taps show, as far as what is seen tells."""

    def kept(self, stays: BoolArray) -> Narrowing:
        """The same where only some inputs are left: all taps of a channel or none.

        Args:
            stays: shape (inputs,).
        """
        found = self.place[stays[self.place[:, 0]]]
        return replace(self, place=(np.cumsum(stays) - 1)[found])

    def seen(self, rows: Array) -> FloatArray:
        """Shape (positions, columns) from (positions, inputs)."""
        return self._times(rows, self.encode)

    def summed(self, weights: FloatArray) -> FloatArray:
        """Weights over what is seen, shape (outputs, columns), from those over the inputs."""
        return self._times(weights, self.decode)

    def spread(self, weights: FloatArray) -> FloatArray:
        """Weights over the inputs that do what some over what is seen do."""
        apart = weights.reshape(len(weights), len(self.place), -1) @ self.encode.T
        found = np.empty((len(weights), self.place.size))
        found[:, self.place] = apart
        return found

    def _times(self, rows: Array, matrix: FloatArray) -> FloatArray:
        found: FloatArray = rows[:, self.place] @ matrix
        return found.reshape(len(rows), -1)


@dataclass(frozen=True, eq=False)
class NarrowView(LinearView):
    """A reader seen in fewer directions; `columns` and `weights` are those of what is seen."""

    narrowing: Narrowing

    @property
    def size(self) -> int:
        return self.narrowing.place.size

    @property
    def weights(self) -> FloatArray:
        return self._summed

    @cached_property
    def _summed(self) -> FloatArray:
        return np.concatenate([self.narrowing.summed(rows) for rows in _rows(self)])

    def narrow(self, rows: Array) -> Array:
        return self.narrowing.seen(rows)

    @cached_property
    def _stored(self) -> Array:
        """The weights over all inputs, in a type that products are fast and finite in."""
        whole = self.linear.weights[self.group].reshape(len(self.rows), -1)
        return np.asarray(whole, np.float32)

    def beside(self, rows: Array) -> Array:
        given = np.asarray(rows, np.float32) @ self._stored.T * self.linear.alpha
        found: Array = given - self.narrowing.seen(rows) @ self.weights.T
        return found

    def write(self, changes: Changes, weights: FloatArray, bias: FloatArray) -> None:
        moved = self.narrowing.spread(weights - self.weights)
        super().write(changes, super().weights + moved, bias)


def _rows(view: LinearView) -> Iterator[FloatArray]:
    """The weights over all inputs, some outputs at a time."""
    stored = view.linear.weights[view.group].reshape(len(view.rows), -1)
    for start in range(0, len(stored), CHUNK):
        yield np.asarray(stored[start : start + CHUNK], np.float64) * view.linear.alpha


def narrowed(view: View, narrowing: Narrowing) -> NarrowView:
    """A reader in fewer directions."""
    assert isinstance(view, LinearView), "only such have a narrowing"
    columns = np.repeat(view.columns[narrowing.place[:, 0]], narrowing.encode.shape[1])
    return NarrowView(view.node, view.label, view.rows, columns, view.linear, view.group, narrowing)


def narrowed_views(
    model: Model,
    views: Mapping[str, View],
    most: int,
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str] = (),
) -> dict[str, View]:
    """Readers of a model by key, those with more than so many inputs in fewer directions."""
    less = narrowings(model, views, most, folds, seed, custom_ops)
    return {key: narrowed(view, less[key]) if key in less else view for key, view in views.items()}


def narrowings(
    model: Model,
    views: Mapping[str, View],
    most: int,
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str] = (),
) -> dict[str, Narrowing]:
    """Those of the readers with too many inputs, by key.

    There is none of a reader whose channels have one tap or unequal counts of them, and of one that
    has too many channels or taps itself.

    Args:
        most: inputs that are not too many.
    """
    wide = {
        key: (view, place)
        for key, view in views.items()
        if isinstance(view, LinearView) and len(view.columns) > most
        if (place := _taps(view)) is not None and len(place) <= most
    }
    with one_thread():
        shown = _shown(model, wide, folds, seed, custom_ops)
        return {key: _narrowing(*wide[key], spread, most) for key, spread in shown.items()}


def _taps(view: LinearView) -> IntArray | None:
    """Which inputs are the taps of each channel, shape (channels, taps); None without any."""
    taps = view.linear.weights.shape[3]
    order = np.arange(len(view.columns))
    if taps == 1:  # behind a Flatten the same channel is seen at several places
        if (view.columns < 0).any():
            return None
        order = np.argsort(view.columns, kind="stable")
        counts = np.unique(view.columns, return_counts=True)[1]
        taps = int(counts[0])
        if (counts != taps).any():
            return None
    return order.reshape(-1, taps) if 1 < taps <= MOST_TAPS else None


def _shown(
    model: Model,
    wide: Mapping[str, tuple[LinearView, IntArray]],
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str],
) -> dict[str, FloatArray]:
    """Second moments of what taps show, shape (taps, taps), summed over channels."""
    if not wide:
        return {}
    found = {key: np.zeros((place.shape[1],) * 2) for key, (_, place) in wide.items()}
    known = batches(folds[:1])
    before = np.cumsum([0, *(len(batch.samples) for batch in known)])
    known = [batch for batch, first in zip(known, before, strict=False) if first < SAMPLES]
    names = list(dict.fromkeys(n for view, _ in wide.values() for n in (*view.seen, *view.given)))
    walk = Walk(known, [set()], custom_ops)
    left = SAMPLES
    for batch, values in zip(known, walk.step(model, names), strict=True):
        for i, number in enumerate(batch.samples[:left].tolist()):
            for key, (view, place) in wide.items():
                own = sample(values, (*view.seen, *view.given), i, len(batch.samples), view.axes)
                at = positions(view.count(own), seed, number)
                rows = view.inputs(own, at, own)[:, place].astype(np.float64)
                found[key] += np.einsum("pct,pcs->ts", rows, rows, optimize=True)
        left -= len(batch.samples[:left])
    walk.shelf.close()
    return {key: own for key, own in found.items() if np.isfinite(own).all() and own.any()}


def _narrowing(view: LinearView, place: IntArray, spread: FloatArray, most: int) -> Narrowing:
    """The directions that leave most of what the reader gives, were channels independent.

    With C the moments of what taps show and W those of the weights over them, the span of
    C^-1/2 U, U the leading eigenvectors of C^1/2 W C^1/2 (reduced-rank regression).
    """
    count = most // len(place)
    spread = spread + np.eye(len(spread)) * (RIDGE * np.trace(spread) / len(spread))
    values, vectors = np.linalg.eigh(spread)
    root = (vectors * np.sqrt(values)) @ vectors.T
    products = np.zeros_like(spread)
    for rows in _rows(view):
        own = rows[:, place]
        products += np.einsum("oct,ocs->ts", own, own, optimize=True)
    best = np.linalg.eigh(root @ products @ root)[1][:, ::-1][:, :count]
    encode = np.linalg.qr(np.linalg.solve(root, best))[0]
    decode = spread @ encode @ np.linalg.inv(encode.T @ spread @ encode)
    return Narrowing(place, encode, decode)
