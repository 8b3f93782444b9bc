"""Sums, means, orders and softmaxes along an axis."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed

C = 6
seeds = st.integers(0, 1000)


def reduced(seed: int, op: str, axes: list[int], opset: int = 21, keep: int = 1) -> ModelProto:
    """Product > Reduce of [N, 4, C] > product of what is left."""
    b = Builder(seed)
    x = b.node("Abs", b.node("MatMul", "x", b.weight(3, C)))
    if opset >= 18 or op == "ReduceSum":
        y = b.node(op, x, b.ints(*axes), keepdims=keep)
    else:
        y = b.node(op, x, axes=axes, keepdims=keep)
    width = 1 if 2 in axes or -1 in axes else C
    if width == 1 and not keep:
        y = b.node("Unsqueeze", y, b.ints(-1))
    y = b.node("MatMul", y, b.weight(width, 3))
    return b.model({"x": ["n", 4, 3]}, {y: ["n", 3] if axes == [1] and not keep else
                                        ["n", "t", 3]}, opset=opset)  # fmt: skip


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("keep", [0, 1])
@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_sums_over_channels_are_exact(op: str, keep: int, seed: int) -> None:
    """Zeros do not count."""
    found, *_ = assert_cut_equals_mask(reduced(seed, op, [-1], keep=keep), seed)
    assert found.widths() == [(1, C)]
    assert all(d.is_exact for d in found.dims.free)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("opset", [17, 21])
def test_means_over_channels_are_approximate(op: str, opset: int) -> None:
    """Removing a channel is not the same as zeroing it."""
    found = flow_of(reduced(0, op, [2], opset))
    [dim] = found.dims.free
    assert "over channels" in dim.approximate
    cut_at(found, random_removed(found.dims, 1, exact_only=False))


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceLogSumExp", "ReduceProd"])
@pytest.mark.parametrize("keep", [0, 1])
def test_other_axes_pass(op: str, keep: int) -> None:
    """Over positions every channel is reduced by itself."""
    found, *_ = assert_cut_equals_mask(reduced(1, op, [1], keep=keep), 1)
    assert found.widths() == [(1, C)]


@pytest.mark.parametrize("op", ["ReduceProd", "ReduceLogSum", "ReduceLogSumExp"])
def test_what_a_missing_channel_would_change_is_held(op: str) -> None:
    """A product with a zero is another than a product without it."""
    assert "over channels" in flow_of(reduced(0, op, [2])).pins()


def test_axes_that_are_missing_are_all_or_none() -> None:
    """An empty list means every axis, unless the node says otherwise."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(3, C))
    same = b.node("ReduceSum", x, noop_with_empty_axes=1)
    total = b.node("ReduceSum", x, keepdims=1)
    y = b.node("MatMul", b.node("Add", same, total), b.weight(C, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {y: ["n", 3]}), 3)
    assert found.widths() == [(1, C)]


def test_computed_axes_hold_everything() -> None:
    """Nobody knows what is summed."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(3, C))
    axis = b.node("Cast", b.node("ReduceMax", "x", keepdims=0), to=7)
    axes = b.node("Unsqueeze", axis, b.ints(0))
    y = b.node("ReduceSum", x, axes, keepdims=1)
    found = flow_of(b.model({"x": [2, 3]}, {y: ["a", "b"]}))
    assert found.widths() == []


def ordered(seed: int, op: str, opset: int = 21, **more: int) -> ModelProto:
    """Product > an operator along an axis of [N, 4, C] > product."""
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(3, C))
    if op == "CumSum":
        y = b.node(op, x, b.add(more["axis"], "int64"))
    elif op == "TopK":
        y = b.node(op, x, b.ints(2), outputs=2, **more)
    else:
        y = b.node(op, x, **more)
    if op.startswith("Arg"):
        y = b.node("Mul", b.node("Cast", y, to=1), b.node("ReduceSum", x, b.ints(1), keepdims=0))
    y = b.node("MatMul", y, b.weight(C, 3))
    return b.model({"x": ["n", 4, 3]}, {y: ["n", 3] if op.startswith("Arg") else
                                        ["n", "t", 3]}, opset=opset)  # fmt: skip


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "CumSum", "TopK"])
@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_along_positions_channels_pass(op: str, seed: int) -> None:
    """Each channel is ordered or normalised by itself."""
    found, *_ = assert_cut_equals_mask(ordered(seed, op, axis=1), seed)
    assert found.widths() == [(1, C)]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_places_of_extremes(op: str) -> None:
    """Which position is largest is told for each channel."""
    found, *_ = assert_cut_equals_mask(ordered(0, op, axis=1, keepdims=0), 2)
    assert found.widths() == [(1, C)]


@pytest.mark.parametrize("op", ["Softmax", "Hardmax", "CumSum"])
def test_along_channels_they_are_held(op: str) -> None:
    """A share of a whole, or a place in an order, has a meaning."""
    found = flow_of(ordered(0, op, axis=2))
    assert found.widths() == []
    assert "over channels" in found.pins()


def test_old_softmaxes_run_over_all_axes_behind() -> None:
    """Before opset 13 the axis was where flattening begins."""
    assert flow_of(ordered(0, "Softmax", 12, axis=1)).widths() == []
    assert flow_of(ordered(0, "Softmax", 13, axis=1)).widths() == [(1, C)]
