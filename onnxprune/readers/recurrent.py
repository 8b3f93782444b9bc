"""Recurrent cells as readers: each sees its input beside its own state of the step before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxprune.identity.dims import BoolArray
from onnxprune.identity.ties import Ties
from onnxprune.model.graph import Model, Node
from onnxprune.readers.frontier import nth
from onnxprune.readers.stats import Array, FloatArray, IntArray
from onnxprune.readers.view import Changes, Values, View
from onnxprune.shape.shapes import Shapes

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
X, W, R, B, LENGTHS, STATE = range(6)
RESET = 1
"""Place of a GRU's reset gate; its candidate is the last."""


@dataclass(frozen=True)
class Sum:
    """What is summed together in a direction of a cell.

    Args:
        first, last: gates whose rows sum alike.
        over_x, over_h: what they sum over.
        is_reset: the state is multiplied by the reset gate before it is summed.
    """

    label: str
    first: int
    last: int
    over_x: bool = True
    over_h: bool = True
    is_reset: bool = False


GRU_AFTER = (
    Sum("gates", 0, 2),
    Sum("candidate of x", 2, 3, over_h=False),
    Sum("candidate of h", 2, 3, over_x=False),
)
GRU_BEFORE = (Sum("gates", 0, 2), Sum("candidate", 2, 3, is_reset=True))


@dataclass(frozen=True, eq=False)
class Cell:
    """One direction of an LSTM, GRU or RNN, with positions counted sample by sample."""

    model: Model
    node: Node
    direction: int

    @property
    def is_batch_first(self) -> bool:
        return bool(self.node.attr("layout", 0))

    @property
    def hidden(self) -> int:
        return self.model.dims(self.node.inputs[R])[2]

    @property
    def inputs(self) -> int:
        return self.model.dims(self.node.inputs[W])[2]

    @property
    def sequence(self) -> str:
        """The states of all steps; the node need not hand them out."""
        return nth(self.node, 0)

    @property
    def is_reverse(self) -> bool:
        return self.direction == 1 or _text(self.node.attr("direction", "forward")) == "reverse"

    @property
    def read(self) -> tuple[str, ...]:
        """Values that tell what it sees."""
        first = self.node.input(STATE)
        own = (first,) if first and first not in self.model.initializers else ()
        return (self.node.inputs[X], self.sequence, *own)

    @property
    def axes(self) -> dict[str, int]:
        """The batch axis of each."""
        if self.is_batch_first:
            return dict.fromkeys(self.read, 0)
        return {**dict.fromkeys(self.read, 1), self.sequence: 2}

    def weight(self, slot: int) -> FloatArray:
        """W or R of the direction, shape (gates * units, inputs or units)."""
        found: FloatArray = self.model.array(self.node.inputs[slot])[self.direction]
        return found.astype(np.float64)

    @cached_property
    def biases(self) -> FloatArray:
        """Shape (2, gates * units): those of W and of R."""
        if not self.node.input(B):
            return np.zeros((2, GATES[self.node.op] * self.hidden))
        stored = self.model.array(self.node.inputs[B])[self.direction]
        found: FloatArray = stored.astype(np.float64).reshape(2, -1)
        return found

    def x(self, values: Values, at: IntArray) -> Array:
        """The input at some positions, shape (positions, inputs)."""
        sample, step = self._places(values, at)
        value = values[self.node.inputs[X]]
        found: Array = value[sample, step] if self.is_batch_first else value[step, sample]
        return found

    def h(self, values: Values, at: IntArray) -> Array:
        """The state before some positions, shape (positions, units)."""
        sample, step = self._places(values, at)
        states = values[self.sequence]
        states = states if self.is_batch_first else states.transpose(2, 0, 1, 3)
        steps, before = states.shape[1], step + (1 if self.is_reverse else -1)
        found: Array = states[sample, before.clip(0, steps - 1), self.direction]
        is_first = (before < 0) | (before >= steps)
        found[is_first] = self._first(values)[sample[is_first] if self._varies(values) else 0]
        return found

    def _places(self, values: Values, at: IntArray) -> tuple[IntArray, IntArray]:
        """Sample and step of some positions."""
        shape = values[self.node.inputs[X]].shape[:2]
        sample, step = np.unravel_index(at, shape if self.is_batch_first else shape[::-1])
        return sample, step

    def _varies(self, values: Values) -> bool:
        return self.node.input(STATE) in values

    def _first(self, values: Values) -> Array:
        """States before the first step, shape (samples or 1, units)."""
        name = self.node.input(STATE)
        if not name:
            return np.zeros((1, self.hidden), np.float32)
        found = values[name] if name in values else self.model.array(name)
        return found[:, self.direction] if self.is_batch_first else found[self.direction]

    def reset(self, x: Array, h: Array) -> FloatArray:
        """A GRU's reset gate, shape (positions, units)."""
        rows = slice(RESET * self.hidden, (RESET + 1) * self.hidden)
        total = x @ self.weight(W)[rows].T + h @ self.weight(R)[rows].T
        total += self.biases[:, rows].sum(axis=0)
        found: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * total)  # a sigmoid that does not overflow
        return found


@dataclass(frozen=True, eq=False)
class RecurrentView(View):
    """Some gates of one direction, before their activation."""

    cell: Cell
    sum: Sum

    @property
    def _rows(self) -> slice:
        return slice(self.sum.first * self.cell.hidden, self.sum.last * self.cell.hidden)

    @property
    def weights(self) -> FloatArray:
        parts = ((W, self.sum.over_x), (R, self.sum.over_h))
        return np.hstack([self.cell.weight(slot)[self._rows] for slot, used in parts if used])

    @property
    def bias(self) -> FloatArray:
        used = [self.sum.over_x, self.sum.over_h]
        found: FloatArray = self.cell.biases[used, self._rows].sum(axis=0)
        return found

    @property
    def seen(self) -> tuple[str, ...]:
        return self.cell.read if self.sum.over_h else self.cell.read[:1]

    @property
    def given(self) -> tuple[str, ...]:
        """What it gives is computed."""
        return self.seen

    @property
    def axes(self) -> dict[str, int]:
        return self.cell.axes

    @property
    def own(self) -> tuple[str, ...]:
        return (self.cell.sequence,) if self.sum.over_h else ()

    def within(self, live: Model) -> View:
        node = live.producer[self.node.key]
        return replace(self, node=node, cell=replace(self.cell, model=live, node=node))

    def led(self, values: Values, alive: BoolArray) -> Values:
        """Every direction is cut as this one: the view looks at no other."""
        if not self.sum.over_h:
            return {}
        units = self.columns[-self.cell.hidden :]
        stays = np.where(units >= 0, alive[units], True)
        return {self.cell.sequence: values[self.cell.sequence][..., stays]}

    def count(self, values: Values) -> int:
        return int(np.prod(values[self.node.inputs[X]].shape[:2]))

    def inputs(self, values: Values, at: IntArray, made: Values) -> Array:
        if not self.sum.over_h:
            return self.cell.x(values, at)
        x, h = self.cell.x(values, at), self.cell.h(values, at)
        if self.sum.is_reset:
            h = (h * self.cell.reset(x, h)).astype(h.dtype)
        return np.hstack([x, h]) if self.sum.over_x else h

    def outputs(self, values: Values, at: IntArray) -> Array:
        seen = self.inputs(values, at, values)
        return seen.astype(np.float32) @ self._single.T + self.bias

    @cached_property
    def _single(self) -> Array:
        """The weights in the precision of most runtimes: sample by sample doubles take long."""
        return self.weights.astype(np.float32)

    def write(self, changes: Changes, weights: FloatArray, bias: FloatArray) -> None:
        node, cell = self.node, self.cell
        split = cell.inputs if self.sum.over_x else 0
        for slot, part in ((W, weights[:, :split]), (R, weights[:, split:])):
            if part.size:
                changes.array(node, slot)[cell.direction, self._rows] = part
        directions, rows, _ = self.cell.model.dims(node.inputs[W])
        stored = changes.array(node, B, (directions, 2 * rows))[cell.direction].reshape(2, rows)
        own = 0 if self.sum.over_x else 1
        stored[own, self._rows] = bias - self.bias + cell.biases[own, self._rows]


def recurrent_views(model: Model, shapes: Shapes, ties: Ties, node: Node) -> Iterator[View]:
    """The sums of an LSTM, GRU or RNN whose weights are its own, over steps that all count."""
    if not _is_plain(model, shapes, node):
        return
    for direction in range(model.dims(node.inputs[W])[0]):
        cell = Cell(model, node, direction)
        x, h = (_ids(ties, cell, slot, 2) for slot in (W, R))
        rows = _ids(ties, cell, W, 1)
        for one in _sums(node):
            used = [x] * one.over_x + [h] * one.over_h
            label = f"{'reverse' if cell.is_reverse else 'forward'} {one.label}".rstrip()
            own = rows[one.first * cell.hidden : one.last * cell.hidden]
            yield RecurrentView(node, label, own, np.concatenate(used), cell, one)


def _sums(node: Node) -> tuple[Sum, ...]:
    if node.op != "GRU":
        return (Sum("", 0, GATES[node.op]),)
    return GRU_AFTER if node.attr("linear_before_reset", 0) else GRU_BEFORE


def _is_plain(model: Model, shapes: Shapes, node: Node) -> bool:
    for slot in (W, R):
        name = node.inputs[slot]
        if not _is_stored(model, name) or len(model.consumers[name]) > 1 or name in model.captured:
            return False
    if node.input(B) and not _is_stored(model, node.inputs[B]):
        return False
    if node.op == "GRU" and node.attr("activations"):  # the reset gate is computed here
        return False
    return _is_full(model, shapes, node) and _starts_alike(model, node)


def _is_stored(model: Model, name: str) -> bool:
    return name in model.initializers and name not in model.overridable


def _is_full(model: Model, shapes: Shapes, node: Node) -> bool:
    """True where no sequence of a batch is shorter than another."""
    name = node.input(LENGTHS)
    if not name:
        return True
    shape = shapes.shape.get(node.inputs[X])
    if shape is None or not _is_stored(model, name):
        return False
    return bool((model.array(name) == shape[1 if node.attr("layout", 0) else 0]).all())


def _starts_alike(model: Model, node: Node) -> bool:
    """True where stored first states do not tell samples apart."""
    name = node.input(STATE)
    if name in model.overridable:
        return False
    if name not in model.initializers:
        return True
    states, axis = model.array(name), 0 if node.attr("layout", 0) else 1
    return bool((states == states.take([0], axis=axis)).all())


def _ids(ties: Ties, cell: Cell, slot: int, axis: int) -> IntArray:
    """Identities along an axis of W or R in a direction; -1 where they have none of their own."""
    length = cell.model.dims(cell.node.inputs[slot])[axis]
    source = ties.sources.get((cell.node.key, slot))
    for one in source.fields if source else ():
        if axis in one.axes and {*one.axes} <= {0, axis} and one.ids.shape[axis] == length:
            found: IntArray = one.ids[min(cell.direction, len(one.ids) - 1)].astype(np.int64)
            return found.ravel()
    return np.full(length, -1, np.int64)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
