"""Recurrent cells: units are cut from every gate, and from what they are fed back to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": ("", "start", "cell"), "GRU": ("", "start"), "RNN": ("", "start")}
INPUTS, HIDDEN, CLASSES = 5, 6, 3


def cells(
    op: str,
    directions: int = 1,
    *,
    extra: tuple[str, ...] = (),
    states: str = "",
    last: bool = False,
    seed: int = 0,
    **attributes: Any,
) -> ModelProto:
    """MatMul > two cells > MatMul; the units of each cell are free, and what the first reads.

    Args:
        extra: "peepholes" or "lengths".
        states: "" for none, else how initial states come: "zeros" of all cells at once, "joined"
            from those of one direction, "learned", "input".
        last: the second cell hands on its last state, not the sequence.
    """
    b = Builder(seed)
    if directions == 2:
        attributes["direction"] = "bidirectional"
    lengths = b.add([4, 2], np.int32) if "lengths" in extra else ""
    zeros = ""
    if states == "zeros":
        zeros = b.node("ConstantOfShape", b.ints(2 * directions, 2, HIDDEN))
    h = b.node("MatMul", "x", b.weight(3, INPUTS))
    for number, width in enumerate((INPUTS, HIDDEN * directions)):
        gates = GATES[op] * HIDDEN
        shapes = (directions, gates, width), (directions, gates, HIDDEN), (directions, 2 * gates)
        given = [_state(b, states, name, number, directions, zeros) for name in STATES[op][1:]]
        peepholes = [b.weight(directions, 3 * HIDDEN)] if "peepholes" in extra else []
        operands = [h, *(b.weight(*s) for s in shapes), lengths, *given, *peepholes]
        h = b.node(op, *operands, outputs=2, hidden_size=HIDDEN, **attributes)
        if last and number:
            h = b.node("Reshape", b.node("Transpose", f"{h}_1", perm=[1, 0, 2]), b.ints(0, -1))
        else:
            h = b.node("Reshape", b.node("Transpose", h, perm=[0, 2, 1, 3]), b.ints(0, 0, -1))
    y = b.node("MatMul", h, b.weight(HIDDEN * directions, CLASSES))
    batch: int | str = 2 if states or extra else "n"
    inputs: dict[str, list[int | str]] = {"x": [4, batch, 3]}
    if states == "input":
        inputs |= {name: [directions, 2, HIDDEN] for name in STATES[op][1:]}
    return b.model(inputs, {y: [batch, CLASSES] if last else [4, batch, CLASSES]}, opset=17)


def _state(b: Builder, kind: str, name: str, number: int, directions: int, zeros: str) -> str:
    if kind == "learned":
        return b.weight(directions, 2, HIDDEN)
    if kind == "zeros":
        bounds = b.ints(number * directions), b.ints((number + 1) * directions), b.ints(0)
        return b.node("Slice", zeros, *bounds)
    if kind == "joined":
        one = b.node("Expand", b.add(np.zeros(1)), b.ints(1, 2, HIDDEN))
        return b.node("Concat", *[one] * directions, axis=0)
    return name if kind == "input" else ""


CASES = [
    {"op": op, "directions": d, **more}
    for op in GATES
    for d in (1, 2)
    for more in (
        {},
        {"direction": "reverse"} if d == 1 else {"last": True},
        {"states": "zeros"},
        {"states": "joined"},
        {"states": "learned"},
        {"extra": ("lengths",), "last": True},
    )
] + [
    {"op": "GRU", "linear_before_reset": 1},
    {"op": "GRU", "directions": 2, "linear_before_reset": 1},
    {"op": "LSTM", "extra": ("peepholes",)},
    {"op": "LSTM", "directions": 2, "extra": ("peepholes",), "states": "learned"},
    {"op": "LSTM", "clip": 0.7, "input_forget": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@given(seed=st.integers(0, 1000))
@settings(max_examples=4, deadline=None)
def test_cutting_equals_silencing(case: dict[str, Any], seed: int) -> None:
    """A cell without some units is the cell whose units nobody reads, fed back or on."""
    model = cells(seed=seed, **case)
    found, *_ = assert_cut_equals_mask(model, seed)
    rows = case.get("directions", 1)
    assert found.widths() == sorted([(1, INPUTS), (rows, HIDDEN), (rows, HIDDEN)])


def test_directions_keep_units_of_their_own() -> None:
    """Both directions keep equal counts, not the same units."""
    found = flow_of(cells("LSTM", 2))
    first = next(n for n in found.model.nodes if n.op == "LSTM")
    dim = next(d for d in found.dims.free if d.name == first.inputs[1])
    removed = np.zeros(found.dims.count, np.bool_)
    removed[dim.parts[0][:4]] = True
    removed[dim.parts[1][2:]] = True
    made = cut_at(found, removed)
    rows = made.model.array(first.inputs[1])
    whole = found.model.array(first.inputs[1]).reshape(2, 4, HIDDEN, INPUTS)
    assert np.array_equal(rows[0].reshape(4, 2, INPUTS), whole[0][:, 4:])
    assert np.array_equal(rows[1].reshape(4, 2, INPUTS), whole[1][:, :2])
    cell = next(n for n in made.model.nodes if n.op == "LSTM")
    assert cell.attr("hidden_size") == 2


def test_a_state_from_outside_holds_the_units() -> None:
    """An initial state that the caller gives has a length he knows."""
    found = flow_of(cells("GRU", states="input"))
    assert found.widths() == [(1, INPUTS)]
    assert "graph input `start`" in found.pins()


def test_a_state_of_zeros_is_left_out() -> None:
    """Zeros are the default: what the exporter computes for all cells at once ties nothing."""
    found = flow_of(cells("LSTM", 2, states="zeros"))
    made = cut_at(found, random_removed(found.dims, 1))
    made_cells = [n for n in made.model.nodes if n.op == "LSTM"]
    assert len(made_cells) == 2
    for cell in made_cells:
        assert cell.input(5) == cell.input(6) == ""


def test_batch_first_cells_are_followed() -> None:
    """The other layout has the same units (ONNX Runtime does not run it)."""
    model = cells("LSTM", 2)
    nodes = model.graph.node
    for node in nodes:
        if node.op_type == "LSTM":
            node.attribute.append(helper.make_attribute("layout", 1))
        if node.op_type == "Transpose":
            node.op_type = "Identity"
            del node.attribute[:]
    found = flow_of(model)
    assert found.widths() == [(1, INPUTS), (2, HIDDEN), (2, HIDDEN)]
    cut_at(found, random_removed(found.dims, 3))
