"""One number per channel: gathered over the weights a channel touches, then made comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.dims import Dim, Dims
from onnxprune.errors import ModelError
from onnxprune.fields import Field
from onnxprune.graph import Model
from onnxprune.ties import Slot

FloatArray = npt.NDArray[np.float64]
Measure = Callable[[FloatArray], FloatArray]

# Sources that hold statistics or scales rather than filters: what makes a channel is the filter.
MIN_RANK = 2


@dataclass(frozen=True, eq=False)
class Scores:
    """Larger means keep; comparable within a Dim, and between Dims once `normalised`."""

    of: FloatArray
    """Shape (channels,)."""

    def normalised(self, dims: Dims) -> Scores:
        """Each Dim's scores divided by their mean, so that Dims of unlike scale compare."""
        scaled = self.of.copy()
        for dim in dims.free:
            mean = scaled[dim.channels].mean()
            if mean > 0:
                scaled[dim.channels] /= mean
        return Scores(scaled)


@dataclass(frozen=True, eq=False)
class Touch:
    """One weight seen from the channels of one of its fields."""

    slot: Slot
    name: str
    field: Field
    reads: bool
    """True where the weight sums over these channels, False where it makes them."""


def touches(dims: Dims, model: Model) -> Iterator[Touch]:
    """Every floating or integer weight with a field that has channels."""
    contracted = np.zeros(dims.ties.count, np.bool_)
    for reader in dims.ties.readers:
        if not reader.beside:
            contracted[reader.field.ids.ravel()] = True
    for slot, source in dims.ties.sources.items():
        if not source.initializer:
            continue
        for one in source.fields:
            reads = bool(contracted[one.ids.ravel()].any())
            yield Touch(slot, source.initializer, one, reads)


def filter_norms(
    model: Model, dims: Dims, touch: Touch, measure: Measure, combine: Measure = np.asarray
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Sum of a measure of the weight over all that belongs to each channel.

    Args:
        measure: elementwise, float64.
        combine: of the sums, one a channel.
    Returns: channels (ascending) and their values.
    """
    array = np.asarray(model.array(touch.name), np.float64)
    values = measure(array)
    others = tuple(a for a in range(values.ndim) if a not in touch.field.axes)
    sums = values.sum(axis=others, keepdims=True)
    channels = dims.of[touch.field.ids]
    total = np.bincount(channels.ravel(), weights=np.broadcast_to(sums, channels.shape).ravel(),
                        minlength=dims.count)  # fmt: skip
    own = np.unique(channels)
    return own.astype(np.int64), combine(np.asarray(total[own], np.float64))


def gather(
    model: Model,
    dims: Dims,
    measure: Measure,
    finish: Measure,
    wanted: Callable[[Touch, int], bool],
) -> FloatArray:
    """A score that adds up over weights, each relative to its own mean.

    Args:
        wanted: which weights count; gets the touch and the weight's rank.
    Returns: shape (channels,); 0 for channels that no wanted weight touches.
    """
    total = np.zeros(dims.count)
    for touch in touches(dims, model):
        rank = len(model.initializers[touch.name].dims)
        if not wanted(touch, rank):
            continue
        own, values = filter_norms(model, dims, touch, measure, finish)
        mean = values.mean() if len(values) else 0.0
        if mean > 0:
            total[own] += values / mean
    return total


def lift_to_parents(dims: Dims, scores: FloatArray) -> FloatArray:
    """A parent (head, group) scores what its rows score together."""
    lifted = scores.copy()
    for parent, children in dims.children.items():
        lifted[parent] += scores[children].sum()
    return lifted


def check_finite(scores: FloatArray, dims: Dims, name: str) -> None:
    """Raise where a score is no number.

    Raises: ModelError: names the Dim.
    """
    for dim in dims.free:
        if not np.isfinite(scores[dim.channels]).all():
            raise ModelError(f"score `{name}` of Dim `{dim.name}` is not finite")


def by_dim(scores: FloatArray, dim: Dim) -> list[FloatArray]:
    """Scores of a Dim, one array per part."""
    return [scores[p] for p in dim.parts]
