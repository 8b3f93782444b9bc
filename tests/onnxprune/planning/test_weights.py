"""Learned weights, their roles and their real numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.model.graph import Model
from onnxprune.planning.weights import Uses, learned, learned_inside
from tests.builder import Builder


def attention_like() -> tuple[Builder, dict[str, str]]:
    """Weights, a mask, a number, a shape and an index, each used once."""
    b = Builder(0)
    names = {
        "weight": b.weight(4, 4),
        "bias": b.weight(4),
        "mask": b.add([[0, -np.inf], [0, 0]]),
        "scale": b.add(0.5),
        "shape": b.ints(1, -1),
    }
    h = b.node("Add", b.node("MatMul", "x", names["weight"]), names["bias"])
    h = b.node("Mul", h, names["scale"])
    h = b.node("Add", b.node("Slice", h, b.ints(0), b.ints(2), b.ints(1)), names["mask"])
    b.node("Reshape", h, names["shape"])
    return b, names


def test_masks_numbers_and_shapes_are_not_learned() -> None:
    """What an exporter writes down beside the weights is none."""
    b, names = attention_like()
    model = Model(b.model({"x": [2, 4]}, {b.nodes[-1].output[0]: ["a", "b"]}))
    assert set(learned(model)) == {names["weight"], names["bias"]}


def test_an_unused_weight_is_not_counted() -> None:
    """A weight that nothing reads costs bytes only."""
    b = Builder(0)
    used, _ = b.weight(3, 3), b.weight(5, 5)
    y = b.node("MatMul", "x", used)
    assert set(learned(Model(b.model({"x": [1, 3]}, {y: [1, 3]})))) == {used}


def quantised(transposed: bool = False) -> tuple[Model, tuple[str, int], np.ndarray]:
    """A stored int8 weight with a scale for each row, and what it stands for."""
    b = Builder(0)
    numbers = np.array([[1, -2, 3], [40, 50, -60]], np.int8)
    scale = np.array([0.5, 0.25], np.float32)
    stored = b.add(numbers.T if transposed else numbers, np.int8)
    w = b.node("DequantizeLinear", stored, b.add(scale), b.add([0, 10], np.int8),
               axis=int(transposed))  # fmt: skip
    y = b.node("Gemm", "x", w, transB=int(not transposed))
    real = (numbers - np.array([[0], [10]])) * scale[:, None]
    model = Model(b.model({"x": [1, 3]}, {y: [1, 2]}))
    return model, (w, 0), real.T if transposed else real


@pytest.mark.parametrize("transposed", [False, True])
def test_quantised_weights_are_the_numbers_they_stand_for(transposed: bool) -> None:
    """Zero point off, then times the scale, along the axis of the dequantiser."""
    model, slot, real = quantised(transposed)
    uses = Uses(model)
    np.testing.assert_allclose(uses.real(slot), real)
    assert uses.is_filter(slot)


def test_fused_quantised_operators_know_their_scales() -> None:
    """QLinearConv has scale and zero point of the weight among its own inputs."""
    b = Builder(0)
    w = b.add(np.arange(6).reshape(2, 3, 1, 1), np.int8)
    one, zero = b.add(1.0), b.add(0, np.int8)
    y = b.node("QLinearConv", "x", one, zero, w, b.add([2.0, 10.0]), b.add([0, 1], np.int8),
               one, zero, b.add([7, 7], np.int32))  # fmt: skip
    model = Model(b.model({"x": [1, 3, 2, 2]}, {y: [1, 2, 2, 2]},
                          types={"x": TensorProto.INT8, y: TensorProto.INT8}))  # fmt: skip
    real = Uses(model).real((y, 3))
    np.testing.assert_allclose(real.ravel(), [0, 2, 4, 20, 30, 40])
    # The filter, its scales and zero points, and the bias of 32 bits; no scale of all.
    assert sum(int(np.prod(t.dims)) for t in learned(model).values()) == 6 + 2 + 2 + 2


def test_weights_scaled_in_blocks_are_spread() -> None:
    """A scale for each block of an axis covers the block."""
    b = Builder(0)
    stored = b.add(np.ones((4, 2)), np.int8)
    w = b.node("DequantizeLinear", stored, b.add([[1, 2], [3, 4]]), axis=0, block_size=2)
    y = b.node("MatMul", "x", w)
    model = Model(b.model({"x": [1, 4]}, {y: [1, 2]}))
    np.testing.assert_allclose(Uses(model).real((w, 0)), [[1, 2], [1, 2], [3, 4], [3, 4]])


def test_roles_are_seen_through_views_of_the_weight() -> None:
    """A weight behind a Transpose is a filter, one behind an Unsqueeze before an Add a bias."""
    b = Builder(0)
    turned = b.node("Transpose", b.weight(4, 3), perm=[1, 0])
    h = b.node("MatMul", "x", turned)
    bias = b.node("Unsqueeze", b.weight(4), b.ints(0))
    y = b.node("Add", h, bias)
    uses = Uses(Model(b.model({"x": [1, 3]}, {y: [1, 4]})))
    assert uses.is_filter((turned, 0))
    assert not uses.is_filter((bias, 0))


def test_a_weight_that_is_standardised_stays_a_filter() -> None:
    """What is computed from a weight alone before it meets data is followed."""
    b = Builder(0)
    w = b.weight(4, 3, 1, 1)
    centred = b.node("Sub", w, b.node("ReduceMean", w, b.ints(1, 2, 3)))
    y = b.node("Conv", "x", centred)
    uses = Uses(Model(b.model({"x": [1, 3, 2, 2]}, {y: [1, 4, 2, 2]})))
    assert uses.is_filter((centred, 0))


def test_biases_of_recurrent_cells_are_no_filters() -> None:
    """The bias of a bidirectional cell has two axes, and is a bias all the same."""
    b = Builder(0)
    y = b.node("GRU", "x", b.weight(2, 12, 3), b.weight(2, 12, 4), b.weight(2, 24), hidden_size=4,
               direction="bidirectional")  # fmt: skip
    uses = Uses(Model(b.model({"x": [5, 1, 3]}, {y: [5, 2, 1, 4]})))
    assert [uses.is_filter((y, slot)) for slot in (1, 2, 3)] == [True, True, False]


def test_weights_in_bodies_are_parameters_too() -> None:
    """Nobody looks into a body to cut, but its weights are there."""
    b = Builder(0)
    inner = helper.make_graph(
        [helper.make_node("Mul", ["x", "inner"], ["z"])], "body", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor("inner", TensorProto.FLOAT, [3], [1, 2, 3])],
    )  # fmt: skip
    y = b.node("If", "c", then_branch=inner, else_branch=inner)
    model = Model(b.model({"x": [1, 3], "c": []}, {y: [1, 3]}, types={"c": TensorProto.BOOL}))
    assert learned_inside(model) == 6
