"""Shape arithmetic is what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Node
from onnxprune.shape.kernels import (
    KERNELS,
    axes_argument,
    is_flat_order,
    reshape_target,
    slice_arguments,
)

A = np.array([[6, -7, 8], [-9, 2, 5]], np.int64)
B = np.array([[2, 3, -3], [4, -5, 6]], np.int64)
F = np.array([[0.5, 2.0, -1.5], [4.0, 0.25, 3.5]], np.float32)
TWO, AXIS = np.array([2], np.int64), np.array([1], np.int64)
TRUE = np.array([[True, False, True], [False, False, True]])

Case = tuple[str, list[Any], dict[str, Any]]
CASES: list[Case] = [
    *((op, [A, B], {}) for op in ("Add", "Sub", "Mul", "Div", "Mod", "Equal", "Less", "Greater",
                                  "LessOrEqual", "GreaterOrEqual", "Max", "Min")),
    *((op, [A], {}) for op in ("Neg", "Abs", "Identity", "Sign")),
    *((op, [F], {}) for op in ("Floor", "Ceil", "Round", "Exp", "Sin", "Cos", "Reciprocal")),
    *((op, [np.abs(F)], {}) for op in ("Sqrt", "Log")),
    *((op, [TRUE, ~TRUE], {}) for op in ("And", "Or")),
    ("Not", [TRUE], {}), ("Where", [TRUE, A, B], {}), ("Div", [F, F + 9], {}),
    ("Mod", [F, F + 9], {"fmod": 1}), ("Pow", [A, TWO], {}), ("Sum", [F, F, F], {}),
    ("Cast", [F], {"to": 7}), ("Cast", [A], {"to": 1}),
    ("Concat", [A, B], {"axis": 1}), ("Unsqueeze", [A, AXIS], {}),
    ("Squeeze", [A[:, :1], AXIS], {}), ("Squeeze", [A[:1, :1]], {}),
    ("Gather", [A, np.array([1, 0, -1])], {"axis": 1}), ("Gather", [A, np.array(1)], {}),
    ("Slice", [A, AXIS, np.array([9]), AXIS], {}),
    ("Slice", [A, np.array([-1]), np.array([-(2**31)]), AXIS, np.array([-1])], {}),
    ("Slice", [A, np.array([2]), np.array([0]), AXIS, np.array([-2])], {}),
    ("Reshape", [A, np.array([0, -1, 1])], {}), ("Reshape", [A, np.array([3, 2])], {}),
    ("Transpose", [A], {"perm": [1, 0]}), ("Transpose", [A], {}),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}),
    ("ConstantOfShape", [TWO], {}),
    ("ConstantOfShape", [TWO], {"value": numpy_helper.from_array(np.array([7], np.int64))}),
    ("Expand", [A[:1], np.array([2, 1])], {}), ("Tile", [A, np.array([1, 2])], {}),
    ("Split", [A, np.array([1, 2])], {"axis": 1}), ("Split", [B], {"axis": 1, "num_outputs": 2}),
    *((op, [A, AXIS], {}) for op in ("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")),
    ("ReduceSum", [A], {"keepdims": 0}), ("CumSum", [A, np.array(1)], {}),
    ("OneHot", [A, np.array([4]), np.array([7, 9])], {}),
    ("OneHot", [B, np.array(9), np.array([0.5, 2.0], np.float32)], {"axis": 0}),
    ("Clip", [F, np.array(0.25, np.float32), np.array(2.0, np.float32)], {}), ("Clip", [F], {}),
    ("Trilu", [A], {"upper": 0}), ("Trilu", [A, np.array(1)], {}),
]  # fmt: skip


def model(case: Case) -> ModelProto:
    """One node; its outputs are asked of ONNX Runtime."""
    op, arrays, attributes = case
    names = [f"i{i}" for i in range(len(arrays))]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, names, outputs, **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype),
                                      np.asarray(a).shape)
        for n, a in zip(names, arrays, strict=True)
    ]  # fmt: skip
    made = [helper.make_empty_tensor_value_info(n) for n in outputs]
    graph = helper.make_graph([node], "g", inputs, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_kernels_are_the_operators(case: Case) -> None:
    """Values, shapes and types agree, for negative numbers, steps and axes too."""
    proto = model(case)
    found = KERNELS[case[0]](Node(proto.graph.node[0], 0), [np.asarray(a) for a in case[1]])
    feeds = {f"i{i}": np.asarray(a) for i, a in enumerate(case[1])}
    for mine, theirs in zip(found, session(proto, optimize=False).run(feeds), strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert np.allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("more", [{"exclusive": 1}, {"reverse": 1}])
def test_what_is_not_computed_says_so(more: dict[str, int]) -> None:
    """An output that nobody computes is unknown, which is always safe."""
    node = Node(helper.make_node("CumSum", ["x", "axis"], ["y"], **more), 0)
    with pytest.raises(NotImplementedError):
        KERNELS["CumSum"](node, [A, np.array(0)])


def test_axes_come_from_either_place() -> None:
    """An attribute in old opsets, an input in new ones; none at all is an empty list."""
    old = Node(helper.make_node("Squeeze", ["x"], ["y"], axes=[0, 2]), 0)
    new = Node(helper.make_node("Squeeze", ["x", "a"], ["y"]), 0)
    assert axes_argument(old, [A], 1) == [0, 2]
    assert axes_argument(new, [A, np.array(1)], 1) == [1]
    assert axes_argument(new, [A], 1) == []


def test_bounds_come_from_either_place() -> None:
    """A Slice of opset 9 has attributes; axes and steps may be missing."""
    old = Node(helper.make_node("Slice", ["x"], ["y"], starts=[1], ends=[9], axes=[-1]), 0)
    assert slice_arguments(old, [A], 2) == [(1, 1, 9, 1)]
    new = Node(helper.make_node("Slice", ["x", "s", "e"], ["y"]), 0)
    assert slice_arguments(new, [A, TWO, np.array([-1])], 2) == [(0, 2, -1, 1)]


def test_entries_of_a_reshape() -> None:
    """0 copies unless the node allows zeros; -1 is inferred, also beside a 0."""
    assert reshape_target((2, 3, 4), np.array([0, -1]), False) == [2, 12]
    assert reshape_target((0, 3), np.array([0, 3]), True) == [0, 3]


def test_a_gather_of_everything_in_turn() -> None:
    """Every position of a flat tensor, once and in order."""
    assert is_flat_order(np.arange(6).reshape(2, 3), (6,))
    assert not is_flat_order(np.arange(6)[::-1], (6,))
    assert not is_flat_order(np.arange(6), (6, 1))


def test_types_of_shapes() -> None:
    """The fill value of ConstantOfShape is a float zero where none is given."""
    node = Node(helper.make_node("ConstantOfShape", ["s"], ["y"]), 0)
    [zeros] = KERNELS["ConstantOfShape"](node, [TWO])
    assert helper.np_dtype_to_tensor_dtype(zeros.dtype) == TensorProto.FLOAT
