"""Shapes and known values, without running anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.model.graph import Model
from onnxprune.shape.shapes import (
    KNOWN_LIMIT,
    Evaluator,
    Shapes,
    constant,
    describe,
    evaluate,
    first_line,
)
from tests.builder import CONTRIB, Builder


def shapes(b: Builder, y: str, *shape: int, opset: int = 21) -> tuple[Shapes, Model]:
    """What is known when the input `x` has a concrete shape."""
    names: list[int | str] = [f"d{i}" for i in range(len(shape))]
    model = Model(b.model({"x": names}, {y: ["a"]}, opset=opset))
    return evaluate(model, {"x": shape}), model


def test_shape_arithmetic_is_known() -> None:
    """Values that depend on shapes and constants alone, through Shape, Size and their like."""
    b = Builder(0)
    whole, tail = b.node("Shape", "x"), b.node("Shape", "x", start=-2, end=2)
    one = b.node("Gather", whole, b.add(1, np.int64))
    size = b.node("Div", b.node("Size", "x"), one)
    found, _ = shapes(b, size, 2, 3, 5)
    assert found.value[whole].tolist() == [2, 3, 5]
    assert found.value[tail].tolist() == [3]
    assert found.value[size] == 10


def test_what_depends_on_data_is_not_known() -> None:
    """An index out of ArgMax has a shape, no value; a length out of it not even that."""
    b = Builder(0)
    index = b.node("ArgMax", "x", axis=0, keepdims=0)
    row = b.node("Gather", "x", index)
    there = b.node("NonZero", "x")
    after = b.node("Relu", there)
    found, _ = shapes(b, after, 2, 3)
    assert index not in found.value
    assert found.shape[row] == (3, 3)
    assert there not in found.shape
    assert found.dtype[there] == TensorProto.INT64


def test_large_values_are_data() -> None:
    """A mask of a long sequence is not computed here."""
    b = Builder(0)
    row = b.node("Shape", "x")
    big = b.node("Expand", b.ints(1), b.node("Mul", row, row))
    found, _ = shapes(b, big, 600, 600)
    assert big not in found.value
    assert KNOWN_LIMIT < 600**4


GROWING: list[tuple[str, list[Any]]] = [
    ("ConstantOfShape", [[600, 600]]),
    ("Tile", [[1, 2], [100_000]]),
    ("Range", [0, 10**6, 1]),
    ("Gather", [[1, 2], np.zeros((300, 300), np.int64)]),
    ("Add", [np.zeros((1, 1000), np.int64), np.zeros((1000, 1), np.int64)]),
]


@pytest.mark.parametrize(("op", "inputs"), GROWING, ids=lambda x: x if isinstance(x, str) else "")
def test_results_are_weighed_before_they_are_made(op: str, inputs: list[Any]) -> None:
    """Small operands may make a large result."""
    b = Builder(0)
    y = b.node(op, *(b.add(i, np.int64) for i in inputs))
    found, _ = shapes(b, y, 2)
    assert y not in found.value
    assert np.prod(found.shape[y]) > KNOWN_LIMIT


def test_values_that_do_not_broadcast_are_an_error() -> None:
    """Who made the model is told the node."""
    b = Builder(0)
    y = b.node("Add", b.ints(1, 2), b.ints(1, 2, 3))
    with pytest.raises(ModelError, match="shapes do not fit") as caught:
        shapes(b, y, 2)
    assert f"node `n_{y}` (Add)" in str(caught.value)


def test_inputs_that_do_not_fit_are_an_error() -> None:
    """As onnx's own inference says, without its brackets."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.weight(4, 2))
    with pytest.raises(ModelError, match="shapes do not fit: Incompatible dimensions"):
        shapes(b, y, 2, 3)
    assert first_line(ValueError("[ShapeInferenceError] one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_a_hostile_size_is_an_error() -> None:
    """Nothing of that size could be run."""
    b = Builder(0)
    y = b.node("Relu", b.node("ConstantOfShape", b.ints(2**31, 2**31)))
    with pytest.raises(ModelError, match="would have the shape"):
        shapes(b, y, 2)


STAND_INS = [
    (21, "GroupNormalization", 2, {"num_groups": 2}),
    (13, "MeanVarianceNormalization", 0, {}),
]


@pytest.mark.parametrize(("opset", "op", "vectors", "more"), STAND_INS, ids=lambda x: str(x))
def test_operators_that_onnx_infers_nothing_for(
    opset: int, op: str, vectors: int, more: dict[str, Any]
) -> None:
    """They are written as functions; their output is like their input."""
    b = Builder(0)
    y = b.node(op, "x", *(b.weight(4) for _ in range(vectors)), **more)
    found, _ = shapes(b, y, 2, 4, 3, 3, opset=opset)
    assert found.shape[y] == (2, 4, 3, 3)


def test_comparisons_of_old_opsets() -> None:
    """Their output is boolean, and broadcast."""
    b = Builder(0)
    y = b.node("LessOrEqual", "x", b.weight(4, 1))
    found, _ = shapes(b, y, 3, opset=12)
    assert (found.shape[y], found.dtype[y]) == ((4, 3), TensorProto.BOOL)


def test_unknown_operators_and_what_is_behind_them() -> None:
    """Nobody knows their shapes; the rest of the graph is not affected."""
    b = Builder(0)
    y = b.node("Relu", b.node("Mystery", "x", domain="unheard.of"))
    z = b.node("Sigmoid", "x")
    found, _ = shapes(b, y, 2, 3)
    assert y not in found.shape
    assert found.shape[z] == (2, 3)


def test_operators_of_onnx_runtime_have_shapes() -> None:
    """Those with a twin in ONNX are told by it, others by a table."""
    b = Builder(0)
    y = b.node("QuickGelu", b.node("FusedMatMul", "x", b.weight(3, 5), domain=CONTRIB),
               domain=CONTRIB)  # fmt: skip
    assert shapes(b, y, 2, 3)[0].shape[y] == (2, 5)


def test_a_resize_reads_its_scales() -> None:
    """They are floats, but inference needs them."""
    b = Builder(0)
    y = b.node("Resize", "x", "", b.add([1, 1, 2, 3]), mode="nearest")
    assert shapes(b, y, 2, 3, 4, 4)[0].shape[y] == (2, 3, 8, 12)


def test_constants_that_may_be_shapes() -> None:
    """Integers and single numbers; no weights, no texts, nothing a caller may replace."""
    b = Builder(0)
    names = {
        "ints": b.ints(1, 2), "one": b.add(2.5), "bools": b.add([True, False], np.bool_),
        "weight": b.weight(3), "large": b.add(np.zeros(KNOWN_LIMIT + 1), np.int64),
    }  # fmt: skip
    y = b.node("Relu", "x")
    _, model = shapes(b, y, 2)
    known = {name for name, w in names.items() if constant(model, w) is not None}
    assert known == {"ints", "one", "bools"}
    assert constant(model, "nobody") is None


def test_a_sequence_stays_what_it_is() -> None:
    """Values that are no tensors have types, no shapes."""
    b = Builder(0)
    y = b.node("SequenceAt", b.node("SequenceConstruct", "x", "x"), b.add(0, np.int64))
    found, model = shapes(b, y, 2, 3)
    assert found.shape[y] == (2, 3)
    assert "SequenceConstruct" in describe(model.nodes[0])
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2]))
    model.proto.graph.input.append(helper.make_value_info("s", kind))
    again = Evaluator(Model(model.proto), {"x": (2, 3), "s": ()})
    assert again.types["s"] == kind
