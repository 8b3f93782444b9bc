"""Operators that ONNX Runtime's optimizer makes of several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.backend.feeds import seeded_inputs
from tests.builder import CONTRIB, Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed, run

seeds = st.integers(0, 1000)


@pytest.mark.parametrize("groups", [1, 2, 6])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_fused_convolutions(groups: int, seed: int) -> None:
    """A tensor is added to the sum before the activation: it has the same channels."""
    b = Builder(seed)
    x = b.node("Conv", "x", b.weight(6, 2, 1, 1))
    operands = x, b.weight(6, 6 // groups, 3, 3), b.weight(6), x
    more: dict[str, Any] = {"pads": [1, 1, 1, 1], "activation": "Relu", "domain": CONTRIB}
    x = b.node("FusedConv", *operands, group=groups, **more)
    y = b.node("Transpose", x, perm=[0, 2, 3, 1])
    y = b.node("MatMul", y, b.weight(6, 3))
    model = b.model({"x": ["n", 2, 4, 4]}, {y: ["n", 4, 4, 3]})
    found, *_ = assert_cut_equals_mask(model, seed)
    rows = groups if groups < 6 else 1
    assert (rows, 6 // rows) in found.widths()


@given(seed=seeds, left=st.booleans(), right=st.booleans())
@settings(max_examples=4, deadline=None)
def test_fused_products(seed: int, left: bool, right: bool) -> None:
    """FusedMatMul and FusedGemm transpose their factors by themselves."""
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(4, 6))
    x = b.node("Transpose", x, perm=[0, 2, 1]) if left else x
    weight = b.weight(5, 6) if right else b.weight(6, 5)
    more: dict[str, Any] = {
        "transA": int(left),
        "transB": int(right),
        "alpha": 0.5,
        "domain": CONTRIB,
    }
    x = b.node("FusedMatMul", x, weight, **more)
    x = b.node("Reshape", x, b.ints(-1, 5))
    weight = b.weight(7, 5) if right else b.weight(5, 7)
    more = {"transB": int(right), "activation": "Relu", "domain": CONTRIB}
    x = b.node("FusedGemm", x, weight, b.weight(7), **more)
    x = b.node("MatMul", x, b.weight(7, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3, 4]}, {x: ["m", 3]}), seed)
    assert found.widths() == [(1, 5), (1, 6), (1, 7)]


@pytest.mark.parametrize("simple", [False, True])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_fused_norms_are_approximate(simple: bool, seed: int) -> None:
    """A stream with a skip: its tables, scales and biases go together."""
    b = Builder(seed)
    tables = b.weight(10, 6), b.weight(4, 6), b.weight(2, 6)
    x = b.node("EmbedLayerNormalization", "ids", "", *tables[:2], "", b.weight(6), b.weight(6),
               outputs=2, domain=CONTRIB)  # fmt: skip
    y = b.node("MatMul", b.node("Gelu", b.node("MatMul", x, b.weight(6, 8)), domain=CONTRIB),
               b.weight(8, 6))  # fmt: skip
    vectors = [b.weight(6) for _ in range(2 if simple else 3)]
    op = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
    y = b.node(op, x, y, *vectors, outputs=4, domain=CONTRIB)
    y = b.node("Add", y, f"{y}_3")
    y = b.node("MatMul", y, b.weight(6, 3))
    for node in b.nodes:
        if node.op_type == op:
            node.output[1] = node.output[2] = ""
    model = b.model({"ids": ["n", 4]}, {y: ["n", 4, 3]}, types={"ids": 6})
    found = flow_of(model)
    assert found.widths() == [(1, 6), (1, 8)]
    assert [d.size for d in found.dims.free if d.is_exact] == [8]
    made = cut_at(found, random_removed(found.dims, seed, exact_only=False))
    feeds = seeded_inputs(found.model.inputs, found.sizes.first, seed, high=4)
    assert np.isfinite(run(made.model.proto, feeds)[0]).all()


def test_what_an_optimizer_made_can_be_cut() -> None:
    """Shapes of ONNX Runtime's own operators are known, so that nothing behind them is held."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(4, 6))
    x = b.node("BiasGelu", x, b.weight(6), domain=CONTRIB)
    x = b.node("QuickGelu", b.node("MatMul", x, b.weight(6, 5)), domain=CONTRIB)
    x = b.node("MatMul", x, b.weight(5, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 4]}, {x: ["n", 3]}), 0)
    assert found.widths() == [(1, 5), (1, 6)]
