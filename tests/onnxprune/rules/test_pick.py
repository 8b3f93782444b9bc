"""Ranges and indices of an axis: what is picked stays picked when channels go."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask

T, HEADS, D = 5, 3, 8
seeds = st.integers(0, 1000)


def flat_index(b: Builder, x: str, channels: int) -> str:
    """Indices of all positions of a flat (batch, channels), made from the batch."""
    rows = b.node("Gather", b.node("Shape", x), b.add(0, "int64"), axis=0)
    rows = b.node("Range", b.add(0, "int64"), rows, b.add(1, "int64"))
    rows = b.node("Unsqueeze", b.node("Mul", rows, b.ints(channels)), b.ints(1, 2, 3))
    columns = b.node("Range", b.add(0, "int64"), b.add(channels, "int64"), b.add(1, "int64"))
    return b.node("Add", rows, b.node("Unsqueeze", columns, b.ints(0, 2, 3)))


@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_a_view_written_as_indices_is_cut(seed: int) -> None:
    """Flattened with the batch and picked up again by computed indices, channels are the same."""
    b = Builder(seed)
    x = b.node("Relu", b.node("Conv", "x", b.weight(D, 3, 1, 1)))
    x = b.node("ReduceMean", x, b.ints(2, 3))
    x = b.node("Gather", b.node("Reshape", x, b.ints(-1)), flat_index(b, x, D))
    x = b.node("MatMul", b.node("Flatten", x), b.weight(D, 3))
    found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3, 4, 4]}, {x: ["n", 3]}), seed)
    assert found.widths() == [(1, D)]


def rotated(b: Builder, x: str, rest: int) -> str:
    """The first positions of each head are turned, the others (maybe none) pass."""
    first = b.node("Slice", x, b.ints(0), b.ints(D - rest), b.ints(3))
    last = b.node("Slice", x, b.ints(D - rest), b.ints(2**62), b.ints(3))
    return b.node("Concat", b.node("Neg", first), last, axis=-1)


def heads(seed: int, rest: int) -> ModelProto:
    b = Builder(seed)

    def split(x: str) -> str:
        x = b.node("Reshape", b.node("MatMul", x, b.weight(3, HEADS * D)), b.ints(0, T, HEADS, D))
        return b.node("Transpose", x, perm=[0, 2, 1, 3])

    q, k = rotated(b, split("x"), rest), rotated(b, split("x"), rest)
    x = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    x = b.node("MatMul", b.node("Softmax", x, axis=-1), split("x"))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.ints(0, 0, HEADS * D))
    x = b.node("MatMul", x, b.weight(HEADS * D, 3))
    return b.model({"x": ["n", T, 3]}, {x: ["n", T, 3]})


@given(seed=seeds, rest=st.sampled_from([0, 2]))
@settings(max_examples=12, deadline=None)
def test_an_empty_range_goes_with_the_heads(seed: int, rest: int) -> None:
    """A range that picks nothing of each head still loses the heads that go."""
    found, *_ = assert_cut_equals_mask(heads(seed, rest), seed)
    assert (1, HEADS) in found.widths()
