"""MACs, parameters and bytes of a plan, known without rewriting.

One multiply-add of Conv, ConvTranspose, Gemm, MatMul, Einsum, recurrent cells and attention is
one MAC. A node's MACs follow from shapes alone, so the cost of a plan is the same formulas over
the shapes the plan leads to. Rules are asked once, with unknown lengths: what they return is a
sum of products, and a plan fills in the lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.fields import Field, IntArray
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import BITS, Model, Node
from onnxprune.model.storage import without_weights
from onnxprune.planning.lengths import Lengths
from onnxprune.planning.terms import FloatArray, Sum, Table
from onnxprune.planning.weights import is_weight, learned, learned_inside
from onnxprune.rules.registry import Rules
from onnxprune.shape.shapes import Shapes

__all__ = ["TARGETS", "Cost", "CostModel", "is_weight", "model_cost", "node_macs"]

TARGETS = ("macs", "params", "bytes")


@dataclass(frozen=True)
class Cost:
    """What a model costs for one run at given sizes."""

    macs: int
    params: int
    bytes: int

    def share(self, whole: Cost) -> dict[str, float]:
        """Ratio to another cost, by name; 1 where that is nothing."""
        pairs = {name: (getattr(self, name), getattr(whole, name)) for name in TARGETS}
        return {name: own / other if other else 1.0 for name, (own, other) in pairs.items()}


def model_cost(model: Model, shapes: Shapes, rules: Rules) -> Cost:
    """The cost of a model as it stands, at the sizes that `shapes` were evaluated for."""
    macs = sum(node_macs(model, shapes, rules).values())
    params = sum(prod(t.dims) for t in learned(model).values()) + learned_inside(model)
    size = sum(tensor_bytes(t, prod(t.dims)) for t in model.initializers.values())
    return Cost(int(macs), int(params), int(size + rest_bytes(model)))


def node_macs(model: Model, shapes: Shapes, rules: Rules) -> dict[str, int]:
    """MACs of each node that has any, by node key."""
    found = {}
    for node in model.nodes:
        rule = rules.find(node, model.opsets.get(node.domain, 0))
        if rule is None or rule.macs is None or node.key in shapes.value:
            continue
        if all(n in shapes.shape for n in (*node.inputs, *node.outputs) if n):
            found[node.key] = int(rule.macs(node, shapes.shape.__getitem__))
    return found


def tensor_bytes(tensor: TensorProto, elements: int) -> int:
    """Bytes of the stored elements of an initializer."""
    if tensor.data_type == TensorProto.STRING:
        return sum(len(s) for s in tensor.string_data)
    return -(-elements * BITS[tensor.data_type] // 8)


def rest_bytes(model: Model) -> int:
    """Bytes of the file that are no weights: the graph itself, names, metadata."""
    # `ByteSize` serialises: a copy of all weights, if they were still there.
    return int(without_weights(model.proto, _without_values).ByteSize())


def _without_values(tensor: TensorProto) -> TensorProto:
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A node whose rule does more than multiply and add: it is asked again for each plan."""

    node: Node
    known: Mapping[str, tuple[int | None, ...]]
    """Index of the length of each axis; None: as it was."""


class CostModel:
    """Evaluates plans over one model: lengths of axes from the channels alive, then cost."""

    def __init__(
        self,
        model: Model,
        dims: Dims,
        shapes: Shapes,
        first: Shapes,
        rules: Rules,
        whole: Cost | None = None,
    ) -> None:
        """
        Args:
            shapes: at the sizes cost is counted for.
            first: at the sizes the flow ran on.
            whole: what shares are shares of; by default the cost of this model.
        """
        self.model, self.dims, self.shapes, self.first = model, dims, shapes, first
        self._rules, self.lengths = rules, Lengths(dims)
        self._asked: dict[int, _Asked] = {}
        counted = node_macs(model, shapes, rules)
        self._counted = [n for n in model.nodes if counted.get(n.key)]
        self._macs = Table.of([self._sum(i, n) for i, n in enumerate(self._counted)])
        self._weights = _Weights(model, dims, self.lengths)
        self._rest = rest_bytes(model)
        self.whole = whole or self.evaluate(np.ones(dims.count, np.bool_))

    def _axes(self, node: Node, name: str) -> tuple[int | None, ...]:
        """Lengths of a tensor as this node sees it."""
        fields: tuple[Field, ...]
        if name in self.model.initializers:
            source = self.dims.ties.sources.get((node.key, node.inputs.index(name)))
            fields = source.fields if source else ()
        else:
            fields = self.dims.ties.fields.get(name, ())
        if not fields:
            return (None,) * len(self.shapes.shape[name])
        return self.lengths.axes(fields, self.first.shape[name], self.shapes.shape[name])

    def _sum(self, item: int, node: Node) -> Sum | int:
        """MACs of a node as a sum of products of lengths."""
        known: dict[str, tuple[int | None, ...]] = {}

        def shape_of(name: str) -> tuple[Any, ...]:
            known[name] = self._axes(node, name)
            pairs = zip(known[name], self.shapes.shape[name], strict=True)
            return tuple(n if i is None else Sum.unknown(i) for i, n in pairs)

        try:
            found: Sum = Sum({}) + self._rule(node)(node, shape_of)
            return found
        except TypeError:
            names = {n for n in (*node.inputs, *node.outputs) if n}
            self._asked[item] = _Asked(node, {n: self._axes(node, n) for n in sorted(names)})
            return 0

    def _rule(self, node: Node) -> Any:
        rule = self._rules.find(node, self.model.opsets.get(node.domain, 0))
        assert rule is not None, "only nodes that count are listed"
        return rule.macs

    def _node_values(self, lengths: IntArray) -> IntArray:
        values = self._macs.values(lengths)
        for item, asked in self._asked.items():
            values[item] = self._ask(asked, lengths)
        return values

    def _ask(self, asked: _Asked, lengths: IntArray) -> int:
        def shape_of(name: str) -> tuple[int, ...]:
            pairs = zip(asked.known[name], self.shapes.shape[name], strict=True)
            return tuple(n if i is None else int(lengths[i]) for i, n in pairs)

        return int(self._rule(asked.node)(asked.node, shape_of))

    def evaluate(self, alive: BoolArray) -> Cost:
        """The cost of keeping these channels.

        Args:
            alive: shape (channels,).
        """
        lengths = self.lengths.evaluate(alive)
        params, size = self._weights.evaluate(lengths, alive)
        return Cost(int(self._node_values(lengths).sum()), params, size + self._rest)

    def slopes(self, alive: BoolArray, weight: Mapping[str, float]) -> FloatArray:
        """Weighted cost that one more channel of each part adds, parts in the order of Dims.

        Args:
            weight: of one MAC, parameter or byte, by name.
        """
        lengths = self.lengths.evaluate(alive)
        macs = np.full(len(self._counted), weight.get("macs", 0.0))
        found = self._macs.slopes(lengths, macs)
        for item, asked in self._asked.items():
            now = float(self._node_values(lengths)[item]) * weight.get("macs", 0.0)
            for axis in {i for axes in asked.known.values() for i in axes if i is not None}:
                found[axis] += now / max(int(lengths[axis]), 1)
        found += self._weights.slopes(lengths, weight)
        return self.lengths.by_part(alive, found)

    def charges(self, alive: BoolArray, name: str) -> list[tuple[float, frozenset[int]]]:
        """What a target is made of at these channels: (amount, Dims it depends on)."""
        lengths = self.lengths.evaluate(alive)
        if name != "macs":
            return self._weights.charges(lengths, name)
        values = self._node_values(lengths)
        return [
            (float(v), frozenset(self.lengths.dims_of(sorted(self._axes_of(item)))))
            for item, v in enumerate(values)
        ]

    def _axes_of(self, item: int) -> set[int]:
        if item in self._asked:
            axes = self._asked[item].known.values()
            return {i for found in axes for i in found if i is not None}
        return set(self._macs.touched(item).tolist())


class _Weights:
    """Stored elements: each initializer once for each way in which a plan takes it."""

    def __init__(self, model: Model, dims: Dims, lengths: Lengths) -> None:
        self._dims, self._lengths = dims, lengths
        uses = _uses(model, dims)
        counted = learned(model)
        forms: list[Sum | int] = []
        bits, params = [], []
        self._forks: list[list[tuple[int, tuple[Field, ...]]]] = []
        self._fixed = [learned_inside(model), 0]
        for name, tensor in model.initializers.items():
            if tensor.data_type == TensorProto.STRING:
                self._fixed[1] += tensor_bytes(tensor, prod(tensor.dims))
                continue
            distinct = uses.get(name, [()])
            if len(distinct) > 1:
                self._forks.append([(len(forms) + i, f) for i, f in enumerate(distinct)])
            for fields in distinct:
                shape = tuple(tensor.dims)
                axes = lengths.axes(fields, shape, shape) if fields else (None,) * len(shape)
                forms.append(_elements(shape, axes))
                bits.append(BITS[tensor.data_type])
                params.append(name in counted)
        self._table = Table.of(forms)
        self._bits, self._params = np.array(bits, np.int64), np.array(params, np.int64)

    def evaluate(self, lengths: IntArray, alive: BoolArray) -> tuple[int, int]:
        """(parameters, bytes) of the initializers."""
        elements = self._table.values(lengths)
        for fork in self._forks:
            seen = set[tuple[tuple[tuple[int, ...], bytes], ...]]()
            for item, fields in fork:
                masks = [alive[self._dims.of[f.ids]] for f in fields]
                key = tuple(sorted((m.shape, m.tobytes()) for m in masks if not m.all()))
                if key in seen:
                    elements[item] = 0
                seen.add(key)
        size = -(-elements * self._bits // 8)
        return int(elements @ self._params) + self._fixed[0], int(size.sum()) + self._fixed[1]

    def charges(self, lengths: IntArray, name: str) -> list[tuple[float, frozenset[int]]]:
        """Stored elements or bytes of each form of a weight, with the Dims it depends on."""
        each = self._params if name == "params" else self._bits / 8
        amounts = self._table.values(lengths) * each
        return [
            (float(amount), frozenset(self._lengths.dims_of(self._table.touched(item).tolist())))
            for item, amount in enumerate(amounts)
        ]

    def slopes(self, lengths: IntArray, weight: Mapping[str, float]) -> FloatArray:
        """Weighted cost that one more position of each axis adds."""
        each = self._params * weight.get("params", 0.0)
        return self._table.slopes(lengths, each + self._bits / 8 * weight.get("bytes", 0.0))


def _elements(shape: tuple[int, ...], axes: tuple[int | None, ...]) -> Sum | int:
    found: Sum | int = 1
    for length, axis in zip(shape, axes, strict=True):
        found = found * (length if axis is None else Sum.unknown(axis))
    return found


def _uses(model: Model, dims: Dims) -> dict[str, list[tuple[Field, ...]]]:
    """For each initializer the uses that a plan may take unlike each other."""
    found: dict[str, dict[tuple[Any, ...], tuple[Field, ...]]] = {}
    sources: dict[Slot, tuple[Field, ...]] = {
        slot: s.fields for slot, s in dims.ties.sources.items() if s.initializer
    }
    for name in model.initializers:
        readers: list[tuple[Field, ...]] = [
            sources.get((node.key, slot), ()) for node, slot in model.consumers.get(name, ())
        ]
        if name in model.captured or name in model.output_names or not readers:
            readers.append(())
        for fields in readers:
            key = tuple((f.axes, f.thin, dims.of[f.ids].tobytes()) for f in fields)
            found.setdefault(name, {})[key] = fields
    return {name: list(ways.values()) for name, ways in found.items()}
