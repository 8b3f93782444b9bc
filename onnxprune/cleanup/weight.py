"""Weights as a node sees them, and the initializers that they are made of.

Integers stand for numbers, float16 is cast, one exporter stores what another transposes: behind
a weight such chains are all alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from onnx import TensorProto, helper

from onnxprune.cleanup.codes import Array, Code, FloatArray, code
from onnxprune.identity.flow import FLOATS
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node

PLAIN = frozenset(("Identity", "Cast", "Transpose"))


@dataclass(frozen=True, eq=False)
class Step:
    """A node between an initializer and what reads it."""

    node: Node
    code: Code | None
    """Of a QuantizeLinear or DequantizeLinear."""

    def forward(self, array: Array) -> Array:
        """What it makes."""
        node = self.node
        if node.op == "Transpose":
            return array.transpose(perm(node, array.ndim))
        if node.op == "Cast":
            return array.astype(helper.tensor_dtype_to_np_dtype(int(node.attr("to"))))
        if self.code is None:
            return array
        is_coded = node.op == "DequantizeLinear"
        return self.code.numbers(array) if is_coded else self.code.integers(array)


@dataclass(frozen=True, eq=False)
class Weight:
    """Stored numbers behind an input of a node."""

    model: Model
    name: str
    """Of the initializer."""
    steps: tuple[Step, ...] = ()
    """From the initializer to what the node sees."""

    @property
    def values(self) -> Array:
        """The numbers that the node sees."""
        return self._stages()[-1]

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape that the node sees."""
        found = self.model.dims(self.name)
        for step in self.steps:
            if step.node.op == "Transpose":
                found = tuple(found[axis] for axis in perm(step.node, len(found)))
        return found

    @property
    def kind(self) -> int:
        """The element type that the node sees."""
        found = self.model.initializers[self.name].data_type
        for step in self.steps:
            if step.node.op == "Cast":
                found = int(step.node.attr("to"))
            elif step.node.op == "DequantizeLinear":
                found = self.model.initializers[step.node.inputs[1]].data_type
        return found

    @property
    def is_shared(self) -> bool:
        """True where something else reads it, at any step."""
        names = [self.name, *(step.node.outputs[0] for step in self.steps)]
        elsewhere = self.model.captured.union(self.model.output_names)
        return any(n in elsewhere or len(self.model.consumers.get(n, ())) > 1 for n in names)

    def uses(self, values: FloatArray, factor: FloatArray | None) -> dict[Slot, Array]:
        """What initializers must hold for the node to see other numbers, by their use.

        Args:
            values: of the shape that the node sees.
            factor: what the scales of 32-bit integers are multiplied by.
        """
        found: dict[Slot, Array] = {}
        numbers, made = values, None
        for step, before in zip(reversed(self.steps), reversed(self._stages()[:-1]), strict=True):
            node = step.node
            if node.op == "Transpose":
                values = values.transpose(np.argsort(perm(node, values.ndim)))
            elif node.op == "DequantizeLinear":
                numbers, made = values, _fitted(step, values, before, factor)
                values = made.integers(values)
            elif node.op == "QuantizeLinear":  # right before its inverse
                values = numbers
            if step.code is not None and made is not None:
                found[node.key, 1] = made.scale
                found |= {(node.key, 2): made.zero} if node.input(2) else {}
        return found | {(self.steps[0].node.key, 0): values}

    def factor(self, uses: Mapping[Slot, Array]) -> FloatArray | None:
        """What its scales are multiplied by; None where nothing is quantised."""
        for step in self.steps:
            if step.code is not None:
                found: FloatArray = uses[step.node.key, 1] / step.code.scale
                return found
        return None

    def _stages(self) -> list[Array]:
        """The numbers before each step, and behind the last."""
        found = [self.model.array(self.name)]
        for step in self.steps:
            found.append(step.forward(found[-1]))
        return found


def perm(node: Node, rank: int) -> list[int]:
    """The axes of a Transpose."""
    return list(node.attr("perm", range(rank)[::-1]))


def _fitted(step: Step, values: FloatArray, before: Array, factor: FloatArray | None) -> Code:
    """A code for other numbers.

    32-bit integers have room enough. A bias keeps to scale(x) * scale(weight): kernels that add
    integers rely on it.
    """
    assert step.code is not None, "of a DequantizeLinear"
    if step.code.kind != TensorProto.INT32:
        return step.code.fitted(values, before.astype(np.float64))
    return step.code if factor is None else step.code.times(factor)


def weight(model: Model, name: str, *, looks_through: bool = True) -> Weight | None:
    """The stored numbers behind a value; None where there are none, or a caller overrides them.

    Args:
        looks_through: also where nodes make them of what is stored.
    """
    nodes: list[Node] = []
    while looks_through and name in model.producer:
        node = model.producer[name]
        if node.domain or node.op not in PLAIN | {"DequantizeLinear", "QuantizeLinear"}:
            return None
        nodes.append(node)
        name = node.inputs[0]
    if name not in model.initializers or name in model.overridable:
        return None
    steps = _steps(model, name, nodes[::-1])
    return None if steps is None else Weight(model, name, steps)


def _steps(model: Model, name: str, nodes: list[Node]) -> tuple[Step, ...] | None:
    """The steps from an initializer; None where they do not end in numbers, or mean otherwise."""
    kind, rank = model.initializers[name].data_type, len(model.dims(name))
    found = []
    for node, behind in zip_longest(nodes, nodes[1:]):
        own = None
        if node.op == "Cast":
            kind = int(node.attr("to")) if kind in FLOATS else TensorProto.UNDEFINED
        elif node.op == "QuantizeLinear":
            kind = _integers(model, node) if kind in FLOATS else TensorProto.UNDEFINED
            own = code(model, node, kind, rank) if _undoes(behind, node) else None
        elif node.op == "DequantizeLinear":
            own = code(model, node, kind, rank)
            kind = model.initializers[node.inputs[1]].data_type if own else kind
        if kind == TensorProto.UNDEFINED or (own is None and node.op not in PLAIN):
            return None
        found.append(Step(node, own))
    return tuple(found) if kind in FLOATS else None


def _integers(model: Model, node: Node) -> int:
    """The type that a QuantizeLinear gives, by its zero point."""
    zero = model.initializers.get(node.input(2))
    return TensorProto.UNDEFINED if zero is None else zero.data_type


def _undoes(behind: Node | None, node: Node) -> bool:
    """True for the DequantizeLinear with the same scales."""
    if behind is None or behind.op != "DequantizeLinear" or behind.inputs[1:] != node.inputs[1:]:
        return False
    return int(behind.attr("axis", 1)) == int(node.attr("axis", 1))


def stored(model: Model, numbers: Mapping[Slot, Array]) -> dict[Slot, Array]:
    """What initializers must hold for nodes to see these numbers, by the use of each.

    Args:
        numbers: of the shapes that nodes see, by node and slot; slot 2 is the bias of slot 1.
    """
    nodes = {node.key: node for node in model.nodes}
    found, factors = dict[Slot, Array](), dict[str, FloatArray | None]()
    for (key, slot), values in sorted(numbers.items()):
        name = nodes[key].input(int(slot))
        seen = weight(model, name) if name else None
        if seen is None or not seen.steps:
            found[key, slot] = values
            continue
        uses = seen.uses(values, factors.get(key) if slot == 2 else None)
        factors[key] = seen.factor(uses)
        found |= uses
    return found
