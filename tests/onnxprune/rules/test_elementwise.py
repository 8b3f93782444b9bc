"""Elementwise operators: what meets by broadcasting is one channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import CONTRIB, Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed

C = 6
seeds = st.integers(0, 1000)
Middle = Callable[[Builder, str], str]


def images(seed: int, middle: Middle, size: int | str = 4) -> ModelProto:
    """Convolution > what is tested, on [N, C, 4, 4] > convolution."""
    b = Builder(seed)
    x = b.node("Conv", "x", b.weight(C, 3, 1, 1), b.weight(C))
    x = b.node("Conv", middle(b, x), b.weight(3, C, 1, 1))
    return b.model({"x": ["n", 3, size, size]}, {x: ["n", 3, size, size]})


SHAPES = [(C, 1, 1), (1, C, 1, 1), (1,), (), (4, 4), (1, 1, 4, 4), (C, 4, 4), (1, C, 4, 1)]


@pytest.mark.parametrize("op", ["Add", "Mul", "Max", "PRelu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_constants_of_every_shape(op: str, shape: tuple[int, ...]) -> None:
    """A vector of channels follows them; what all channels share stays."""
    for seed in range(3):
        model = images(seed, lambda b, x: b.node(op, x, b.weight(*shape)))
        found, removed, made = assert_cut_equals_mask(model, seed)
        assert found.widths() == [(1, C)]
    node = next(n for n in made.model.nodes if n.op == op)
    left = C - int(removed.sum())
    assert made.model.dims(node.inputs[1]) == tuple(left if n == C else n for n in shape)


def where(b: Builder, x: str) -> str:
    return b.node("Where", b.node("Greater", x, b.weight(C, 1, 1)), x, b.add(0.5))


def three(b: Builder, x: str) -> str:
    return b.node("Sum", x, b.node("Sigmoid", x), b.weight(C, 1, 1))


def clipped(b: Builder, x: str) -> str:
    return b.node("Clip", x, "", b.add(1.0))


def residual(b: Builder, x: str) -> str:
    return b.node("Add", b.node("Conv", x, b.weight(C, C, 3, 3), pads=[1] * 4), x)


def pooled_gate(b: Builder, x: str) -> str:
    gate = b.node("Conv", b.node("GlobalAveragePool", x), b.weight(C, C, 1, 1))
    return b.node("Mul", b.node("HardSigmoid", gate), x)


@pytest.mark.parametrize("middle", [where, three, clipped, residual, pooled_gate],
                         ids=lambda f: f.__name__)  # fmt: skip
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_values_of_the_same_shape(middle: Middle, seed: int) -> None:
    """Channels that meet live and die together."""
    found, *_ = assert_cut_equals_mask(images(seed, middle), seed)
    assert found.widths() == [(1, C)]


def test_an_input_holds_what_it_meets() -> None:
    """What the caller gives has a length he knows; the reason names it."""
    b = Builder(0)
    x = b.node("Add", b.node("MatMul", "x", b.weight(3, C)), "more")
    x = b.node("MatMul", x, b.weight(C, 3))
    found = flow_of(b.model({"x": ["n", 3], "more": ["n", C]}, {x: ["n", 3]}))
    assert found.widths() == []
    assert "graph input `more`, axis 1" in found.pins()


def test_pixels_that_meet_an_input_stay_whole() -> None:
    """Channels on several axes are held along the one that cannot shrink, not along the others."""
    b = Builder(0)
    x = b.node("Reshape", b.node("Gemm", "x", b.weight(3, 24)), b.ints(-1, C, 2, 2))
    x = b.node("Conv", b.node("Add", x, "more"), b.weight(3, C, 1, 1))
    model = b.model({"x": ["n", 3], "more": [1, 1, 2, 2]}, {x: ["n", 3, 2, 2]})
    for seed in range(3):
        found, *_ = assert_cut_equals_mask(model, seed)
    assert found.widths() == [(1, C)]


def test_two_vectors_of_equal_zeros_are_two() -> None:
    """An initializer that is shared by chance does not tie its readers."""
    b = Builder(0)
    bias = b.add(np.zeros(C))
    x = b.node("Add", b.node("MatMul", "x", b.weight(3, C)), bias)
    x = b.node("Add", b.node("MatMul", b.node("Relu", x), b.weight(C, C)), bias)
    x = b.node("MatMul", x, b.weight(C, 3))
    for seed in range(3):
        found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {x: ["n", 3]}), seed)
    assert found.widths() == [(1, C), (1, C)]


def test_fused_activations_with_and_without_bias() -> None:
    """ONNX Runtime's own; FastGelu with a bias is held."""
    def gelu(b: Builder, x: str) -> str:
        x = b.node("BiasGelu", x, b.weight(C), domain=CONTRIB)
        return b.node("QuickGelu", x, domain=CONTRIB)

    def model(middle: Middle) -> ModelProto:
        b = Builder(0)
        x = middle(b, b.node("MatMul", "x", b.weight(3, C)))
        return b.model({"x": ["n", 3]}, {b.node("MatMul", x, b.weight(C, 3)): ["n", 3]})

    found, *_ = assert_cut_equals_mask(model(gelu), 1)
    assert found.widths() == [(1, C)]
    held = flow_of(model(lambda b, x: b.node("FastGelu", x, b.weight(C), domain=CONTRIB)))
    assert "numbers of its own" in held.pins()


@pytest.mark.parametrize("joint_first", [True, False])
def test_a_scale_shared_by_all_heads_ties_their_positions(joint_first: bool) -> None:
    """`[D]` on `[B, A, T, D]`: one number serves position d of every head."""
    b = Builder(0)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, 12)), b.ints(0, 0, 3, 4))
    scale = b.weight(4)
    x = b.node("Mul", *((x, scale) if joint_first else (scale, x)))
    x = b.node("MatMul", b.node("Reshape", x, b.ints(0, 0, 12)), b.weight(12, 3))
    model = b.model({"x": ["n", 5, 3]}, {x: ["n", 5, 3]})
    found, *_ = assert_cut_equals_mask(model, 1)
    assert found.widths() == [(1, 4)]
    assert cut_at(found, random_removed(found.dims, 3)).model.nodes
