"""Recurrent cells: hidden units of each direction are channels."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxprune.identity.combine import Combiner, Operand, Result
from onnxprune.identity.fields import Field, IntArray, place
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import ShapeOf, rules
from onnxprune.rules.wiring import Wiring
from onnxprune.shape.shapes import Shape

Axes = tuple[str | None, ...]

# Operators that keep zeros zero.
CARRIERS = frozenset(
    "Cast Expand Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze".split()
)
STATES = (5, 6)


@rules.on("LSTM", "GRU", "RNN")
def cell(flow: Flow, node: Node) -> None:
    """Units of each direction are rows of W, R and B in every gate, and columns of R."""
    zeros = [i for i in STATES if _is_zero(flow, node.input(i))]
    for slot in zeros:  # as good as absent: `resize_cell` leaves them out
        flow.pin(flow.fields(slot), f"{flow.where()}: initial state of zeros")
    state: Axes = ("n", "d", "h") if node.attr("layout", 0) else ("d", "n", "h")
    operands = [o for o in _operands(flow, node, state) if o.slot not in zeros]
    work = Combiner(flow, [o for o in operands if node.input(o.slot)], "units")
    work.gather()
    work.follow_order()
    work.fix()
    work.tie()
    work.read(Result(state))
    kept = work.survive(Result(state))
    units = max(kept, key=lambda f: (work.space.index("h") in f.axes, len(f.axes)), default=None)
    if units is not None and work.space.index("h") in units.axes:
        _recur(flow, node, place(units, work.space, ("d", None, "h")))
        for direction in np.moveaxis(units.ids, work.space.index("d"), 0):
            flow.part(direction)  # a cell has both of its directions
    elif not flow.is_weight(2):
        flow.pin(flow.fields(2), f"{flow.where()}: its units are held")
    sequence: Axes = ("n", None, "d", "h") if node.attr("layout", 0) else (None, "d", "n", "h")
    for output, labels in enumerate((sequence, state, state)[: len(node.outputs)]):
        flow.put(output, [place(f, work.space, labels) for f in kept])


def _operands(flow: Flow, node: Node, state: Axes) -> list[Operand]:
    """What carries units, less R, whose columns are units too."""
    d, rows, inputs = _shape(flow, node, 1)
    hidden = _shape(flow, node, 2)[2]
    gates = rows // max(hidden, 1)
    own = (("d", "h"),)
    sequence: Axes = ("n", None, "i") if node.attr("layout", 0) else (None, "n", "i")
    found = [
        Operand(0, sequence),
        Operand(1, ("d", "g", "h", "i"), (d, gates, hidden, inputs), own, ("g",)),
        Operand(3, ("d", "b", "h"), (d, 2 * gates, hidden), own, ("b",)),
        Operand(4, ("n",)),
        Operand(7, ("d", "p", "h"), (d, 3, hidden), own, ("p",)),
    ]
    for slot in STATES:
        joint = flow.is_weight(slot) or any(len(f.axes) > 1 for f in flow.fields(slot))
        labels = state if joint else tuple(x if x != "d" else None for x in state)
        found.append(Operand(slot, tuple(labels), None, own))
    return found


def _shape(flow: Flow, node: Node, slot: int) -> Shape:
    shape = flow.shape(node.inputs[slot])
    assert shape is not None, "the walk only visits nodes whose shapes are known"
    return shape


def _recur(flow: Flow, node: Node, units: Field) -> None:
    """Rows and columns of R are the units.

    Args:
        units: shape (directions, 1, hidden), each of the lengths possibly 1.
    """
    d, rows, hidden = shape = _shape(flow, node, 2)
    view = (d, rows // hidden, hidden, hidden)
    where = f"{flow.where()} cannot lose positions of this axis"

    def make() -> list[Field]:
        across = tuple(a for a in (0,) if d > 1)
        tables = flow.fresh(2 * d * hidden).reshape(2, d, 1, hidden)
        tall = np.broadcast_to(tables[0], view[:3]).reshape(d, rows, 1)
        return [Field(tall, (*across, 1), 1), Field(tables[1], (*across, 2), 2)]

    fields = (
        flow.source(2, make, node.inputs[2]) if flow.is_weight(2) else flow.fields(2)
    )  # fmt: skip
    for axis in (1, 2):
        if not any(axis in f.axes for f in fields):
            flow.pin([units], f"{flow.where()}: lined up with `{node.inputs[2]}`, axis {axis}")
    for one in fields:
        if (1 in one.axes and 2 in one.axes) or set(one.axes) == {0}:
            flow.pin([one, units], where)
        elif 1 in one.axes:
            [seen] = flow.reshape(f"{node.key}/2/units", [one], [(shape, view)])
            flow.equal(_ids(seen), np.expand_dims(units.ids, 3))
        else:
            flow.equal(one.ids, units.ids)
            flow.contract(2, one, beside=not flow.is_weight(2), alone=flow.is_weight(2))


def _ids(seen: Field | None) -> IntArray:
    assert seen is not None, "rows of R vary along the units"
    return seen.ids


def _is_zero(flow: Flow, name: str) -> bool:
    """True for a tensor of zeros, whatever its shape and whatever carries it."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        name = todo.pop()
        behind = [] if name in seen else _behind_zeros(flow, name)
        if behind is None:
            return False
        seen.add(name)
        todo += behind
    return True


def _behind_zeros(flow: Flow, name: str) -> list[str] | None:
    """What a tensor of zeros is made of; None where it is not one whatever these are."""
    model = flow.model
    if name in model.initializers:
        is_known = name not in model.overridable and not np.any(model.array(name))
        return [] if is_known else None
    node = model.producer.get(name)
    if node is None or node.domain:
        return None
    if node.op == "ConstantOfShape":
        fill = node.attr("value")
        return [] if fill is None or not np.any(fill) else None
    if node.op == "Concat":
        return list(node.inputs)
    return [node.inputs[0]] if node.op in CARRIERS else None


@rules.macs("LSTM", "GRU", "RNN")
def cell_macs(node: Node, shape_of: ShapeOf) -> int:
    """Each step of each sequence multiplies by every weight of W and R once."""
    steps = prod(shape_of(node.inputs[0])[:2])
    return steps * (prod(shape_of(node.inputs[1])) + prod(shape_of(node.inputs[2])))


@rules.rewire("LSTM", "GRU", "RNN")
def resize_cell(wiring: Wiring, node: Node) -> None:
    """The attribute follows the units; a state of zeros of the old size is left out."""
    hidden = wiring.after(node.inputs[2])[0][2]
    if hidden == wiring.before(node.inputs[2])[0][2]:
        return
    wiring.set(node, hidden_size=hidden)
    for slot in STATES:
        if node.input(slot) and wiring.after(node.inputs[slot])[0][2] != hidden:
            wiring.leave_out(node, slot)
