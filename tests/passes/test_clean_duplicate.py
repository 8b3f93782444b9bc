"""A channel that is a multiple of another one goes; its readers add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from tests.builder import Builder
from tests.cleaning import Array, changed, cleaned, repository_model, weights_of

CLEAN = "clean-duplicate"
IMAGE: dict[str, list[int | str]] = {"x": ["n", 3, 8, 8]}


def copied(array: Array, pairs: dict[int, tuple[int, float]]) -> Array:
    """Rows made multiples of others: {row: (of, factor)}."""
    array = array.copy()
    for row, (of, factor) in pairs.items():
        array[row] = factor * array[of]
    return array


def two_convs(
    pairs: dict[int, tuple[int, float]], between: str, *, bias: bool = True, **second: Any
) -> ModelProto:
    """Conv > something > Conv; rows of the first are multiples of others, bias and all."""
    b = Builder(0)
    w = copied(b.rng.standard_normal((6, 3, 3, 3)), pairs)
    own = copied(b.rng.standard_normal(6), pairs if bias else {})
    x = b.node("Conv", "x", b.add(w), b.add(own))
    x = b.node(between, x)
    out = b.node("Conv", x, b.weight(4, 6, 3, 3), b.weight(4), **second)
    return b.model(IMAGE, {out: ["n", 4, "h", "w"]})


@pytest.mark.parametrize("between", ["Relu", "LeakyRelu", "Identity", "Abs"])
def test_multiples_behind_homogeneous_functions_go(between: str) -> None:
    """k times the input gives k times the output; padding with zeros does not disturb it."""
    proto = two_convs({2: (0, 3.0), 5: (0, 0.25), 4: (1, 1.0)}, between, pads=[1, 1, 1, 1])
    assert weights_of(cleaned(proto, CLEAN), "Conv") == [(3, 3, 3, 3), (4, 3, 3, 3)]


def test_only_copies_survive_a_sigmoid() -> None:
    """A sigmoid of k times a number is another number; of a copy it is a copy."""
    state = cleaned(two_convs({2: (0, 3.0), 4: (1, 1.0)}, "Sigmoid"), CLEAN)
    assert weights_of(state, "Conv") == [(5, 3, 3, 3), (4, 5, 3, 3)]


@pytest.mark.parametrize(
    ("factor", "bias"), [(-1.0, True), (2.0, False)], ids=["negative", "other bias"]
)
def test_other_multiples_stay(factor: float, bias: bool) -> None:
    """A negative factor flips what Relu cuts off; an unlike bias shifts it."""
    state = cleaned(two_convs({2: (0, factor)}, "Relu", bias=bias), CLEAN)
    assert state.model is state.start.model


def test_nearly_equal_filters_stay() -> None:
    """A difference in the fourth digit is a difference."""
    b = Builder(1)
    w = b.rng.standard_normal((6, 3, 3, 3))
    w[3] = w[1] * (1 + 1e-4 * b.rng.standard_normal((3, 3, 3)))
    x = b.node("Relu", b.node("Conv", "x", b.add(w)))
    b.node("Conv", x, b.weight(4, 6, 3, 3))
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 4, 4]}), CLEAN)
    assert state.model is state.start.model


@pytest.mark.parametrize("alike", [True, False])
def test_batch_norm_decides(alike: bool) -> None:
    """Multiples stay multiples where scale, bias, mean and variance say so."""
    b = Builder(2)
    w = copied(b.rng.standard_normal((5, 3, 1, 1)), {3: (1, 2.0)})
    x = b.node("Conv", "x", b.add(w))
    scale, bias, mean, variance = b.rng.uniform(0.5, 2, (4, 5))
    mean[3], variance[3] = 2 * mean[1], 4 * variance[1] + 3e-5  # 3 of 4 epsilons
    scale[3], bias[3] = 0.5 * scale[1], 0.5 * bias[1] + (not alike) * 0.1
    x = b.node("BatchNormalization", x, *(b.add(v) for v in (scale, bias, mean, variance)))
    b.node("Conv", b.node("Relu", x), b.weight(4, 5, 1, 1))
    state = cleaned(b.model(IMAGE, {"v3": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv")[1] == (4, 5 - alike, 1, 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_repeats_where_all_that_makes_it_does(stream: bool) -> None:
    """Sums of copies are copies; a copy plus something else is not."""
    b = Builder(3)
    first = copied(b.rng.standard_normal((6, 3, 1, 1)), {4: (1, 2.0)})
    second = copied(b.rng.standard_normal((6, 6, 1, 1)), {4: (1, 2.0)} if stream else {})
    a = b.node("Conv", "x", b.add(first))
    c = b.node("Conv", b.node("Tanh", a), b.add(second))
    b.node("Conv", b.node("Relu", b.node("Add", a, c)), b.weight(4, 6, 1, 1))
    state = cleaned(b.model(IMAGE, {"v5": ["n", 4, 8, 8]}), CLEAN)
    # The inner Tanh reads multiples, which differ behind it: they cannot be merged there.
    assert state.model is state.start.model


def test_a_stream_of_copies_is_merged() -> None:
    """Equal channels stay equal through any function, sum and depthwise filter."""
    b = Builder(4)
    first, second = (copied(b.rng.standard_normal((6, n, 1, 1)), {4: (1, 1.0)}) for n in (3, 6))
    a = b.node("Conv", "x", b.add(first))
    c = b.node("Conv", b.node("Tanh", a), b.add(second))
    x = b.node("Relu", b.node("Add", a, c))
    deep = copied(b.rng.standard_normal((6, 1, 3, 3)), {4: (1, 5.0)})
    x = b.node("Conv", x, b.add(deep), group=6)
    b.node("Conv", b.node("MaxPool", x, kernel_shape=[2, 2]), b.weight(4, 6, 1, 1))
    state = cleaned(b.model(IMAGE, {"v7": ["n", 4, 5, 5]}), CLEAN)
    assert weights_of(state, "Conv") == [(5, 3, 1, 1), (5, 5, 1, 1), (5, 1, 3, 3), (4, 5, 1, 1)]


@pytest.mark.parametrize("group", [0, 1])
def test_channels_of_other_groups_cannot_stand_in(group: int) -> None:
    """Each group sums its own channels, and groups lose equal counts."""
    b = Builder(5)
    pairs = {1: (0, 2.0), 5: (4, 3.0)} if group == 0 else {5: (0, 2.0), 6: (1, 3.0)}
    w = copied(b.rng.standard_normal((8, 3, 1, 1)), pairs)
    x = b.node("Relu", b.node("Conv", "x", b.add(w)))
    b.node("Conv", x, b.weight(4, 4, 1, 1), group=2)
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv")[1] == (4, 3 if group == 0 else 4, 1, 1)


def test_gemm_after_flatten_adds_up_place_by_place() -> None:
    """Each position of a map has a column of its own."""
    b = Builder(6)
    w = copied(b.rng.standard_normal((5, 3, 3, 3)), {3: (1, 0.5)})
    x = b.node("MaxPool", b.node("Relu", b.node("Conv", "x", b.add(w))),
               kernel_shape=[2, 2], strides=[2, 2])  # fmt: skip
    b.node("Gemm", b.node("Flatten", x), b.weight(4, 45), transB=1)
    state = cleaned(b.model(IMAGE, {"v4": ["n", 4]}), CLEAN)
    assert weights_of(state, "Gemm") == [(4, 36)]


@pytest.mark.parametrize("op", ["MatMul", "LSTM", "Gemm"])
def test_readers_of_every_kind_add_up(op: str) -> None:
    """What multiplies data by stored weights can take two columns as one."""
    b = Builder(7)
    w = copied(b.rng.standard_normal((6, 5)), {4: (2, 1.5)}).T
    x = b.node("Relu", b.node("MatMul", "x", b.add(w)))
    if op == "LSTM":
        b.node("LSTM", x, b.weight(1, 12, 6), b.weight(1, 12, 3), hidden_size=3)
        model = b.model({"x": [7, "n", 5]}, {"v2": [7, 1, "n", 3]})
        width = 2
    elif op == "Gemm":
        b.node("Gemm", x, b.weight(6, 4), alpha=0.5)
        model, width = b.model({"x": ["n", 5]}, {"v2": ["n", 4]}), 0
    else:
        b.node("MatMul", x, b.weight(6, 4))
        model, width = b.model({"x": ["n", 7, 5]}, {"v2": ["n", 7, 4]}), 0
    state = cleaned(model, CLEAN)
    assert weights_of(state, op)[-1][width] == 5


def test_concat_of_a_value_with_its_function_tells_them_apart() -> None:
    """A channel and its Relu are not the same, though both come from one filter."""
    b = Builder(8)
    x = b.node("Conv", "x", b.weight(4, 3, 1, 1))
    both = b.node("Concat", x, b.node("Relu", x), x, axis=1)
    b.node("Conv", both, b.weight(4, 12, 1, 1))
    state = cleaned(b.model(IMAGE, {"v3": ["n", 4, 8, 8]}), CLEAN)
    assert state.model is state.start.model


def test_queries_and_keys_are_left_alone() -> None:
    """Where data meet data there is no weight to add to."""
    b = Builder(9)
    w = copied(b.rng.standard_normal((6, 5)), {4: (2, 1.0)}).T
    q, k = b.node("MatMul", "x", b.add(w)), b.node("MatMul", "x", b.weight(5, 6))
    b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1]))
    state = cleaned(b.model({"x": ["n", 7, 5]}, {"v3": ["n", 7, 7]}), CLEAN)
    assert state.model is state.start.model


def test_a_shared_weight_changes_for_one_use_only() -> None:
    """Two readers of one weight: the one whose channels repeat gets a weight of its own."""
    b = Builder(10)
    w = copied(b.rng.standard_normal((6, 3, 1, 1)), {4: (2, 2.0)})
    left = b.node("Relu", b.node("Conv", "x", b.add(w)))
    right = b.node("Relu", b.node("Conv", "x", b.weight(6, 3, 1, 1)))
    reader = b.weight(4, 6, 1, 1)
    out = b.node("Mul", b.node("Conv", left, reader), b.node("Conv", right, reader))
    state = cleaned(b.model(IMAGE, {out: ["n", 4, 8, 8]}), CLEAN)
    assert sorted(weights_of(state, "Conv"))[1:3] == [(4, 6, 1, 1), (5, 3, 1, 1)]


def repeat(*pairs: tuple[int, int]) -> Callable[[Array], None]:
    """Makes filters copies of others."""

    def edit(array: Array) -> None:
        for row, of in pairs:
            array[row] = array[of]

    return edit


@pytest.mark.parametrize("name", ["digits_resnet", "digits_depthwise"])
def test_trained_models_with_repeated_filters(name: str) -> None:
    """Convolutions and batch norms of a trained model, two channels of each repeated."""
    model = repository_model(name)
    edits = {}
    for node in model.nodes:
        slots = {"Conv": (1, 2), "BatchNormalization": (1, 2, 3, 4)}.get(node.op, ())
        edits |= {node.inputs[s]: repeat((3, 0), (5, 1)) for s in slots if node.input(s)}
    state = cleaned(changed(model.complete(), edits), CLEAN)
    assert state.subject.cost.params < state.start.cost.params


def test_what_rounding_would_change_is_left_out() -> None:
    """Sums of float16 weights are rounded: the model stays as it is, with a warning."""
    b = Builder(11)
    w = copied(b.rng.standard_normal((6, 3, 1, 1)), {4: (2, 2.0)})
    x = b.node("Relu", b.node("Conv", "x", b.add(w, np.float16)))
    b.node("Conv", x, b.add(b.rng.standard_normal((4, 6, 1, 1)), np.float16))
    proto = b.model(IMAGE, {"v2": ["n", 4, 8, 8]}, types={"x": 10, "v2": 10})
    state = cleaned(proto, CLEAN, warned="outputs would differ")
    assert state.model is state.start.model


def test_a_nearly_dead_neighbour_does_not_blur_the_others() -> None:
    """Biases are compared channel by channel, however large one of them is for its scale."""
    b = Builder(12)
    w = copied(b.rng.standard_normal((5, 3, 1, 1)), {3: (1, 1.0)})
    scale, bias = np.array([1e-9, 1, 1, 1, 1]), np.array([1, 0.1, 0.2, 0.3, 0.4])
    vectors = (scale, bias, np.zeros(5), np.ones(5))
    x = b.node("Conv", "x", b.add(w))
    x = b.node("Relu", b.node("BatchNormalization", x, *(b.add(v) for v in vectors)))
    b.node("Conv", x, b.weight(4, 5, 1, 1))
    state = cleaned(b.model(IMAGE, {"v3": ["n", 4, 8, 8]}), CLEAN)
    assert state.model is state.start.model
