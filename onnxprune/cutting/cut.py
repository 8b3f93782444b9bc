"""Cuts a model: slices weights, then repairs attributes and shape constants node by node.

The original's proto is never edited. Shape arithmetic of the growing cut graph is evaluated at
both sets of sizes as it is built; where an operand differs from what the flow says is needed,
that entry is corrected by a constant, or by a ratio where it is dynamic. A number computed from
a shape that is no shape (an attention scale, a divisor) is held at its old value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from onnxprune.cutting.assemble import Taken, assemble
from onnxprune.cutting.compact import Take, lengths, takes
from onnxprune.errors import ToolDefect
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node
from onnxprune.rules.registry import Rules
from onnxprune.rules.wiring import Ints
from onnxprune.shape.shapes import Array, Evaluator, Shape, Shapes, describe
from onnxprune.shape.sizes import Sizes


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut model with what is known of its shapes, and what was taken from each weight."""

    model: Model
    first: Shapes
    second: Shapes
    taken: Taken
    """For each initializer of the cut model: its source in the original, and the takes."""


class Grower(Evaluator):
    """Shapes of a graph that is being built."""

    def __init__(self, model: Model, inputs: dict[str, Shape]) -> None:
        super().__init__(model, inputs)
        self.constants: dict[str, Array] = {}

    def add(self, name: str, array: Array, *, known: bool) -> None:
        """A new initializer; `known` where it may be part of shape arithmetic."""
        self._set(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        if known:
            self.constants[name] = array

    def resize(self, name: str, dtype: int, shape: Shape) -> None:
        """A cut weight."""
        self._set(name, dtype, shape)

    def value(self, name: str) -> Array | None:
        if name in self.constants:
            return self.constants[name]
        return super().value(name)


@dataclass(eq=False)
class Cutter:
    """State of one cut; implements the `Wiring` that rules speak to."""

    model: Model
    dims: Dims
    shapes: tuple[Shapes, Shapes]
    growers: tuple[Grower, Grower]
    rules: Rules
    alive: BoolArray
    orders: dict[Slot, list[Take]] = field(default_factory=dict)
    """Positions that a weight's use keeps, put into the order in which its data arrives."""
    nodes: list[NodeProto] = field(default_factory=list)
    fresh: dict[str, Array] = field(default_factory=dict)
    """New initializers: shape constants, frozen numbers."""
    uses: dict[str, dict[bytes, str]] = field(default_factory=dict)
    taken: Taken = field(default_factory=dict)
    _takes: dict[str, list[Take]] = field(default_factory=dict)
    _wants: dict[int, tuple[list[int | None], list[int | None]]] = field(default_factory=dict)
    _proto: NodeProto | None = None
    _node: Node = None  # type: ignore[assignment]  # set by step

    # --- the Wiring that rewire rules see --------------------------------------------------

    def takes(self, name: str) -> list[Take]:
        """What a cut takes from a computed value."""
        if name not in self._takes:
            fields = self.dims.ties.fields.get(name, ())
            shape = self.shapes[0].shape.get(name, ())
            self._takes[name] = takes(fields, shape, self.alive) if fields else []
        return self._takes[name]

    def before(self, name: str) -> tuple[Shape, Shape]:
        return self.shapes[0].shape[name], self.shapes[1].shape[name]

    def after(self, name: str) -> tuple[Shape, Shape]:
        old, other = self.before(name)
        if name in self.model.initializers:
            grown = self.growers[0].known.shape
            now = grown[self._renamed(name)]
            return now, now
        new = lengths(old, self.takes(name))
        ratio = [Fraction(n, o) if o else Fraction(1) for n, o in zip(new, old, strict=True)]
        return new, tuple(int(n * r) for n, r in zip(other, ratio, strict=True))

    def _renamed(self, name: str) -> str:
        """The name under which the current node reads an initializer."""
        assert self._proto is not None, "only asked while a node is rewired"
        slot = list(self._node.inputs).index(name)
        return str(self._proto.input[slot])

    def kept(self, name: str, axis: int) -> Ints | None:
        found = self.takes(name)
        if name in self.model.initializers:
            slot = list(self._node.inputs).index(name)
            source = self.dims.ties.sources.get((self._node.key, slot))
            shape = self.shapes[0].shape[name]
            found = takes(source.fields, shape, self.alive) if source else []
        return next((t.first.astype(np.int64) for t in found if t.axis == axis), None)

    def values(self, node: Node, slot: int) -> tuple[Ints, Ints] | None:
        name = node.input(slot)
        if name in self.model.initializers:
            array = self.model.array(name)
            return array, array
        if name in self.shapes[0].value and name in self.shapes[1].value:
            return self.shapes[0].value[name], self.shapes[1].value[name]
        return None

    def want(self, node: Node, slot: int, first: Any, second: Any) -> None:
        self._wants[slot] = (_entries(first), _entries(second))

    def set(self, node: Node, **attributes: Any) -> None:
        assert self._proto is not None, "only called while a node is rewired"
        kept = [a for a in self._proto.attribute if a.name not in attributes]
        new = [helper.make_attribute(k, v) for k, v in attributes.items() if v is not None]
        _replace(self._proto, kept + new)

    def replace_by_gather(self, node: Node, axis: int, indices: Ints) -> None:
        assert self._proto is not None, "only called while a node is rewired"
        name = self._constant(f"{node.key}_indices", np.asarray(indices, np.int64))
        self._proto.op_type = "Gather"
        self._proto.input[:] = [self._proto.input[0], name]
        _replace(self._proto, [helper.make_attribute("axis", axis)])
        self._wants.clear()

    def replace_by_reshape(self, node: Node, first: Shape, second: Shape) -> None:
        assert self._proto is not None, "only called while a node is rewired"
        target = [n if n == m else -1 for n, m in zip(first, second, strict=True)]
        assert target.count(-1) < 2, "a Reshape infers one length"
        name = self._constant(f"{node.key}_shape", np.asarray(target, np.int64))
        self._proto.op_type = "Reshape"
        self._proto.input[:] = [self._proto.input[0], name]
        _replace(self._proto, [])
        self._wants.clear()

    def leave_out(self, node: Node, slot: int) -> None:
        assert self._proto is not None, "only called while a node is rewired"
        self._proto.input[slot] = ""

    # --- one node ----------------------------------------------------------------------------

    def step(self, node: Node) -> None:
        """Copy a node into the cut graph with its weights, attributes and operands put right."""
        self._node, self._proto = node, _copy(node)
        self._wants = {}
        for slot, name in enumerate(node.inputs):
            if name in self.model.initializers:
                self._proto.input[slot] = self._weight(node, slot, name)
        rule = self.rules.find(node, self.model.opsets.get(node.domain, 0))
        outputs_known = all(n in self.shapes[0].value for n in node.outputs if n)
        carries = any(n in self.dims.ties.fields for n in (*node.inputs, *node.outputs))
        shaped = all(n in self.shapes[0].shape for n in (*node.inputs, *node.outputs) if n)
        if rule is not None and rule.rewire is not None and shaped and (
            carries or not outputs_known
        ):
            rule.rewire(self, node)
        for slot, (first, second) in sorted(self._wants.items()):
            self._satisfy(node, slot, first, second)
        if not outputs_known:
            self._freeze(node)
        self.nodes.append(self._proto)
        made = Node(self._proto, node.index)
        for grower in self.growers:
            grower.step(made)
        self._check(node)

    def _check(self, node: Node) -> None:
        for name in node.outputs:
            if not name or name not in self.shapes[0].shape or name not in self.shapes[1].shape:
                continue
            want = self.after(name)
            have = tuple(g.known.shape.get(name) for g in self.growers)
            if have != want:
                raise ToolDefect(
                    f"`{name}` would have the shape {have[0]}, its channels say {want[0]}",
                    where=describe(node),
                    hint="please report this with the model",
                )

    def _weight(self, node: Node, slot: int, name: str) -> str:
        """The initializer this use reads: the original's where nothing is taken from it."""
        source = self.dims.ties.sources.get((node.key, slot))
        tensor = self.model.initializers[name]
        shape = tuple(tensor.dims)
        found = takes(source.fields, shape, self.alive) if source else []
        found = found + self.orders.get((node.key, slot), [])
        known = self.uses.setdefault(name, {})
        key = b"".join(_take_key(t) for t in found)
        if key not in known:
            # A body or the caller reads the whole weight under its name.
            whole = name in self.model.captured or name in self.model.output_names
            takes_over = name not in self.taken and not (found and whole)
            new = name if takes_over else self._unused(f"{name}_cut{len(known)}")
            known[key] = new
            self.taken[new] = (name, found)
            for grower in self.growers:
                grower.resize(new, tensor.data_type, lengths(shape, found))
                value = grower.value(name) if new != name else None
                if value is not None and not found:
                    grower.constants[new] = value
                if found:
                    self._forget(grower, name, new, found)
        return known[key]

    def _forget(self, grower: Grower, name: str, new: str, found: list[Take]) -> None:
        """A cut constant is known as what is left of it."""
        whole = Evaluator.value(grower, name)
        if whole is not None:
            for take in found:
                whole = take.apply(np.asarray(whole))
            grower.constants[new] = whole

    def _unused(self, name: str) -> str:
        taken = self.shapes[0].shape
        while name in taken or name in self.fresh or name in self.taken:
            name += "_"
        return name

    def _constant(self, name: str, array: Array) -> str:
        name = self._unused(name)
        self.fresh[name] = array
        for grower in self.growers:
            grower.add(name, array, known=True)
        return name

    # --- operands ------------------------------------------------------------------------------

    def _satisfy(
        self, node: Node, slot: int, first: list[int | None], second: list[int | None]
    ) -> None:
        """Make an operand have the wanted entries; None leaves an entry as it is."""
        assert self._proto is not None, "only called while a node is rewired"
        name = self._proto.input[slot] if slot < len(self._proto.input) else ""
        now = [g.value(name) if name else None for g in self.growers]
        dtype = np.dtype(np.int64) if now[0] is None else now[0].dtype
        have = [[None] * len(w) if v is None else np.ravel(v).tolist()
                for v, w in zip(now, (first, second), strict=True)]  # fmt: skip
        goal = [
            [h if w is None else w for h, w in zip(hs, ws, strict=True)]
            for hs, ws in zip(have, (first, second), strict=True)
        ]
        if goal == have and name:
            return
        scalar = now[0] is not None and now[0].ndim == 0
        if goal[0] == goal[1]:
            array = np.array(goal[0], dtype).reshape(() if scalar else (-1,))
            new = self._constant(f"{node.key}_shape{slot}", array)
        else:
            new = self._scaled(node, name, slot, have, goal, dtype)
        while len(self._proto.input) <= slot:
            self._proto.input.append("")
        self._proto.input[slot] = new

    def _scaled(
        self, node: Node, name: str, slot: int, have: list[Any], goal: list[Any], dtype: Any
    ) -> str:
        """The operand times a ratio for each entry, the same at both sizes."""
        ratios = [
            Fraction(int(g), int(h)) if h else Fraction(1)
            for h, g in zip(have[0], goal[0], strict=True)
        ]
        second = [int(h) * r for h, r in zip(have[1], ratios, strict=True)]
        odd = [i for i, (a, b) in enumerate(zip(second, goal[1], strict=True)) if a != b]
        left = [0] * len(ratios)
        if len(odd) == 1 and node.op == "Reshape" and -1 not in goal[0]:
            ratios[odd[0]], left[odd[0]] = Fraction(0), -1  # the one length that can be inferred
        elif odd:
            raise ToolDefect(
                f"operand {slot} should become {goal[0]} and {goal[1]}, it is {have[0]} and "
                f"{have[1]}: no ratio does both",
                where=describe(node),
            )
        times = np.array([r.numerator for r in ratios], dtype)
        over = np.array([r.denominator for r in ratios], dtype)
        name = self._arithmetic("Mul", name, times, f"{node.key}_shape{slot}_mul")
        name = self._arithmetic("Div", name, over, f"{node.key}_shape{slot}_div")
        return self._arithmetic("Add", name, np.array(left, dtype), f"{node.key}_shape{slot}_add")

    def _arithmetic(self, op: str, name: str, by: Array, out: str) -> str:
        if (by == (op != "Add")).all():
            return name
        out = self._unused(out)
        proto = helper.make_node(op, [name, self._constant(f"{out}_by", by)], [out], name=out)
        self.nodes.append(proto)
        for grower in self.growers:
            grower.step(Node(proto, -1))
        return out

    def _freeze(self, node: Node) -> None:
        """Numbers computed from shapes that meet data keep their old value."""
        assert self._proto is not None, "only called while a node is rewired"
        for slot, name in enumerate(node.inputs):
            old = [s.value.get(name) for s in self.shapes]
            if old[0] is None or old[1] is None or slot in self._wants:
                continue
            if name in self.dims.ties.fields or not (old[0].size and old[1].size):
                continue
            if slot >= len(self._proto.input) or self._proto.input[slot] in self.fresh:
                continue  # a rule put another operand there
            new = [g.value(self._proto.input[slot]) for g in self.growers]
            if all(np.array_equal(a, b) for a, b in zip(old, new, strict=True)):  # type: ignore[arg-type]
                continue
            self._proto.input[slot] = self._held(node, slot, name, old, new)

    def _held(self, node: Node, slot: int, name: str, old: list[Any], new: list[Any]) -> str:
        if np.array_equal(old[0], old[1]):
            return self._constant(f"{node.key}_held{slot}", np.asarray(old[0]))
        ratios = [np.asarray(a) / np.asarray(b) for a, b in zip(old, new, strict=True)]
        if old[0].dtype.kind != "f" or not np.allclose(ratios[0].ravel()[0], ratios):
            raise ToolDefect(
                f"`{name}` depends on both the batch and a channel count", where=describe(node)
            )
        factor = np.asarray(ratios[0].ravel()[0], old[0].dtype)
        return self._arithmetic("Mul", self._proto.input[slot], factor,  # type: ignore[union-attr]
                                f"{node.key}_held{slot}")  # fmt: skip


def cut(
    model: Model,
    dims: Dims,
    sizes: Sizes,
    shapes: tuple[Shapes, Shapes],
    removed: BoolArray,
    rules: Rules,
    orders: dict[Slot, list[Take]] | None = None,
) -> Cut:
    """The model without the removed channels.

    Args:
        removed: shape (channels,).
        orders: what a proof found out about the order in which data arrives.
    Raises: ToolDefect: the graph cannot be made to follow; nothing is handed out then.
    """
    growers = Grower(model, sizes.first), Grower(model, sizes.second)
    work = Cutter(model, dims, shapes, growers, rules, ~removed[dims.of], orders or {})
    for node in model.nodes:
        work.step(node)
    made = assemble(model, work.nodes, work.taken, work.fresh)
    return Cut(made, growers[0].known, growers[1].known, work.taken)


def _copy(node: Node) -> NodeProto:
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    return proto


def _replace(proto: NodeProto, attributes: list[AttributeProto]) -> None:
    del proto.attribute[:]
    proto.attribute.extend(attributes)


def _take_key(take: Take) -> bytes:
    return f"{take.axis}{take.rows}{take.kept.shape}".encode() + take.kept.tobytes()


def _entries(values: Any) -> list[int | None]:
    return [None if v is None else int(v) for v in np.ravel(np.asarray(values, object))]
