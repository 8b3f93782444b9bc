"""Operands lined up by labels: what passes an operator, and what stays tied."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask

T, HEADS, SHARED, D = 5, 6, 3, 4
seeds = st.integers(0, 1000)


def heads_of(b: Builder, x: str, count: int) -> str:
    """Heads of their own axis, made by a product."""
    x = b.node("MatMul", x, b.weight(8, count * D))
    x = b.node("Reshape", x, b.ints(0, T, count, D))
    return b.node("Transpose", x, perm=[0, 2, 1, 3])


def repeated(b: Builder, x: str, scale: float) -> str:
    """Each head serves several, by Expand and Reshape; then an operator of one operand."""
    x = b.node("Unsqueeze", heads_of(b, x, SHARED), b.ints(2))
    x = b.node("Expand", x, b.ints(1, SHARED, HEADS // SHARED, T, D))
    x = b.node("Reshape", x, b.ints(-1, HEADS, T, D))
    return b.node("Mul", x, b.add(scale))


def shared_heads(seed: int) -> ModelProto:
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(3, 8))
    keys = b.node("Transpose", repeated(b, x, 0.5), perm=[0, 1, 3, 2])
    scores = b.node("Softmax", b.node("MatMul", heads_of(b, x, HEADS), keys), axis=-1)
    x = b.node("MatMul", scores, repeated(b, x, 2.0))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.ints(0, 0, HEADS * D))
    x = b.node("MatMul", x, b.weight(HEADS * D, 3))
    return b.model({"x": ["n", T, 3]}, {x: ["n", T, 3]})


@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_heads_that_share_a_key_pass_an_operator(seed: int) -> None:
    """A key goes with all heads it serves, also behind an operator with a scalar."""
    found, *_ = assert_cut_equals_mask(shared_heads(seed), seed)
    assert (1, SHARED) in found.widths()  # keys, each with the heads it serves
    assert (SHARED, D) in found.widths()  # channels of each value
