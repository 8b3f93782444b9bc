"""What is known of every value of one model, and the table of deductions that find it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.cleanup.known import Array, FloatArray, Known, constant, fresh, on_axes
from onnxprune.cleanup.linear import Linear
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.fields import Field, Shape
from onnxprune.identity.ties import Reader
from onnxprune.model.graph import Model, Node
from onnxprune.rules import load_rules
from onnxprune.shape.shapes import Shapes

# Larger descriptions are not worth their memory.
LIMIT = 1 << 22
RANDOM = frozenset({"Bernoulli", "Dropout"})


@dataclass(eq=False)
class Knowledge:
    """What is known of each value of a model; made once and shared by all clean-ups."""

    model: Model
    dims: Dims
    shapes: tuple[Shapes, Shapes]
    values: dict[str, Known] = field(default_factory=dict)
    linear: dict[str, Linear] = field(default_factory=dict)
    """Views of nodes, by key."""
    loud: dict[tuple[str, int, bool], BoolArray] = field(default_factory=dict)
    """Which positions of an operand let a channel through; kept by `liveness`."""

    def of(self, name: str) -> Known | None:
        """A value, or a stored tensor; None where its description would be too large."""
        if name in self.values:
            return self.values[name]
        shape = self.shapes[0].shape.get(name)
        if not name or shape is None:
            return None
        if name in self.model.initializers:
            stored = name not in self.model.overridable and np.prod(shape) <= LIMIT
            array = self.model.array(name) if stored else None
            return None if array is None or array.dtype.kind not in "fiub" else constant(array)
        axes = {a for f in self.dims.ties.fields.get(name, ()) for a in f.axes}
        lengths = [n if a in axes else 1 for a, n in enumerate(shape)]
        return fresh(name, lengths) if np.prod(lengths) <= LIMIT else None

    def shape(self, name: str) -> Shape:
        """The shape at the first sizes; only asked where it is known."""
        return self.shapes[0].shape[name]

    def along(self, name: str, axes: Sequence[int]) -> Known | None:
        """A value described along some axes, flat over them."""
        known = self.of(name)
        return None if known is None else on_axes(known, axes, self.shape(name), name)

    def constants(self, name: str, one: Field) -> FloatArray:
        """Constants of a value at the positions of a field, NaN where it depends on the data."""
        known = self.along(name, one.axes)
        if known is None:
            return np.full(one.ids.shape, np.nan)
        return known.constants.reshape(one.ids.shape)

    def number_of(self, node: Node, slot: int) -> Array | None:
        """A stored operand."""
        name = node.input(slot)
        if name in self.model.initializers and name not in self.model.overridable:
            return self.model.array(name)
        known = [s.value.get(name) for s in self.shapes]
        if known[0] is None or known[1] is None or not np.array_equal(known[0], known[1]):
            return None
        return known[0]

    @cached_property
    def readers(self) -> dict[str, list[Reader]]:
        """Who sums over channels, by the key of the node."""
        found: dict[str, list[Reader]] = defaultdict(list)
        for reader in self.dims.ties.readers:
            found[reader.key].append(reader)
        return dict(found)

    @cached_property
    def leaving(self) -> frozenset[str]:
        """Values that the caller or the body of an If, Loop or Scan reads."""
        return self.model.captured | frozenset(self.model.output_names)

    @cached_property
    def elementwise(self) -> frozenset[str]:
        """Operators of ai.onnx that work position by position."""
        own = (r.op for r in load_rules() if r.family == "elementwise" and not r.domain)
        return frozenset(own) - RANDOM


Deduction = Callable[[Knowledge, Node], Sequence[Known | None]]
TABLE: dict[str, Deduction] = {}


def on(*ops: str) -> Callable[[Deduction], Deduction]:
    def register(fn: Deduction) -> Deduction:
        TABLE.update(dict.fromkeys(ops, fn))
        return fn

    return register
