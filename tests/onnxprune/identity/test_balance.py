"""Counts that balances allow, and rows that are woven into one axis and cut apart again."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxprune.identity.balance import feasible_levels
from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask

seeds = st.integers(0, 1000)


def conv(b: Builder, x: str, rows: int, columns: int, kernel: int = 1, group: int = 1) -> str:
    w = b.weight(rows, columns // group, kernel, kernel)
    x = b.node("Conv", x, w, b.weight(rows), group=group, pads=[kernel // 2] * 4)
    return b.node("Relu", x)


def shuffle(b: Builder, x: str, channels: int, groups: int) -> str:
    """Channels of the groups take turns."""
    x = b.node("Reshape", x, b.ints(0, groups, channels // groups, 16))
    x = b.node("Transpose", x, perm=[0, 2, 1, 3])
    return b.node("Reshape", x, b.ints(-1, channels, 4, 4))


def halves(seed: int, units: int, *, sliced: bool) -> ModelProto:
    """Units that work on one half of the channels and shuffle both."""
    b = Builder(seed)
    x = conv(b, "x", 28, 3)
    for _ in range(units):
        if sliced:
            left = b.node("Slice", x, b.ints(0), b.ints(14), b.ints(1))
            right = b.node("Slice", x, b.ints(14), b.ints(2**40), b.ints(1))
        else:
            left = b.node("Split", x, b.ints(14, 14), axis=1, outputs=2)
            right = f"{left}_1"
        right = conv(b, conv(b, conv(b, right, 14, 14), 14, 14, 3, 14), 14, 14)
        x = shuffle(b, b.node("Concat", left, right, axis=1), 28, 2)
    x = b.node("Conv", x, b.weight(3, 28, 1, 1))
    return b.model({"x": ["n", 3, 4, 4]}, {x: ["n", 3, 4, 4]})


@given(seed=seeds, units=st.integers(1, 4), sliced=st.booleans())
@settings(max_examples=12, deadline=None)
def test_halves_of_shuffled_channels_are_cut(seed: int, units: int, sliced: bool) -> None:
    """A half of a shuffled axis holds what is left of the channels it held before."""
    found, *_ = assert_cut_equals_mask(halves(seed, units, sliced=sliced), seed)
    assert any(rows > 1 and size > 1 for rows, size in found.widths())


@given(seed=seeds)
@settings(max_examples=6, deadline=None)
def test_groups_of_shuffled_channels_are_cut(seed: int) -> None:
    """Groups that each take their part of a shuffled axis keep taking those channels."""
    b = Builder(seed)
    x = conv(b, conv(b, "x", 30, 3), 30, 30, 1, 2)
    x = conv(b, shuffle(b, x, 30, 2), 30, 30, 1, 2)
    x = b.node("Conv", x, b.weight(3, 30, 1, 1))
    model = b.model({"x": ["n", 3, 4, 4]}, {x: ["n", 3, 4, 4]})
    found, *_ = assert_cut_equals_mask(model, seed)
    assert len(found.dims.free) >= 2


def test_an_odd_part_of_woven_rows_gives_one_more_to_the_first() -> None:
    """Two rows of 15 and 14 positions before a boundary: counts are equal or fall by one."""
    sizes = [15, 14, 14, 15]
    rows = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], float)
    step = np.array([[1, 0, 0, 0], [0, 0, 1, 0]], float)
    levels = feasible_levels(sizes, [rows], [step])
    assert len(levels) > 8
    assert set((levels[:, 0] - levels[:, 2]).tolist()) <= {0, 1}
    assert (levels[:, :2].sum(axis=1) == levels[:, 2:].sum(axis=1)).all()
