"""Second moments of what every reader of the original sees, fold by fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.damage.pooling import Unpooled, unpooled
from onnxprune.model.graph import Model
from onnxprune.readers.frontier import Walk, batches, held, sample
from onnxprune.readers.stats import (
    POSITIONS,
    Array,
    FloatArray,
    Gatherer,
    Moments,
    positions,
    total,
)
from onnxprune.readers.stream import bends, joined, stream
from onnxprune.readers.view import LinearView, View, channel_rows
from onnxprune.samples.dataset import Dataset
from onnxprune.shape.shapes import Shapes

# Wider readers have two folds only, to fit on and to decide on.
WIDE = 2048
# Readers of more inputs are seen in fewer directions, where they have several taps a channel.
WIDEST = 2304
# Outputs that hardly vary count as if they varied by this share of the mean variance.
LEAST_VARIANCE = 0.01


@dataclass(frozen=True, eq=False)
class Sums:
    """A reader with moments of its inputs."""

    view: View
    folds: list[Moments]
    """Of disjoint samples; the last is held out to decide."""
    units: FloatArray
    """What the squared error of each output counts relative to, shape (outputs,).

    The variance of the stream that the reader joins, else of what it gives, summed over channels;
    where it is seen in fewer directions, their part of that.
    Of what passes an activation each output's own, times their number: there a channel that varies
    little is worth as much as one that varies much (a mobile net's first narrow stream, cut to a
    damage of 0.05: the outputs' divergence was 0.75, by this measure 0.13)."""

    @property
    def weights(self) -> FloatArray:
        """The reader's weights in units of the damage that errors of its outputs do."""
        found: FloatArray = self.view.weights / np.sqrt(self.units)[:, None]
        return found


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is looked at for one reader."""

    view: View
    pool: Unpooled | None
    total: str
    axis: int
    gatherers: list[Gatherer]
    """One a fold, or one for the folds to fit on and one for the last."""
    joined: Gatherer
    given: Gatherer
    """What a reader gives that joins a stream and is seen in fewer directions."""
    folds: int
    is_bent: bool
    """Each channel of what it gives passes an activation. Gates of cells do not count: by their
    own sizes a GRU lost half as much again."""

    @property
    def names(self) -> list[str]:
        """Values that are needed."""
        own = [self.pool.name] if self.pool else [*self.view.seen, *self.view.given]
        return [*own, *([self.total] if self.total else [])]

    def add(
        self, values: Mapping[str, Array], fold: int, seed: int, number: int, most: int
    ) -> None:
        """Look at so many positions of one sample."""
        seen = self._seen(values, seed, number, most)
        if not len(seen):
            return
        is_each = len(self.gatherers) == self.folds
        at_fold = fold if is_each else int(fold == self.folds - 1)
        self.gatherers[at_fold].add(seen, seen[:, :0])
        if self.total:
            value = values[self.total]
            at = positions(value.size // value.shape[self.axis], seed, number, most)
            rows = channel_rows(value, self.axis, at)
            self.joined.add(rows, rows)
        if self.is_partly:
            at = positions(self.view.count(values), seed, number, most)
            rows = self.view.outputs(values, at)
            self.given.add(rows, rows)

    @property
    def is_partly(self) -> bool:
        """True where what is seen is to be compared with what the whole reader gives."""
        return bool(self.total) and self.view.size > len(self.view.columns) and self.pool is None

    def _seen(self, values: Mapping[str, Array], seed: int, number: int, most: int) -> Array:
        if self.pool:
            return self.view.narrow(self.pool.rows(values, seed, number))
        at = positions(self.view.count(values), seed, number, most)
        return self.view.narrow(self.view.inputs(values, at, values))


def gather(
    model: Model,
    shapes: Shapes,
    views: Sequence[View],
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str] = (),
) -> dict[str, Sums]:
    """Moments of readers' inputs, by the key of the reader; one pass over the data."""
    asked = [_asked(model, shapes, view, len(folds)) for view in views]
    names = list(dict.fromkeys(n for one in asked for n in one.names))
    known = batches(folds)
    walk = Walk(known, [set()], custom_ops)
    for batch, values in zip(known, walk.step(model, names), strict=True):
        for i, number in enumerate(batch.samples.tolist()):
            for one in asked:
                axes, count = one.view.axes, len(batch.samples)
                own = sample(values, one.names, i, count, axes)
                most = POSITIONS * held(values, one.names[0], count, axes)
                one.add(own, batch.fold, seed, number, most)
    walk.shelf.close()
    return {one.view.key: made for one in asked if (made := _finish(one)) is not None}


def _asked(model: Model, shapes: Shapes, view: View, folds: int) -> _Asked:
    found = stream(model, shapes, view)
    name = found.total if found else ""
    if not name and isinstance(view, LinearView) and view.linear.groups == 1:
        name = joined(model, view)
    axis = found.axis if found else len(shapes.shape.get(name, (1,))) - 1
    count = folds if len(view.columns) <= WIDE else 2
    return _Asked(
        view,
        unpooled(model, shapes, view),
        name,
        axis,
        [Gatherer(True) for _ in range(count)],
        Gatherer(False),
        Gatherer(False),
        folds,
        not name and isinstance(view, LinearView) and bends(model, view.node.outputs[0]),
    )


def _finish(one: _Asked) -> Sums | None:
    folds = [g.finish() for g in one.gatherers]
    if not all(fold.is_finite for fold in folds):
        return None
    weights = one.view.weights
    own = np.einsum("ok,ok->o", weights @ total(folds).covariance, weights)
    if one.total:
        units = np.full(len(weights), one.joined.finish().variance_t.sum())
        if one.is_partly and (whole := one.given.finish().variance_t.sum()) > 0:
            units *= min(own.sum() / whole, 1.0)
    else:
        units = np.full(len(weights), own.sum())
        if one.is_bent:
            units = np.maximum(own, LEAST_VARIANCE * own.mean()) * len(own)
    is_known = bool(np.isfinite(units).all()) and bool((units > 0).all())
    return Sums(one.view, folds, units) if is_known else None


def memory(view: View, folds: int) -> int:
    """Bytes of the moments of a reader while they are gathered."""
    return (folds if len(view.columns) <= WIDE else 2) * 8 * len(view.columns) ** 2
