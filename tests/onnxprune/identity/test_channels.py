"""What joins channels: rows that must go together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask

T, HEADS, D = 5, 4, 3


def mixed_heads(seed: int) -> ModelProto:
    """Queries, keys and values packed as (3, heads, size); a product mixes the heads' scores."""
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(3, 3 * HEADS * D))
    x = b.node("Reshape", x, b.ints(0, T, 3, HEADS, D))
    x = b.node("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.node("Gather", x, b.add(i, "int64"), axis=0) for i in range(3))
    x = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    x = b.node("MatMul", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.weight(HEADS, HEADS))
    x = b.node("Softmax", b.node("Transpose", x, perm=[0, 3, 1, 2]), axis=-1)
    x = b.node("Transpose", b.node("MatMul", x, v), perm=[0, 2, 1, 3])
    x = b.node("MatMul", b.node("Reshape", x, b.ints(0, T, -1)), b.weight(HEADS * D, 3))
    return b.model({"x": ["n", T, 3]}, {x: ["n", T, 3]})


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_packed_rows_lose_the_same_heads(seed: int) -> None:
    """Heads of queries and of values share one axis, so they are the same heads."""
    found, *_ = assert_cut_equals_mask(mixed_heads(seed), seed)
    assert (1, HEADS) in found.widths()
