"""Scores of channels by what calibration data puts into the sums that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from onnxprune.backend.threads import one_thread
from onnxprune.damage.curves import MOST_BYTES
from onnxprune.damage.sums import WIDEST, gather, memory
from onnxprune.errors import UsageError
from onnxprune.identity.dims import BoolArray, Dim, Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import FloatArray, Scores, Touches, finish, in_out
from onnxprune.readers.find import find_views
from onnxprune.readers.folds import folds
from onnxprune.readers.narrow import narrowed_views
from onnxprune.readers.stats import IntArray, Moments, portions, total
from onnxprune.readers.view import View
from onnxprune.samples.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Reading:
    """A reader, and what its inputs were over all samples."""

    view: View
    weights: FloatArray
    """Shape (outputs, inputs)."""
    moments: Moments

    @property
    def squares(self) -> FloatArray:
        """Mean square of each input, shape (inputs,)."""
        found: FloatArray = np.diagonal(self.moments.aa) / self.moments.n
        return found

    @property
    def variances(self) -> FloatArray:
        """Variance of each input, shape (inputs,)."""
        means = self.moments.mean_a
        return np.maximum(self.squares - means**2, 0.0)


Measure = Callable[[Reading, Sequence[IntArray]], FloatArray]
"""What some channels are worth to a reader, from the inputs that belong to each.

The inputs of a channel are its taps, the positions behind a Flatten, all rows of a head.
"""


def score(
    state: State,
    name: str,
    measure: Measure,
    *,
    samples: int,
    custom_ops: Sequence[str],
    by_mean: bool = True,
) -> Scores:
    """A sum over the readers of each channel; heads and groups own the inputs of their rows.

    Channels that nothing sums over score as by `score-in-out`.

    Args:
        name: of the score pass.
        samples: calibration samples that are looked at, at most.
        by_mean: each reader's numbers relative to their mean over a Dim; else as they are.
    Raises:
        UsageError: there is no calibration data.
        ModelError: a score is no number.
    """
    fit, decide = calibration(state, name)
    dims = state[Dims]
    views = find_views(state.model, state.subject.shapes[0], dims.ties)
    parts = folds(fit, decide, samples)
    views = narrowed_views(state.model, views, WIDEST, parts, state.seed, custom_ops)
    worth, seen = np.zeros(dims.count), np.zeros(dims.count, np.bool_)
    with one_thread():
        for reading in _readings(state, [*views.values()], parts, custom_ops):
            for channels in _owned(dims, reading.view):
                own = np.array([*channels], np.int64)
                found = measure(reading, [*channels.values()])
                mean = found.mean() if by_mean else 1.0
                worth[own] += found / mean if mean > 0 else 0.0
                seen[own] = True
    return completed(state, name, worth, seen)


@dataclass(frozen=True)
class DataScore(Analysis):
    """A score that looks at calibration data, and its options."""

    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""


@dataclass(frozen=True)
class ReadingScore(DataScore):
    """A score of each channel by the inputs of its readers, relative to each reader's mean."""

    def measure(self, reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
        """What some channels are worth to a reader: see `Measure`."""
        raise NotImplementedError

    def run(self, state: State) -> Scores:
        return score(
            state, self.name, self.measure, samples=self.samples, custom_ops=self.custom_ops
        )


def calibration(state: State, name: str) -> tuple[Dataset, Dataset]:
    """Samples to fit on and to decide on.

    Raises: UsageError: there are none.
    """
    if state.calibration is None:
        raise UsageError(
            f"`{name}` looks at what channels do on samples, and there are none or too few",
            hint="give --data with some hundred samples, or a score of the weights: --score in-out",
        )
    fit, decide = state.calibration
    return fit, decide


def completed(state: State, name: str, worth: FloatArray, seen: BoolArray) -> Scores:
    """Scores of channels that have one; the others of a Dim as by their weights, at mean 1."""
    dims = state[Dims]
    scores = worth.copy()
    if not all(seen[dim.channels].all() for dim in dims.free):
        scores = np.where(seen, worth, in_out(Touches(state.model, dims)))
        for dim in dims.free:
            _level(scores, dim, seen)
    return finish(dims, scores, name)


def _level(scores: FloatArray, dim: Dim, seen: BoolArray) -> None:
    """Bring both kinds of channels of a Dim to mean 1 where it has both."""
    is_seen = seen[dim.channels]
    if is_seen.any() and not is_seen.all():
        for own in (dim.channels[is_seen], dim.channels[~is_seen]):
            mean = scores[own].mean()
            scores[own] = scores[own] / mean if mean > 0 else 1.0


def _readings(
    state: State, views: Sequence[View], parts: Sequence[Dataset], custom_ops: Sequence[str]
) -> Iterator[Reading]:
    shapes = state.subject.shapes[0]
    for own in portions(views, partial(memory, folds=len(parts)), MOST_BYTES):
        sums = gather(state.model, shapes, own, parts, state.seed, custom_ops)
        for one in sums.values():
            yield Reading(one.view, one.view.weights, total(one.folds))


def _owned(dims: Dims, view: View) -> Iterator[Mapping[int, IntArray]]:
    """Inputs of each channel, Dim by Dim: of those read, then of those whose rows they are."""
    columns = view.columns
    channel = np.where(columns >= 0, dims.of[columns], -1)
    while (channel >= 0).any():
        inputs = np.flatnonzero(channel >= 0)
        which = dims.dim_of[channel[inputs]]
        for index in np.unique(which[which >= 0]).tolist():
            if not dims.dims[index].is_free:
                continue
            own = inputs[which == index]
            order = own[np.argsort(channel[own], kind="stable")]
            keys, starts = np.unique(channel[order], return_index=True)
            yield dict(zip(keys.tolist(), np.split(order, starts[1:]), strict=True))
        channel = np.where(channel >= 0, dims.parent[channel], -1)


# --- what a channel is worth to a reader ----------------------------------------------------------


def magnitudes(reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
    """Length of each weight times that of its input, over the inputs of a channel; sum of outputs.

    Sum over outputs o of sqrt(sum over inputs k of W[o, k]^2 E[z_k^2]).
    """
    lengths = np.sqrt(_by_channel(reading.weights**2 * reading.squares, channels))
    found: FloatArray = lengths.sum(axis=0)
    return found


def fluctuations(reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
    """Variance of each input times the squared length of its column."""
    columns = (reading.weights**2).sum(axis=0) * reading.variances
    return _by_channel(columns[None], channels).ravel()


def variances(reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
    """Variance of the inputs, whatever their weights."""
    return _by_channel(reading.variances[None], channels).ravel()


def energies(reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
    """Mean square of what a channel adds, all outputs together, relative to their variance.

    With the products of a channel's inputs: taps that cancel each other add nothing.
    """
    weights, mean_products = reading.weights, reading.moments.aa / reading.moments.n
    covariance = reading.moments.covariance
    whole = float(((weights @ covariance) * weights).sum())
    if whole <= 0:
        return np.zeros(len(channels))
    found = [
        float(((weights[:, own] @ mean_products[np.ix_(own, own)]) * weights[:, own]).sum())
        for own in channels
    ]
    return np.maximum(found, 0.0) / whole


def _by_channel(values: FloatArray, channels: Sequence[IntArray]) -> FloatArray:
    """Sums over the inputs of each channel, shape (rows, channels)."""
    order = np.concatenate(channels)
    starts = np.cumsum([0, *map(len, channels[:-1])])
    found: FloatArray = np.add.reduceat(values[:, order], starts, axis=1)
    return found
