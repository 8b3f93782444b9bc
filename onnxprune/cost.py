"""MACs, parameters and bytes of a plan, known without rewriting.

One multiply-add of Conv, ConvTranspose, Gemm, MatMul, Einsum, recurrent cells and attention is
one MAC. A node's MACs follow from shapes alone, so the cost of a plan is the same formulas over
the shapes the plan leads to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import TensorProto, helper

from onnxprune.dims import BoolArray, Dims
from onnxprune.fields import Field, IntArray
from onnxprune.graph import Model, Node
from onnxprune.rules.registry import Rules
from onnxprune.shapes import Shape, Shapes

# Element types a learned weight may have; integers of 32 and 64 bits hold shapes and indices,
# but for the bias of a quantised layer.
WEIGHT_TYPES = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16,
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a model costs for one run at given sizes."""

    macs: int
    params: int
    bytes: int

    def share(self, whole: Cost) -> dict[str, float]:
        """Ratio to another cost, by name."""
        return {
            name: getattr(self, name) / max(getattr(whole, name), 1)
            for name in ("macs", "params", "bytes")
        }


def model_cost(model: Model, shapes: Shapes, rules: Rules) -> Cost:
    """The cost of a model as it stands, at the sizes that `shapes` were evaluated for."""
    shape_of = shapes.shape.__getitem__
    macs = sum(n for n in node_macs(model, shapes, rules).values())
    weights = {
        n: t for n, t in model.initializers.items() if is_weight(t) and n in model.consumers
    }
    params = sum(prod(shape_of(n)) for n in weights)
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
            found[node.key] = rule.macs(node, shapes.shape.__getitem__)
    return found


def is_weight(tensor: TensorProto) -> bool:
    """True for a learned initializer, quantised ones included; masks and shapes are none."""
    return tensor.data_type in WEIGHT_TYPES


def tensor_bytes(tensor: TensorProto, elements: int) -> int:
    """Bytes of the stored elements of an initializer."""
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return -(-elements // 2)
    if tensor.data_type == TensorProto.STRING:
        return sum(len(s) for s in tensor.string_data)
    return elements * int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def rest_bytes(model: Model) -> int:
    """Bytes of the file that are no weights: the graph itself, names, metadata."""
    stored = sum(tensor_bytes(t, prod(t.dims)) for t in model.initializers.values())
    return max(int(model.proto.ByteSize()) - stored, 0)


@dataclass(frozen=True, eq=False)
class AxisSize:
    """Length of one axis of a tensor as a function of the channels alive.

    `channels` has shape (fields, rows, positions): a position is there while all its channels
    are. The length is that of the first row that has any.
    """

    channels: IntArray
    counts: IntArray
    """How often each position stands for equal ones; shape (positions,)."""

    def length(self, alive: BoolArray) -> int:
        """Positions left."""
        there = alive[self.channels].all(axis=0)
        lengths = there @ self.counts
        return int(lengths[0]) if len(lengths) == 1 else int(lengths.max())


class CostModel:
    """Evaluates plans over one model: shapes as functions of the channels alive, then cost."""

    def __init__(self, model: Model, dims: Dims, shapes: Shapes, first: Shapes, rules: Rules):
        """
        Args:
            shapes: at the sizes cost is counted for.
            first: at the sizes the flow ran on.
        """
        self.model, self.dims, self.shapes, self.first = model, dims, shapes, first
        self.whole = model_cost(model, shapes, rules)
        self._macs = self._mac_nodes(rules)
        self._weights = self._weight_sources()
        self._axes: dict[tuple[str, str], list[AxisSize | int]] = {}
        self._rest = rest_bytes(model)
        self._fixed_params, self._fixed_bytes = self._fixed()

    def _mac_nodes(self, rules: Rules) -> list[tuple[Node, int]]:
        counted = node_macs(self.model, self.shapes, rules)
        nodes = []
        for node in self.model.nodes:
            if counted.get(node.key):
                nodes.append((node, counted[node.key]))
        self._rules = rules
        return nodes

    def _weight_sources(self) -> dict[str, tuple[str, int | str]]:
        """The use of each initializer that its cost is read from."""
        found: dict[str, tuple[str, int | str]] = {}
        for slot, source in self.dims.ties.sources.items():
            if source.initializer:
                found.setdefault(source.initializer, slot)
        return found

    def _fixed(self) -> tuple[int, int]:
        params = size = 0
        for name, tensor in self.model.initializers.items():
            if name not in self._weights:
                elements = prod(tensor.dims)
                params += elements * (is_weight(tensor) and name in self.model.consumers)
                size += tensor_bytes(tensor, elements)
        return params, size

    def evaluate(self, alive: BoolArray) -> Cost:
        """The cost of keeping these channels.

        Args:
            alive: shape (channels,).
        """
        macs = 0
        for node, _ in self._macs:
            macs += self._node_macs(node, alive)
        params, size = self._fixed_params, self._fixed_bytes
        for name, slot in self._weights.items():
            tensor = self.model.initializers[name]
            elements = prod(self._lengths(name, slot, alive))
            params += elements * is_weight(tensor)
            size += tensor_bytes(tensor, elements)
        return Cost(int(macs), int(params), int(size + self._rest))

    def node_costs(self, alive: BoolArray) -> Mapping[str, int]:
        """MACs of each node for these channels, by node key."""
        return {node.key: self._node_macs(node, alive) for node, _ in self._macs}

    def _node_macs(self, node: Node, alive: BoolArray) -> int:
        rule = self._rules.find(node, self.model.opsets.get(node.domain, 0))
        assert rule is not None, "only nodes that count are listed"
        assert rule.macs is not None, "only nodes that count are listed"

        def shape_of(name: str) -> Shape:
            slot = node.inputs.index(name) if name in node.inputs else 0
            return self._lengths(name, (node.key, slot), alive)

        return rule.macs(node, shape_of)

    def _lengths(self, name: str, slot: tuple[str, int | str], alive: BoolArray) -> Shape:
        axes = self._sizes(name, slot)
        return tuple(a if isinstance(a, int) else a.length(alive) for a in axes)

    def _sizes(self, name: str, slot: tuple[str, int | str]) -> list[AxisSize | int]:
        weight = name in self.model.initializers
        key = (name, str(slot) if weight else "")
        if key not in self._axes:
            source = self.dims.ties.sources.get(slot) if weight else None
            fields = source.fields if source else () if weight else self.dims.ties.fields.get(
                name, ())  # fmt: skip
            shape = self.shapes.shape[name]
            base = self.first.shape[name]
            self._axes[key] = [
                self._axis([f for f in fields if a in f.axes], a, n, base[a])
                for a, n in enumerate(shape)
            ]
        return self._axes[key]

    def _axis(self, fields: list[Field], axis: int, length: int, base: int) -> AxisSize | int:
        if not fields:
            return length
        rows: list[IntArray] = []
        for one in fields:
            ids = self.dims.of[one.ids]
            if len(one.axes) > 1 and one.thin != axis:
                # A row is there while any of its positions is: look at one row's channels.
                return self._row_axis(one, axis, length, base)
            rows.append(np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis]))
        deepest = max(len(r) for r in rows)
        rows = [r if len(r) == deepest else np.repeat(r[:1], deepest, axis=0) for r in rows]
        table = np.stack(rows)  # (fields, rows, positions)
        table, counts = _squeeze(table, length, base)
        return AxisSize(table, counts)

    def _row_axis(self, one: Field, axis: int, length: int, base: int) -> AxisSize | int:
        """A row axis: its length is the number of rows whose parent lives."""
        ids = self.dims.of[one.ids]
        first = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]
        parents = self.dims.parent[first]
        if (parents < 0).any():
            return length
        table, counts = _squeeze(parents[None, None, :], length, base)
        return AxisSize(table, counts)


def _squeeze(table: IntArray, length: int, base: int) -> tuple[IntArray, IntArray]:
    """Join equal positions into one with a count; scale from the flow's sizes to cost's."""
    flat = table.reshape(-1, table.shape[-1])
    unique, counts = np.unique(flat, axis=1, return_counts=True)
    if length != base:
        counts = counts * length // base
    return unique.reshape(*table.shape[:-1], unique.shape[-1]), counts
