"""One number per channel: gathered over the weights a channel touches, then made comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError
from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.fields import Field, IntArray
from onnxprune.identity.occurrences import summed_by_weights
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model
from onnxprune.planning.weights import Uses

FloatArray = npt.NDArray[np.float64]
Measure = Callable[[FloatArray], FloatArray]

LARGE = 2**24


@dataclass(frozen=True, eq=False)
class Scores:
    """Larger means keep; comparable within a Dim, and between Dims once `normalised`."""

    of: FloatArray
    """Shape (channels,)."""

    def normalised(self, dims: Dims) -> Scores:
        """Each Dim's scores divided by their mean, so that Dims of unlike scale compare."""
        return Scores(relative(dims, self.of))


@dataclass(frozen=True, eq=False)
class Touch:
    """One weight seen from the channels of one of its fields."""

    slot: Slot
    name: str
    field: Field
    reads: bool
    """True where the weight sums over these channels, False where it makes them."""
    is_filter: bool
    """False for a bias, a scale, statistics: numbers that meet data position by position."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """A sum over weights, and which channels had any."""

    total: FloatArray
    seen: npt.NDArray[np.bool_]

    def otherwise(self, other: Gathered) -> Gathered:
        """The same where there is something, the other elsewhere."""
        total = np.where(self.seen, self.total, other.total)
        return Gathered(total, self.seen | other.seen)


class Touches:
    """Everything that the Dims of a model touch, found once."""

    def __init__(self, model: Model, dims: Dims) -> None:
        self.model, self.dims, self.uses = model, dims, Uses(model)
        self._all = list(self._find())

    def __iter__(self) -> Iterator[Touch]:
        return iter(self._all)

    def _find(self) -> Iterator[Touch]:
        """Uses of one weight by the same channels count once."""
        summed = summed_by_weights(self.dims, self.model)
        seen = set[tuple[str, tuple[int, ...], bool, bytes]]()
        for slot, source in self.dims.ties.sources.items():
            is_filter = bool(source.initializer) and self.uses.is_filter(slot)
            for one in source.fields if source.initializer else ():
                reads = bool(summed[one.ids.ravel()].any())
                channels = self.dims.of[one.ids]
                key = source.initializer, one.axes, reads, channels.tobytes()
                if key not in seen:
                    seen.add(key)
                    yield Touch(slot, source.initializer, one, reads, is_filter)

    def values(self, touch: Touch) -> FloatArray:
        """The weight's numbers, as real ones; what is not finite is taken for zero."""
        found = self.uses.real(touch.slot)
        if not np.isfinite(found).all():
            found = np.where(np.isfinite(found), found, 0)
        # Squares of large numbers need float64; a weight of 100 million elements, the memory.
        return np.asarray(found, np.float64 if found.size <= LARGE else np.float32)

    def norms(self, touch: Touch, measure: Measure) -> tuple[IntArray, FloatArray]:
        """Sum of a measure of the weight over all that belongs to each channel.

        Args:
            measure: elementwise.
        Returns: channels (ascending) and their values.
        """
        values = measure(self.values(touch))
        others = tuple(a for a in range(values.ndim) if a not in touch.field.axes)
        sums = values.sum(axis=others, keepdims=True, dtype=np.float64)
        channels = self.dims.of[touch.field.ids]
        own, inverse = np.unique(channels, return_inverse=True)
        total = np.bincount(
            inverse.reshape(-1), weights=np.broadcast_to(sums, channels.shape).ravel()
        )
        return own.astype(np.int64), total.astype(np.float64)

    def gather(
        self, measure: Measure, finish: Measure, wanted: Callable[[Touch], bool]
    ) -> Gathered:
        """A score that adds up over weights, each relative to its own mean.

        Args:
            finish: of the sum of each channel.
            wanted: which weights count.
        """
        total, seen = np.zeros(self.dims.count), np.zeros(self.dims.count, np.bool_)
        for touch in self._all:
            if not wanted(touch):
                continue
            own, sums = self.norms(touch, measure)
            values = finish(sums)
            seen[own] = True
            if (mean := values.mean()) > 0:
                total[own] += values / mean
        return Gathered(total, seen)

    def magnitude(self, measure: Measure, finish: Measure = np.asarray) -> FloatArray:
        """Filters that make a channel; without any those that read it, then whatever it touches.

        A channel that no weight touches scores as the mean of all.
        """
        made = self.gather(measure, finish, lambda t: t.is_filter and not t.reads)
        if not made.seen.all():
            made = made.otherwise(self.gather(measure, finish, lambda t: t.is_filter))
        if not made.seen.all():
            made = made.otherwise(self.gather(measure, finish, lambda t: True))
        return np.where(made.seen, made.total, 1.0)


def in_out(touches: Touches) -> FloatArray:
    """Norm of what makes a channel times that of what reads it, shape (channels,).

    A channel without producers or readers among the weights counts by the other side.
    """
    made = touches.gather(np.square, np.sqrt, lambda t: t.is_filter and not t.reads)
    read = touches.gather(np.square, np.sqrt, lambda t: t.is_filter and t.reads)
    scores = np.where(made.seen, made.total, 1.0) * np.where(read.seen, read.total, 1.0)
    seen = made.seen | read.seen
    return scores if seen.all() else np.where(seen, scores, touches.magnitude(np.square, np.sqrt))


def relative(dims: Dims, scores: FloatArray, chosen: Sequence[Dim] | None = None) -> FloatArray:
    """Scores divided by the mean of their Dim; all 1 where that mean is 0."""
    scaled = scores.astype(np.float64)
    for dim in dims.dims if chosen is None else chosen:
        mean = scaled[dim.channels].mean()
        scaled[dim.channels] = scaled[dim.channels] / mean if mean > 0 else 1.0
    return scaled


def finish(dims: Dims, scores: FloatArray, name: str) -> Scores:
    """Scores as a pass hands them out: finite, parents judged by their rows, comparable.

    Raises: ModelError: a score is no number.
    """
    check_finite(scores, dims, name)
    return Scores(lift_to_parents(dims, relative(dims, scores)))


def lift_to_parents(dims: Dims, scores: FloatArray) -> FloatArray:
    """A parent (head, group) scores what its rows keep on average, and what it has of its own.

    Args:
        scores: relative to their Dims. Each Dim that has a row of the parent counts once, however
            many channels that row has.
    """
    lifted = scores.copy()
    above = {int(dims.dim_of[p]) for p in dims.children}
    for index in sorted(above, key=lambda i: _height(dims, int(dims.dims[i].channels[0]))):
        dim = dims.dims[index]
        for parent in dim.channels:
            rows = dims.children.get(int(parent))
            if rows is not None:
                _, which = np.unique(dims.dim_of[rows], return_inverse=True)
                means = np.bincount(which, lifted[rows]) / np.bincount(which)
                lifted[parent] = (lifted[parent] + means.sum()) / (1 + len(means))
        lifted = relative(dims, lifted, [dim])
    return lifted


def _height(dims: Dims, channel: int) -> int:
    """Levels of rows below a channel."""
    below = dims.children.get(channel)
    return 0 if below is None else 1 + max(_height(dims, int(c)) for c in below)


def check_finite(scores: FloatArray, dims: Dims, name: str) -> None:
    """Raise where a score is no number.

    Raises: ModelError: names the Dim.
    """
    for dim in dims.free:
        if not np.isfinite(scores[dim.channels]).all():
            raise ModelError(f"score `{name}` of Dim `{dim.name}` is not finite")


# --- what tells filters of a part apart -----------------------------------------------------------


def grams(touches: Touches) -> Iterator[tuple[IntArray, FloatArray]]:
    """Inner products of the filters of each part of each free Dim.

    A filter is all that makes a channel: rows of every producer, the gates of a recurrent unit,
    each producer relative to its mean energy.

    Yields: channels of a part (more than one), and a table of shape (channels, channels).
    """
    parts = [p for d in touches.dims.free for p in d.parts if len(p) > 1]
    number = np.full(touches.dims.count, -1, np.int64)
    for at, part in enumerate(parts):
        number[part] = at
    tables: dict[int, FloatArray] = {}
    tiers: dict[int, int] = {}
    for tier in (0, 1):  # readers where nothing makes a part
        for touch in touches:
            if touch.is_filter and touch.reads == bool(tier):
                for at, gram in _part_grams(touches, touch, number, parts, tiers, tier):
                    tables[at] = tables[at] + gram if at in tables else gram
                    tiers[at] = tier
    yield from ((parts[at], tables[at]) for at in sorted(tables))


def _part_grams(
    touches: Touches,
    touch: Touch,
    number: IntArray,
    parts: list[IntArray],
    tiers: dict[int, int],
    tier: int,
) -> Iterator[tuple[int, FloatArray]]:
    axes = touch.field.axes
    channels = np.moveaxis(touches.dims.of[touch.field.ids], axes, range(len(axes))).ravel()
    wanted = [a for a in np.unique(number[channels]) if a >= 0 and tiers.get(int(a), tier) == tier]
    if not wanted:
        return
    values = np.moveaxis(touches.values(touch), axes, range(len(axes)))
    rows = values.reshape(len(channels), -1)
    for at in wanted:
        order = np.flatnonzero(number[channels] == at)
        order = order[np.argsort(channels[order], kind="stable")]
        found = rows[order].reshape(len(parts[at]), -1).astype(np.float64)
        gram = found @ found.T
        mean = np.trace(gram) / len(gram)
        yield int(at), gram / mean if mean > 0 else gram
