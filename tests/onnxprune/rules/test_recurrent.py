"""Recurrent cells: units are cut from every gate, and from what they are fed back to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

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
        states: "" for none, else how initial states come: "zeros", "learned", "input".
        last: the second cell hands on its last state, not the sequence.
    """
    rng = np.random.default_rng(seed)
    weights: list[TensorProto] = []
    nodes = []

    def weight(name: str, *shape: int) -> str:
        array = rng.standard_normal(shape).astype(np.float32) * 0.5
        weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(name: str, values: Any) -> str:
        weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    nodes.append(helper.make_node("MatMul", ["x", weight("first", 3, INPUTS)], ["x0"]))
    if states == "zeros":
        shape = constant("shape", [2 * directions, 2, HIDDEN])
        nodes.append(helper.make_node("ConstantOfShape", [shape], ["zeros"]))
    for number in range(2):
        width = INPUTS if number == 0 else HIDDEN * directions
        gates = GATES[op] * HIDDEN
        operands = [
            f"x{number}",
            weight(f"W{number}", directions, gates, width),
            weight(f"R{number}", directions, gates, HIDDEN),
            weight(f"B{number}", directions, 2 * gates),
            "lengths" if "lengths" in extra else "",
        ]
        for state in STATES[op][1:]:
            operands.append(_state(states, state, number, directions, nodes, weight, constant))
        if "peepholes" in extra:
            operands.append(weight(f"P{number}", directions, 3 * HIDDEN))
        out = [f"y{number}", f"h{number}"]
        direction = "bidirectional" if directions == 2 else attributes.get("direction", "forward")
        given = {k: v for k, v in attributes.items() if k != "direction"}
        nodes.append(
            helper.make_node(
                op, operands, out, f"cell{number}", hidden_size=HIDDEN, direction=direction, **given
            )
        )
        flat = constant(f"flat{number}", [0, 0, -1])
        name = "hn" if last and number else f"y{number}"
        perm = [1, 0, 2] if last and number else [0, 2, 1, 3]
        source = f"h{number}" if last and number else name
        nodes.append(helper.make_node("Transpose", [source], [f"t{number}"], perm=perm))
        shape = constant("row", [0, -1]) if last and number else flat
        nodes.append(helper.make_node("Reshape", [f"t{number}", shape], [f"x{number + 1}"]))
    nodes.append(
        helper.make_node("MatMul", ["x2", weight("last", HIDDEN * directions, CLASSES)], ["out"])
    )
    batch: int | str = 2 if states or extra else "n"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, batch, 3])]
    if "lengths" in extra:
        weights.append(numpy_helper.from_array(np.array([4, 2], np.int32), "lengths"))
    if states == "input":
        inputs += [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [directions, 2, HIDDEN])
            for n in STATES[op][1:]
        ]
    ends = [batch, CLASSES] if last else [4, batch, CLASSES]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ends)]
    graph = helper.make_graph(nodes, "cells", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _state(
    kind: str, state: str, number: int, directions: int, nodes: Any, weight: Any, constant: Any
) -> str:
    name = f"{state}{number}"
    if kind == "learned":
        return str(weight(name, directions, 2, HIDDEN))
    if kind == "input":
        return state
    if kind == "zeros":
        bounds = [
            constant(f"{name}_from", [number * directions]),
            constant(f"{name}_to", [(number + 1) * directions]),
            constant(f"{name}_axis", [0]),
        ]
        nodes.append(helper.make_node("Slice", ["zeros", *bounds], [name]))
        return name
    return ""


CASES = [
    {"op": op, "directions": d, **more}
    for op in GATES
    for d in (1, 2)
    for more in (
        {},
        {"direction": "reverse"} if d == 1 else {"last": True},
        {"states": "zeros"},
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
    dim = next(d for d in found.dims.free if d.name == "W0")
    removed = np.zeros(found.dims.count, np.bool_)
    removed[dim.parts[0][:4]] = True
    removed[dim.parts[1][2:]] = True
    made = cut_at(found, removed)
    rows = made.model.array("W0")
    whole = found.model.array("W0").reshape(2, 4, HIDDEN, INPUTS)
    assert np.array_equal(rows[0].reshape(4, 2, INPUTS), whole[0][:, 4:])
    assert np.array_equal(rows[1].reshape(4, 2, INPUTS), whole[1][:, :2])
    cell = next(n for n in made.model.nodes if n.name == "cell0")
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
    for number in range(2):
        cell = next(n for n in made.model.nodes if n.name == f"cell{number}")
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
