"""Constant channels go, and what reads them adds their share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from tests.builder import Builder
from tests.cleaning import Array, changed, cleaned, repository_model, weights_of

CLEAN = "clean-constant"
IMAGE: dict[str, list[int | str]] = {"x": ["n", 3, 8, 8]}


def normed(b: Builder, x: str, channels: int, dead: dict[int, float]) -> str:
    """A BatchNormalization with scale 0 and a bias of choice at some channels."""
    scale, shift = b.rng.uniform(0.5, 1.5, channels), b.rng.standard_normal(channels)
    for channel, bias in dead.items():
        scale[channel], shift[channel] = 0.0, bias
    mean, variance = b.rng.standard_normal(channels), b.rng.uniform(0.5, 1.5, channels)
    return b.node("BatchNormalization", x, *(b.add(v) for v in (scale, shift, mean, variance)))


def two_convs(dead: dict[int, float], **second: Any) -> ModelProto:
    """Conv > BatchNormalization > Relu > Conv, with dead batch-norm scales."""
    b = Builder(0)
    x = b.node("Conv", "x", b.weight(6, 3, 3, 3), b.weight(6))
    x = b.node("Relu", normed(b, x, 6, dead))
    b.node("Conv", x, b.weight(4, 6, 3, 3), b.weight(4), **second)
    return b.model(IMAGE, {"v3": ["n", 4, "h", "w"]})


def test_a_dead_scale_is_folded_into_the_next_bias() -> None:
    """Scale 0 and bias b leave max(b, 0), which is added to what reads it."""
    state = cleaned(two_convs({1: 0.7, 2: -0.4}), CLEAN)
    assert weights_of(state, "Conv") == [(4, 3, 3, 3), (4, 4, 3, 3)]


def test_a_number_does_not_cross_a_padded_border() -> None:
    """At the border a padded sum sees zeros, not the number: only zeros may go."""
    state = cleaned(two_convs({1: 0.7, 2: -0.4}, pads=[1, 1, 1, 1]), CLEAN)
    assert weights_of(state, "Conv") == [(5, 3, 3, 3), (4, 5, 3, 3)]


def test_same_padding_counts_as_padding() -> None:
    """`auto_pad` pads too, whatever `pads` does not say."""
    state = cleaned(two_convs({1: 0.7, 2: -0.4}, auto_pad="SAME_UPPER"), CLEAN)
    assert weights_of(state, "Conv")[1] == (4, 5, 3, 3)


def test_filters_of_zeros_go() -> None:
    """A filter of zeros without a bias makes zeros, which no border changes."""
    b = Builder(1)
    w = b.rng.standard_normal((6, 3, 3, 3))
    w[[0, 4]] = 0
    x = b.node("Relu", b.node("Conv", "x", b.add(w)))
    b.node("Conv", x, b.weight(4, 6, 3, 3), pads=[1, 1, 1, 1])
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 6, 6]}), CLEAN)
    assert weights_of(state, "Conv") == [(4, 3, 3, 3), (4, 4, 3, 3)]


def test_a_missing_bias_is_made() -> None:
    """A reader without a bias gets one; the filter's own bias made the constant."""
    b = Builder(2)
    w = b.rng.standard_normal((5, 3, 1, 1))
    w[2] = 0
    x = b.node("Sigmoid", b.node("Conv", "x", b.add(w), b.weight(5)))
    b.node("Conv", x, b.weight(4, 5, 1, 1))
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv")[1] == (4, 4, 1, 1)
    assert state.model.nodes[-1].input(2)


@pytest.mark.parametrize("last", ["Clip", "HardSwish", "Elu", "Softplus", "LeakyRelu", "Sqrt"])
def test_numbers_travel_through_functions(last: str) -> None:
    """Whatever works position by position makes another number of a number."""
    b = Builder(3)
    w = b.rng.standard_normal((5, 3, 1, 1))
    w[[1, 3]] = 0
    x = b.node("Conv", "x", b.add(w), b.add([0.1, 0.4, -0.3, 0.9, 0.2]))
    x = b.node("Abs", x)
    bounds = (b.add(0.2), b.add(0.5)) if last == "Clip" else ()
    x = b.node(last, x, *bounds)
    b.node("Conv", x, b.weight(4, 5, 1, 1), b.weight(4))
    state = cleaned(b.model(IMAGE, {"v3": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv")[1] == (4, 3, 1, 1)


def residual(first: list[int], second: list[int]) -> ModelProto:
    """A stream that two convolutions make, read by a third; some of their filters are zero."""
    b = Builder(4)
    stem, branch = b.rng.standard_normal((2, 6, 6, 1, 1))
    stem = stem[:, :3]
    stem[first], branch[second] = 0, 0
    a = b.node("Conv", "x", b.add(stem), b.weight(6))
    c = b.node("Conv", b.node("Relu", a), b.add(branch), b.weight(6))
    b.node("Conv", b.node("Add", a, c), b.weight(4, 6, 1, 1), b.weight(4))
    return b.model(IMAGE, {"v4": ["n", 4, 8, 8]})


def test_a_stream_is_constant_where_every_producer_is() -> None:
    """Constants add up; one living producer keeps the channel."""
    both = cleaned(residual([1, 2, 5], [2, 4, 5]), CLEAN)
    assert weights_of(both, "Conv") == [(4, 3, 1, 1), (4, 4, 1, 1), (4, 4, 1, 1)]
    one = cleaned(residual([1], [4]), CLEAN)
    assert one.model is one.start.model


def test_depthwise_convolutions_carry_constants() -> None:
    """A depthwise filter makes another number of a number, and of zeros its bias."""
    b = Builder(5)
    w = b.rng.standard_normal((6, 3, 1, 1))
    w[[0, 3]] = 0
    x = b.node("Relu", b.node("Conv", "x", b.add(w), b.add([0.5, 0, 0, 0, 0, 0])))
    x = b.node("Conv", x, b.weight(6, 1, 3, 3), b.add(np.arange(6) - 2), group=6)
    b.node("Conv", b.node("Relu", x), b.weight(4, 6, 1, 1), b.weight(4))
    state = cleaned(b.model(IMAGE, {"v4": ["n", 4, 6, 6]}), CLEAN)
    assert weights_of(state, "Conv") == [(4, 3, 1, 1), (4, 1, 3, 3), (4, 4, 1, 1)]


def test_groups_keep_equal_counts() -> None:
    """Of a grouped reader's groups each loses as many channels as the one with the fewest dead."""
    b = Builder(6)
    w = b.rng.standard_normal((8, 3, 1, 1))
    w[[0, 1, 5]] = 0
    x = b.node("Relu", b.node("Conv", "x", b.add(w), b.add(np.linspace(0.1, 1, 8))))
    b.node("Conv", x, b.weight(4, 4, 1, 1), b.weight(4), group=2)
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv") == [(6, 3, 1, 1), (4, 3, 1, 1)]


def test_gemm_after_flatten_reads_every_position() -> None:
    """A constant map adds to the bias what all its columns weigh; pooling keeps it."""
    b = Builder(7)
    x = b.node("Conv", "x", b.weight(5, 3, 3, 3))
    x = b.node("MaxPool", normed(b, x, 5, {3: 0.8}), kernel_shape=[2, 2], strides=[2, 2])
    b.node("Gemm", b.node("Flatten", x), b.weight(4, 45), b.weight(4), transB=1, alpha=0.5,
           beta=2.0)  # fmt: skip
    state = cleaned(b.model(IMAGE, {"v4": ["n", 4]}), CLEAN)
    assert weights_of(state, "Gemm") == [(4, 36)]


@pytest.mark.parametrize("bias", [True, False])
def test_matmul_gets_an_add(bias: bool) -> None:
    """A MatMul has no bias: what it must add stands behind it."""
    b = Builder(8)
    w = b.rng.standard_normal((5, 6))
    w[:, [2, 3]] = 0
    x = b.node("Add", b.node("MatMul", "x", b.add(w)), b.weight(6))
    x = b.node("MatMul", b.node("Tanh", x), b.weight(6, 4))
    out = b.node("Add", x, b.weight(4)) if bias else x
    state = cleaned(b.model({"x": ["n", 7, 5]}, {out: ["n", 7, 4]}), CLEAN)
    assert weights_of(state, "MatMul") == [(5, 4), (4, 4)]
    assert [n.op for n in state.model.nodes].count("Add") == 2


def test_concat_carries_constants_along() -> None:
    """Each part of a concatenation keeps what is known of it."""
    b = Builder(9)
    w = b.rng.standard_normal((4, 3, 1, 1))
    w[1] = 0
    left = b.node("Conv", "x", b.add(w), b.weight(4))
    right = normed(b, b.node("Conv", "x", b.weight(3, 3, 1, 1)), 3, {0: 0.3, 2: -1.2})
    x = b.node("Concat", left, right, axis=1)
    b.node("Conv", x, b.weight(4, 7, 1, 1), b.weight(4))
    state = cleaned(b.model(IMAGE, {"v4": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv") == [(3, 3, 1, 1), (1, 3, 1, 1), (4, 4, 1, 1)]


def test_shared_weights_are_changed_for_one_use_only() -> None:
    """Two readers with one bias: only the one that loses a channel adds to it."""
    b = Builder(10)
    w, bias = b.rng.standard_normal((5, 3, 1, 1)), b.weight(4)
    w[2] = 0
    x = b.node("Relu", b.node("Conv", "x", b.add(w), b.add([0.1, 0.2, 0.3, 0.4, 0.5])))
    left = b.node("Conv", x, b.weight(4, 5, 1, 1), bias)
    right = b.node("Conv", "x", b.weight(4, 3, 1, 1), bias)
    out = b.node("Add", left, right)
    state = cleaned(b.model(IMAGE, {out: ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv")[1] == (4, 4, 1, 1)


def test_a_head_whose_values_are_zero_goes_whole() -> None:
    """Queries and keys of a head only lead to its values."""
    b, size, heads = Builder(11), 4, 3
    wide = size * heads
    v = b.rng.standard_normal((6, wide))
    v[:, size : 2 * size] = 0
    weights = [b.weight(6, wide), b.weight(6, wide), b.add(v)]
    split = b.ints(0, 0, heads, size)
    q, k, v_ = (
        b.node("Transpose", b.node("Reshape", b.node("MatMul", "x", w), split), perm=[0, 2, 1, 3])
        for w in weights
    )
    scores = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])))
    mixed = b.node("Transpose", b.node("MatMul", scores, v_), perm=[0, 2, 1, 3])
    out = b.node("MatMul", b.node("Reshape", mixed, b.ints(0, 0, wide)), b.weight(wide, 5))
    state = cleaned(b.model({"x": ["n", "t", 6]}, {out: ["n", "t", 5]}), CLEAN)
    assert weights_of(state, "MatMul")[:3] == [(6, 8), (6, 8), (6, 8)]


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_units_that_stay_at_zero_go(op: str, gates: int) -> None:
    """A unit with weights of zero starts at zero and stays there, whatever reads it."""
    b, hidden = Builder(12), 5
    w, r = b.rng.standard_normal((1, gates * hidden, 4)), b.rng.standard_normal(
        (1, gates * hidden, hidden))  # fmt: skip
    bias = b.rng.standard_normal((1, 2 * gates * hidden))
    rows = np.arange(gates) * hidden + 2
    w[:, rows], r[:, rows], bias[:, rows] = 0, 0, 0
    bias[:, gates * hidden + rows] = 0
    y = b.node(op, "x", b.add(w), b.add(r * 0.3), b.add(bias), hidden_size=hidden)
    b.node("MatMul", b.node("Squeeze", y, b.ints(1)), b.weight(hidden, 3))
    state = cleaned(b.model({"x": ["t", "n", 4]}, {"v2": ["t", "n", 3]}), CLEAN)
    assert weights_of(state, op) == [(1, gates * (hidden - 1), 4)]


def test_a_unit_with_a_living_start_stays() -> None:
    """With an initial state of its own a unit of zeros fades, but is not zero."""
    b, hidden = Builder(13), 4
    w, r = b.rng.standard_normal((1, 4 * hidden, 3)), b.rng.standard_normal((1, 16, hidden))
    rows = np.arange(4) * hidden + 1
    w[:, rows], r[:, rows] = 0, 0
    y = b.node("LSTM", "x", b.add(w), b.add(r), "", "", "h", "c", hidden_size=hidden)
    b.node("MatMul", b.node("Squeeze", y, b.ints(1)), b.weight(hidden, 3))
    inputs: dict[str, list[int | str]] = {"x": ["t", "n", 3], "h": [1, "n", 4], "c": [1, "n", 4]}
    state = cleaned(b.model(inputs, {"v2": ["t", "n", 3]}), CLEAN)
    assert state.model is state.start.model


def test_layer_normalisation_is_left_alone() -> None:
    """A zero counts in the mean of its neighbours: removing it is not the same."""
    b = Builder(14)
    w = b.rng.standard_normal((5, 6))
    w[:, 2] = 0
    x = b.node("LayerNormalization", b.node("MatMul", "x", b.add(w)), b.weight(6), b.weight(6))
    b.node("MatMul", x, b.weight(6, 4))
    state = cleaned(b.model({"x": ["n", 7, 5]}, {"v2": ["n", 7, 4]}), CLEAN)
    assert state.model is state.start.model


def zero(*channels: int) -> Callable[[Array], None]:
    """Sets filters to zero."""

    def edit(array: Array) -> None:
        array[list(channels)] = 0

    return edit


@pytest.mark.parametrize("name", ["digits_resnet", "digits_depthwise", "digits_bilstm"])
def test_trained_models_with_silenced_filters(name: str) -> None:
    """Convolutions and batch norms of a trained model, three channels of each silenced."""
    model = repository_model(name)
    edits = {}
    for node in model.nodes:
        slots = {"Conv": (1, 2), "BatchNormalization": (1, 2)}.get(node.op, ())
        edits |= {node.inputs[s]: zero(0, 2, 3) for s in slots if node.input(s)}
    before = changed(model.complete(), edits)
    state = cleaned(before, CLEAN)
    if edits:
        assert state.subject.cost.params < state.start.cost.params
    else:
        assert state.model is state.start.model
