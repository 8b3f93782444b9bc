"""Proof of a cut: the flow again over the cut graph, position by position.

Every weight carries the identities it kept, in order; every tie the rules state must already
hold. This shows that the cut follows the flow on every axis, without a single input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.cutting.compact import Take, compact_field, takes
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.fields import Field, IntArray
from onnxprune.identity.flow import Flow, RuleFor, walk
from onnxprune.identity.ties import Axes, Blocks, Slot, Violation
from onnxprune.model.graph import Model
from onnxprune.shape.shapes import Shapes


@dataclass(frozen=True, eq=False)
class Kept:
    """What the original's flow says about a cut: the `Checker` of the second walk."""

    dims: Dims
    shapes: Shapes
    """Shapes of the original at the first sizes."""
    alive: BoolArray
    """Shape (identities,)."""
    orders: dict[Slot, list[Take]] = field(default_factory=dict)
    """Orders in which weights are taken, over what they kept."""
    wanted: dict[Slot, list[Take]] = field(default_factory=dict)
    """Orders that a walk found to be needed beyond those."""

    def source(self, slot: Slot) -> tuple[Field, ...] | None:
        """The identities that a source kept, in order."""
        source = self.dims.ties.sources.get(slot)
        if source is None:
            return None
        rank = max((f.ids.ndim for f in source.fields), default=0)
        shape = tuple(
            max((f.ids.shape[a] for f in source.fields), default=1) for a in range(rank)
        )
        found = takes(source.fields, shape, self.alive) + self.orders.get(slot, [])
        return tuple(compact_field(f, found) for f in source.fields)

    def same(self, a: IntArray, b: IntArray) -> bool:
        """True where all identities, broadcast, are the same channels."""
        return bool(np.all(self._channel(a) == self._channel(b)))

    def holds(self, name: str, fields: Sequence[Field]) -> bool:
        """True where a value has the channels that the original's keeps, in whatever order."""
        whole = self.dims.ties.fields.get(name, ())
        shape = self.shapes.shape.get(name, ())
        found = takes(whole, shape, self.alive)
        wanted = [self._contents(compact_field(one, found)) for one in whole]
        return wanted == [self._contents(one) for one in fields]

    def _contents(self, one: Field) -> tuple[tuple[int, ...], bytes]:
        return one.ids.shape, np.sort(self._channel(one.ids), axis=None).tobytes()

    def linked(self, parent: IntArray, child: IntArray) -> bool:
        """True where each child is in a row of its parent."""
        above, below = np.broadcast_arrays(self._channel(parent), self._channel(child))
        if below.size and below.max(initial=-1) < 0:
            return False
        own = self.dims.parent[below]
        return bool(np.all((own == above) | (below == above)))

    def axes(self, name: str) -> list[Axes | None] | None:
        """Axes along which the fields moved onto a value vary."""
        return self.dims.ties.settled.get(name)

    def blocks(self, name: str) -> Blocks | None:
        """Axes that a reshape mapped onto each other."""
        return self.dims.ties.blocks.get(name)

    def spans(self, name: str, axis: int) -> bool | None:
        """True where the original had more than one position."""
        shape = self.shapes.shape.get(name)
        return None if shape is None or axis >= len(shape) else shape[axis] > 1

    def order(self, slot: Slot, weight: Field, data: Field) -> IntArray | None:
        """Positions of a weight's field, row by row, in the order of the data's channels.

        None where they agree already, or cannot be made to.
        """
        axis = weight.thin
        if weight.ids.shape != data.ids.shape:
            return None
        own, other = self._channel(weight.ids), self._channel(data.ids)
        if np.array_equal(own, other):
            return None
        ours, theirs = (np.argsort(x, axis=axis, kind="stable") for x in (own, other))
        sorted_own = np.take_along_axis(own, ours, axis)
        if not np.array_equal(sorted_own, np.take_along_axis(other, theirs, axis)):
            return None
        order = np.empty_like(ours)
        np.put_along_axis(order, theirs, ours, axis)
        return order

    def reorder(self, slot: Slot, take: Field, axis: int) -> None:
        """Remember an order, as positions of the weight's own axis."""
        rows = tuple(a for a in take.axes if a != axis)
        moved = np.moveaxis(take.ids, [*rows, axis], range(len(rows) + 1))
        kept = moved.reshape(moved.shape[: len(rows) + 1])
        self.wanted.setdefault(slot, []).append(Take(axis, kept.astype(np.int64), rows))

    def follow(self, a: IntArray, b: IntArray) -> None:
        """Values that meet with the same channels in another order: let a weight make that order.

        Moves may change the order of one of them; rows of what makes the other can be taken in it.
        """
        if not self._order(b, self._channel(a)):
            self._order(a, self._channel(b))

    def follow_rows(self, parent: IntArray, child: IntArray) -> None:
        """The same for rows and what stands for them: let a weight make the order of the rows."""
        own, below = self._channel(parent), self._channel(child)
        for axis in (a for a, n in enumerate(parent.shape) if n == 1):
            below = below.take([0], axis=axis)
        self._order(parent, np.where(np.isin(below, own), below, self.dims.parent[below]))

    def _order(self, ids: IntArray, wanted: IntArray) -> bool:
        """Ask for a weight whose identities come in the order of these channels."""
        ours, theirs = self._channel(ids).ravel(), wanted.ravel()
        if max(ids.shape, default=0) != ids.size or sorted(ours) != sorted(theirs):
            return False
        for slot, axis in self._makers(ids.ravel()):
            order = np.empty_like(ours)
            order[np.argsort(theirs, kind="stable")] = np.argsort(ours, kind="stable")
            self.wanted.setdefault(slot, []).append(Take(axis, order))
            return True
        return False

    def _makers(self, ids: IntArray) -> Iterator[tuple[Slot, int]]:
        """Weights that make these identities as they are, in an order that is still free."""
        for slot, source in self.dims.ties.sources.items():
            ordered = {t.axis for t in (*self.orders.get(slot, ()), *self.wanted.get(slot, ()))}
            for at, one in enumerate(source.fields):
                mine = source.initializer and len(one.axes) == 1 and one.thin not in ordered
                if mine and ids[0] in one.ids:
                    made = self.source(slot)
                    if made is not None and np.array_equal(made[at].ids.ravel(), ids):
                        yield slot, one.thin

    def _channel(self, ids: IntArray) -> IntArray:
        found: IntArray = self._channels[np.minimum(ids, len(self.dims.of))]
        return found

    @cached_property
    def _channels(self) -> IntArray:
        """Channel of each identity of the original, then what stands for all new ones."""
        return np.append(self.dims.of, -1)


def prove(
    cut: Model,
    first: Shapes,
    second: Shapes,
    kept: Kept,
    rule_for: RuleFor,
) -> list[Violation]:
    """What does not hold in a cut graph; empty for a right one."""
    flow = Flow(cut, first, second, kept)
    flow.ties.count = len(kept.dims.of)
    walk(flow, rule_for)
    outputs = {name: kept.shapes.shape.get(name) for name in cut.output_names}
    changed = [name for name, shape in outputs.items() if first.shape.get(name) != shape]
    return flow.violations + [Violation(f"output `{n}`", "its shape changed") for n in changed]
