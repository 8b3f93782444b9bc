"""Quantised operators: weights are cut with their scales, zero points and biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnxprune.backend.feeds import seeded_inputs
from onnxprune.normal.floats import without_quantizers
from tests.builder import Builder
from tests.oracle import (
    assert_cut_equals_mask,
    cut_at,
    flow_of,
    random_removed,
    run,
)

seeds = st.integers(0, 1000)


class Quantised(Builder):
    """A builder that knows integer weights, their scales and zero points."""

    def scale(self, count: int = 0) -> str:
        """One scale, or one for each of `count` channels."""
        return self.add(self.rng.uniform(0.01, 0.05, (count,) if count else ()))

    def zero(self, count: int = 0, dtype: Any = np.int8) -> str:
        low, high = (-20, 20) if dtype == np.int8 else (110, 146)
        return self.add(self.rng.integers(low, high, (count,) if count else ()), dtype)

    def byte(self) -> str:
        """A zero point of unsigned numbers."""
        return self.zero(dtype=np.uint8)

    def integers(self, *shape: int, dtype: Any = np.int8) -> str:
        low, high = (-100, 100) if dtype == np.int8 else (20, 230)
        return self.add(self.rng.integers(low, high, shape), dtype)

    def rounded(self, x: str) -> str:
        """A quantiser and its dequantiser."""
        scale, zero = self.add(0.05), self.add(3, np.int8)
        return self.node(
            "DequantizeLinear", self.node("QuantizeLinear", x, scale, zero), scale, zero
        )

    def stored(self, *shape: int, axis: int | None = 0) -> str:
        """An integer weight behind its dequantiser; `axis` None for one scale."""
        count = shape[axis] if axis is not None else 0
        operands = self.integers(*shape), self.scale(count), self.zero(count)
        return self.node("DequantizeLinear", *operands, axis=axis or 0)

    def bias(self, count: int) -> str:
        whole = self.add(self.rng.integers(-50, 50, count), np.int32)
        operands = whole, self.scale(count), self.add(np.zeros(count), np.int32)
        return self.node("DequantizeLinear", *operands, axis=0)


def pairs(seed: int, axis: int | None, groups: int) -> ModelProto:
    """Conv > Conv in groups > Conv > pool > Gemm between quantisers."""
    b = Quantised(seed)
    x = b.node("Conv", b.rounded("x"), b.stored(6, 2, 3, 3, axis=axis), b.bias(6))
    x = b.rounded(b.node("Relu", x))
    x = b.node("Conv", x, b.stored(8, 6 // groups, 1, 1, axis=axis), b.bias(8), group=groups)
    x = b.rounded(x)
    x = b.rounded(b.node("ConvTranspose", x, b.stored(8, 4, 2, 2, axis=axis and 1), b.bias(4)))
    x = b.rounded(b.node("GlobalAveragePool", x))
    x = b.node("Flatten", x)
    x = b.node("Gemm", x, b.stored(3, 4, axis=axis), b.bias(3), transB=1)
    return b.model({"x": ["n", 2, 6, 6]}, {x: ["n", 3]})


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("groups", [1, 2])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_pairs_are_cut_with_their_scales(axis: int | None, groups: int, seed: int) -> None:
    """Weights behind dequantisers lose rows and columns, each group columns of its own."""
    found, *_ = assert_cut_equals_mask(pairs(seed, axis, groups), seed, compared=without_quantizers)
    assert found.widths() == sorted(
        [(groups, 6 // groups), (groups, 8 // groups), (1, 4)] + [(1, 2)] * (groups > 1)
    )


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_depthwise_weights_behind_dequantisers(seed: int) -> None:
    """One filter a channel: the groups go with the channels."""
    b = Quantised(seed)
    x = b.rounded(b.node("Conv", b.rounded("x"), b.stored(6, 2, 1, 1)))
    x = b.rounded(b.node("Conv", x, b.stored(6, 1, 3, 3), b.bias(6), group=6))
    x = b.node("Conv", x, b.stored(3, 6, 1, 1))
    x = b.node("Transpose", x, perm=[0, 2, 3, 1])
    found, *_ = assert_cut_equals_mask(
        b.model({"x": ["n", 2, 5, 5]}, {x: ["n", "a", "b", 3]}), seed, compared=without_quantizers
    )
    assert found.widths() == [(1, 6)]


def whole(seed: int, many: int, groups: int = 1, kind: Any = np.int8) -> ModelProto:
    """Operators that compute on integers; `many` scales for each weight, or single ones."""
    b = Quantised(seed)

    def conv(x: str, rows: int, columns: int, group: int = 1) -> str:
        steps = rows * many
        return b.node(
            "QLinearConv", x, b.scale(), b.byte(), b.integers(rows, columns, 1, 1, dtype=kind),
            b.scale(steps), b.zero(steps, dtype=kind), b.scale(), b.byte(),
            b.add(b.rng.integers(-50, 50, rows), np.int32), group=group,
        )  # fmt: skip

    x = b.node("QuantizeLinear", "x", b.scale(), b.byte())
    x = conv(x, 6, 2)
    y = conv(x, 6, 6 // groups, groups)
    operands = x, b.scale(), b.byte(), y, b.scale(), b.byte(), b.scale(), b.byte()
    x = b.node("QLinearAdd", *operands, domain="com.microsoft")
    pool = b.scale(), b.byte(), b.scale(), b.byte()
    x = b.node("QLinearGlobalAveragePool", x, *pool, domain="com.microsoft")
    x = b.node("Flatten", x)
    x = b.node(
        "QLinearMatMul", x, b.scale(), b.byte(), b.integers(6, 5, dtype=kind),
        b.scale(5 * many), b.zero(5 * many, dtype=kind), b.scale(), b.byte(),
    )  # fmt: skip
    x = b.node(
        "QGemm", x, b.scale(), b.byte(), b.integers(3, 5, dtype=kind), b.scale(3 * many),
        b.zero(3 * many, dtype=kind), b.add(b.rng.integers(-50, 50, 3), np.int32),
        transB=1, alpha=0.7, domain="com.microsoft",
    )  # fmt: skip
    return b.model({"x": ["n", 2, 4, 4]}, {x: ["n", 3]})


@pytest.mark.parametrize("many", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_integer_operators_are_cut_with_their_vectors(many: int, groups: int, seed: int) -> None:
    """QLinearConv, QLinearMatMul and QGemm have a scale, a zero point and a bias each filter."""
    found, *_ = assert_cut_equals_mask(whole(seed, many, groups), seed, compared=without_quantizers)
    assert found.widths() == sorted([(groups, 6 // groups), (1, 5)] + [(1, 2)] * (groups > 1))


@pytest.mark.parametrize("many", [0, 1])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_products_of_integers(many: int, seed: int) -> None:
    """MatMulInteger and ConvInteger: zero points follow; what scales the result is elementwise."""
    b = Quantised(seed)
    x = b.node("QuantizeLinear", "x", b.scale(), b.byte())
    x = b.node("ConvInteger", x, b.integers(6, 2, 1, 1), b.byte(), b.zero())
    x = b.node("Mul", b.node("Cast", x, to=TensorProto.FLOAT), b.add(b.rng.random((1, 6, 1, 1))))
    x = b.node("Transpose", b.node("Mul", x, b.add(0.001)), perm=[0, 2, 3, 1])
    x = b.node("QuantizeLinear", x, b.scale(), b.byte())
    zeros = b.byte(), b.zero(5 * many)
    x = b.node("MatMulInteger", x, b.integers(6, 5), *zeros)
    x = b.node("Mul", b.node("Cast", x, to=TensorProto.FLOAT), b.add(b.rng.random(5) * 0.01))
    x = b.node("MatMul", x, b.add(b.rng.standard_normal((5, 3))))
    found, *_ = assert_cut_equals_mask(
        b.model({"x": ["n", 2, 4, 4]}, {x: ["n", "a", "b", 3]}), seed, compared=without_quantizers
    )
    assert found.widths() == [(1, 5), (1, 6)]


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_a_range_over_channels_is_approximate(seed: int) -> None:
    """DynamicQuantizeLinear may be cut, but not exactly."""
    b = Quantised(seed)
    x = b.node("MatMul", "x", b.add(b.rng.standard_normal((4, 6))))
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], ["q", "s", "z"], "dynamic"))
    x = b.node("MatMulInteger", "q", b.integers(6, 5), "z")
    x = b.node("Mul", b.node("Cast", x, to=TensorProto.FLOAT), "s")
    x = b.node(
        "DynamicQuantizeMatMul", x, b.integers(5, 4), b.scale(4), b.zero(4),
        b.add(b.rng.random(4)), domain="com.microsoft",
    )  # fmt: skip
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], ["q1", "s1", "z1"], "again"))
    x = b.node(
        "MatMulIntegerToFloat", "q1", b.integers(4, 6), "s1", b.scale(6), "z1", b.zero(6),
        b.add(b.rng.random(6)), domain="com.microsoft",
    )  # fmt: skip
    x = b.node("MatMul", x, b.add(b.rng.standard_normal((6, 3))))
    found = flow_of(b.model({"x": ["n", 4]}, {x: ["n", 3]}))
    assert found.widths() == [(1, 4), (1, 5), (1, 6), (1, 6)]
    assert [d.size for d in found.dims.free if d.is_exact] == [6]
    made = cut_at(found, random_removed(found.dims, seed, exact_only=False))
    run(made.model.proto, seeded_inputs(found.model.inputs, found.sizes.first, seed))


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_an_axis_scaled_in_blocks_is_held(seed: int) -> None:
    """A block's scale belongs to several columns: they stay; the rows may go."""
    b = Quantised(seed)
    x = b.node("MatMul", "x", b.add(b.rng.standard_normal((4, 8))))
    w = b.node("DequantizeLinear", b.integers(8, 6), b.add(b.rng.random((2, 6))), axis=0,
               block_size=4)  # fmt: skip
    x = b.node("MatMul", b.node("MatMul", x, w), b.add(b.rng.standard_normal((6, 3))))
    found, *_ = assert_cut_equals_mask(
        b.model({"x": ["n", 4]}, {x: ["n", 3]}), seed, compared=without_quantizers
    )
    assert found.widths() == [(1, 6)]
