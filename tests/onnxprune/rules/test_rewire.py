"""Operands that name shapes follow the cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask

T, HEADS, D = 5, 4, 3


@given(seed=st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_a_batch_found_by_division_is_inferred(seed: int) -> None:
    """Batch and heads in one axis, the batch told by dividing by the old count of heads."""
    b = Builder(seed)

    def flat(x: str) -> str:
        x = b.node("Reshape", b.node("MatMul", x, b.weight(3, HEADS * D)), b.ints(0, T, HEADS, D))
        x = b.node("Transpose", x, perm=[0, 2, 1, 3])
        return b.node("Reshape", x, b.ints(-1, T, D))

    x = b.node("MatMul", flat("x"), b.node("Transpose", flat("x"), perm=[0, 2, 1]))
    x = b.node("MatMul", b.node("Softmax", x, axis=-1), flat("x"))
    count = b.node("Gather", b.node("Shape", x), b.ints(0), axis=0)
    batch = b.node("Div", count, b.ints(HEADS))
    shape = b.node("Concat", batch, b.ints(HEADS), b.ints(T), b.ints(D), axis=0)
    x = b.node("Transpose", b.node("Reshape", x, shape), perm=[0, 2, 1, 3])
    x = b.node("Reshape", x, b.ints(0, T, HEADS * D))
    x = b.node("MatMul", x, b.weight(HEADS * D, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", T, 3]}, {x: ["n", T, 3]}), seed)
    assert (1, HEADS) in found.widths()
