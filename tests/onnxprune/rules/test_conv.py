"""Convolutions and pools: channels and groups go, spatial axes stay whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxprune.rules import load_rules
from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of

seeds = st.integers(0, 1000)
Middle = Callable[[Builder, str], str]


def around(seed: int, middle: Middle, width: int = 6, out: int = 6) -> ModelProto:
    """Image > 1 x 1 convolution > what is tested > 1 x 1 convolution."""
    b = Builder(seed)
    x = b.node("Conv", "x", b.weight(width, 3, 1, 1), b.weight(width))
    x = b.node("Conv", middle(b, x), b.weight(3, out, 1, 1))
    return b.model({"x": ["n", 3, 6, 6]}, {x: ["n", 3, "h", "w"]})


def conv(op: str, groups: int, out: int, **more: Any) -> Middle:
    """A convolution of 6 channels into `out`."""

    def middle(b: Builder, x: str) -> str:
        shape = (out, 6 // groups) if op == "Conv" else (6, out // groups)
        return b.node(op, x, b.weight(*shape, 3, 3), b.weight(out), group=groups, **more)

    return middle


CASES: list[tuple[str, int, int, list[tuple[int, int]]]] = [
    ("Conv", 1, 8, [(1, 6), (1, 8)]),
    ("Conv", 2, 8, [(1, 2), (2, 3), (2, 4)]),
    ("Conv", 6, 6, [(1, 6)]),
    ("Conv", 6, 12, [(1, 6), (6, 2)]),
    ("Conv", 3, 3, [(1, 3), (3, 2)]),
    ("ConvTranspose", 1, 8, [(1, 6), (1, 8)]),
    ("ConvTranspose", 2, 8, [(1, 2), (2, 3), (2, 4)]),
    ("ConvTranspose", 6, 6, [(1, 6)]),
    ("ConvTranspose", 6, 12, [(1, 6), (6, 2)]),
]


@pytest.mark.parametrize(("op", "groups", "out", "widths"), CASES, ids=str)
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_channels_and_groups_are_cut(
    op: str, groups: int, out: int, widths: list[tuple[int, int]], seed: int
) -> None:
    """Groups go whole, or thin alike; a group of one filter goes with its channel."""
    model = around(seed, conv(op, groups, out, strides=[2, 2], pads=[1] * 4), out=out)
    found, *_ = assert_cut_equals_mask(model, seed)
    assert found.widths() == widths


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_groups_that_are_gone_are_not_counted(op: str) -> None:
    """The attribute says how many groups are left."""
    found = flow_of(around(0, conv(op, 2, 8), out=8))
    heads = next(d for d in found.dims.free if d.size == 2)
    removed = np.zeros(found.dims.count, np.bool_)
    removed[heads.channels[0]] = True
    removed[found.dims.children[int(heads.channels[0])]] = True
    made = cut_at(found, removed)
    node = next(n for n in made.model.nodes if n.op == op and n.attr("group"))
    assert node.attr("group") == 1
    assert made.first.shape[node.outputs[0]][1] == 4


def test_a_signal_has_one_axis_of_space() -> None:
    """Kernels of any rank are followed."""
    b = Builder(0)
    x = b.node("Conv", "x", b.weight(6, 3, 3), pads=[1, 1])
    x = b.node("MaxPool", x, kernel_shape=[2], strides=[2])
    x = b.node("Conv", x, b.weight(3, 6, 1))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3, 8]}, {x: ["n", 3, 4]}), 1)
    assert found.widths() == [(1, 6)]


@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool", "LpPool"])
def test_pools_keep_channels_apart(pool: str) -> None:
    """A window sees one channel only."""
    found, *_ = assert_cut_equals_mask(
        around(3, lambda b, x: b.node(pool, x, kernel_shape=[3, 3], pads=[1] * 4)), 3
    )
    assert found.widths() == [(1, 6)]


@pytest.mark.parametrize("pooled", [False, True])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_columns_that_become_pixels_go_by_channel(pooled: bool, seed: int) -> None:
    """A product whose columns become an image loses all columns of a channel, or none."""
    b = Builder(seed)
    x = b.node("Gemm", "x", b.weight(3, 24), b.weight(24))
    x = b.node("Reshape", x, b.ints(-1, 6, 2, 2))
    if pooled:
        x = b.node("AveragePool", x, kernel_shape=[2, 2])
    x = b.node("Conv", x, b.weight(3, 6, 1, 1))
    model = b.model({"x": ["n", 3]}, {x: ["n", 3, "h", "w"]})
    found, *_ = assert_cut_equals_mask(model, seed)
    assert found.widths() == [(1, 6)]


def test_what_lives_on_pixels_alone_is_held() -> None:
    """An image of one channel has nothing that could go."""
    b = Builder(0)
    x = b.node("Reshape", b.node("Gemm", "x", b.weight(3, 4)), b.ints(-1, 1, 2, 2))
    x = b.node("Conv", b.node("MaxPool", x, kernel_shape=[1, 1]), b.weight(3, 1, 1, 1))
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3, 2, 2]}))
    assert found.widths() == []
    assert "over spatial positions" in found.pins()


MACS = [("Conv", 8 * 16 * 3 * 9), ("ConvTranspose", 6 * 36 * 4 * 9)]


@pytest.mark.parametrize(("op", "macs"), MACS)
def test_multiplications_are_counted(op: str, macs: int) -> None:
    """Output elements times a filter, or input elements times what each is multiplied by."""
    b = Builder(0)
    shape = (8, 3, 3, 3) if op == "Conv" else (6, 4, 3, 3)
    x = b.node(op, "x", b.weight(*shape), group=2 if op == "Conv" else 1)
    found = flow_of(b.model({"x": [1, 6, 6, 6]}, {x: [1, "c", "h", "w"]}))
    [node] = found.model.nodes
    rule = load_rules().find(node, 21)
    assert rule is not None
    assert rule.macs is not None
    assert rule.macs(node, found.shapes[0].shape.__getitem__) == macs


@given(seed=seeds)
@settings(max_examples=6, deadline=None)
def test_columns_that_a_kernel_leaves_alone_are_cut(seed: int) -> None:
    """A filter over tokens, one for each head, says nothing of the sizes of heads."""
    b = Builder(seed)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, 12)), b.ints(0, 5, 2, 6))
    x = b.node("Transpose", x, perm=[0, 2, 1, 3])
    x = b.node("Conv", x, b.weight(2, 1, 3, 1), group=2, pads=[1, 0, 1, 0])
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.ints(0, 5, 12))
    x = b.node("MatMul", x, b.weight(12, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 5, 3]}, {x: ["n", 5, 3]}), seed)
    assert (2, 6) in found.widths()
