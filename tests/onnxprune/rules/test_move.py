"""Operators that move data: identities go where the data goes, and come out in its order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed

C = 6
seeds = st.integers(0, 1000)
Middle = Callable[[Builder, str], str]


def vectors(seed: int, middle: Middle, out: int = C, width: int = C) -> ModelProto:
    """Product > what is tested, on [N, width] > product."""
    b = Builder(seed)
    x = b.node("Gemm", "x", b.weight(3, width), b.weight(width))
    x = b.node("MatMul", middle(b, x), b.weight(out, 3))
    return b.model({"x": ["n", 3]}, {x: ["n", 3]})


def images(seed: int, middle: Middle, out: int = C, width: int = C) -> ModelProto:
    """Convolution > what is tested, on [N, width, 4, 4] > convolution."""
    b = Builder(seed)
    x = b.node("Conv", "x", b.weight(width, 3, 1, 1), b.weight(width))
    x = b.node("Conv", middle(b, x), b.weight(3, out, 1, 1))
    return b.model({"x": ["n", 3, 4, 4]}, {x: ["n", 3, "h", "w"]})


def class_token(b: Builder, x: str) -> str:
    """A learned row, grown to the batch, before the rows of the data; places are added."""
    x = b.node("Unsqueeze", x, b.ints(1))
    target = b.node("Concat", b.node("Shape", x, start=0, end=1), b.ints(1, C), axis=0)
    token = b.node("Expand", b.weight(1, 1, C), target)
    x = b.node("Add", b.node("Concat", token, x, axis=1), b.weight(1, 2, C))
    return b.node("ReduceSum", x, b.ints(1), keepdims=0)


def zeros_beside(b: Builder, x: str) -> str:
    """ConstantOfShape makes columns that are added to others."""
    target = b.node("Concat", b.node("Shape", x, start=0, end=1), b.ints(2), axis=0)
    wide = b.node("Concat", x, b.node("ConstantOfShape", target), axis=1)
    return b.node("Add", wide, b.node("MatMul", x, b.weight(C, C + 2)))


def padded(b: Builder, x: str) -> str:
    x = b.node("Pad", x, b.ints(0, 0, 0, 2), mode="constant")
    return b.node("Add", x, b.node("MatMul", "x", b.weight(3, C + 2)))


def padded_axis(b: Builder, x: str) -> str:
    x = b.node("Pad", x, b.ints(0, 2), "", b.ints(-1))
    return b.node("Add", x, b.node("MatMul", "x", b.weight(3, C + 2)))


def tiled(b: Builder, x: str) -> str:
    return b.node("Tile", x, b.ints(1, 2))


def grown(b: Builder, x: str) -> str:
    """One number a row becomes as many as are added."""
    one = b.node("Tile", b.node("MatMul", "x", b.weight(3, 1)), b.ints(1, C))
    return b.node("Add", x, one)


def minor_heads(b: Builder, x: str) -> str:
    """Rows are turned so that the head is the minor axis of the flat one."""
    x = b.node("Transpose", b.node("Reshape", x, b.ints(-1, 2, 3)), perm=[0, 2, 1])
    return b.node("Mul", b.node("Reshape", x, b.ints(-1, C)), b.weight(C))


def minor_gate(b: Builder, x: str) -> str:
    """What gates a flat axis with minor heads is made in their order."""
    x = minor_heads(b, x)
    return b.node("Mul", x, b.node("Sigmoid", b.node("MatMul", x, b.weight(C, C))))


VECTORS: list[tuple[Middle, int, list[tuple[int, int]]]] = [
    (class_token, C, [(1, C)]),
    (zeros_beside, C + 2, [(1, 2), (1, C)]),
    (padded, C + 2, [(1, 2), (1, C)]),
    (padded_axis, C + 2, [(1, 2), (1, C)]),
    (tiled, 2 * C, [(1, C)]),
    (grown, C, [(1, C)]),
    (minor_heads, C, [(2, 3)]),
    (minor_gate, C, [(2, 3)]),
]


@pytest.mark.parametrize(("middle", "out", "widths"), VECTORS, ids=range(len(VECTORS)))
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_columns_are_followed(
    middle: Middle, out: int, widths: list[tuple[int, int]], seed: int
) -> None:
    """Columns of a vector keep their identities through what moves, repeats or adds them."""
    found, *_ = assert_cut_equals_mask(vectors(seed, middle, out), seed)
    assert [w for w in found.widths() if w in widths] == widths


def shuffled(b: Builder, x: str) -> str:
    """Channels of groups change places, as ShuffleNet has it."""
    x = b.node("Transpose", b.node("Reshape", x, b.ints(0, 2, 3, 4, 4)), perm=[0, 2, 1, 3, 4])
    return b.node("Reshape", x, b.ints(0, C, 4, 4))


def pixels(mode: str) -> Middle:
    """Channels become pixels, are gated by pixel, and become channels again."""

    def middle(b: Builder, x: str) -> str:
        x = b.node("DepthToSpace", x, blocksize=2, mode=mode)
        x = b.node("Mul", x, b.weight(1, 1, 8, 8))
        return b.node("SpaceToDepth", b.node("Conv", x, b.weight(5, 3, 1, 1)), blocksize=2)

    return middle


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_pixel_shuffles(mode: str, seed: int) -> None:
    """Four channels that are the pixels of one go together; so do the four it becomes."""
    found, *_ = assert_cut_equals_mask(images(seed, pixels(mode), 20, 12), seed)
    assert found.widths() == [(1, 3), (1, 5)]


def test_pixels_cannot_go() -> None:
    """Of one channel that is made of four there is nothing to take."""
    model = images(0, lambda b, x: b.node("DepthToSpace", x, blocksize=2), 1, 4)
    found = flow_of(model)
    assert found.widths() == []
    assert "pixels instead of channels" in found.pins()


@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_channel_shuffle(seed: int) -> None:
    """Groups of a shuffle keep equal counts, each channels of its own."""
    found, *_ = assert_cut_equals_mask(images(seed, shuffled), seed)
    assert found.widths() == [(2, 3)]


def test_rows_that_would_change_places_are_one() -> None:
    """A shuffle whose halves meet, each channel at another place than its partner."""

    def middle(b: Builder, x: str) -> str:
        a, c = b.node("Split", shuffled(b, x), b.ints(3, 3), outputs=2, axis=1), ""
        c = f"{a}_1"
        return b.node("Mul", a, b.node("Tanh", c))

    assert flow_of(images(0, middle, 3)).widths() == []


def test_a_concat_of_joint_and_shared_positions() -> None:
    """A row that all positions share joins rows that have positions of their own."""
    b = Builder(0)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, 12)), b.ints(-1, 2, 6))
    target = b.node("Concat", b.node("Shape", x, start=0, end=1), b.ints(1, 6), axis=0)
    x = b.node("Concat", b.node("Expand", b.weight(1, 1, 6), target), x, axis=1)
    x = b.node("MatMul", b.node("Reshape", x, b.ints(-1, 18)), b.weight(18, 3))
    for seed in range(4):
        found, *_ = assert_cut_equals_mask(b.model({"x": ["n", 3]}, {x: ["n", 3]}), seed)
    assert found.widths() == [(3, 6)]


@pytest.mark.parametrize("target", [(0, 2, 3), (-1, 2, 3), (0, -1, 3), (0, 2, -1)])
def test_reshape_entries_that_copy_or_infer_stay(target: tuple[int, ...]) -> None:
    """0 and -1 go on saying what they said; numbers follow."""
    def middle(b: Builder, x: str) -> str:
        return b.node("Reshape", b.node("Reshape", x, b.ints(*target)), b.ints(0, -1))

    for seed in range(4):
        found, _, made = assert_cut_equals_mask(vectors(seed, middle), seed)
    first = next(n for n in made.model.nodes if n.op == "Reshape")
    entries = made.model.array(first.inputs[1])
    assert [int(e) for e in entries if e <= 0] == [e for e in target if e <= 0]
    assert found.widths() == [(2, 3)]


def test_a_mode_that_mirrors_holds_channels() -> None:
    """Only zeros can shrink with what they are added to."""
    model = vectors(0, lambda b, x: b.node("Pad", x, b.ints(0, 1, 0, 1), mode="reflect"), C + 2)
    assert "mode reflect over channels" in flow_of(model).pins()


@pytest.mark.parametrize("op", ["Tile", "Pad"])
def test_amounts_out_of_the_data_hold_everything(op: str) -> None:
    """What a node does is unknown when an operand of it is data."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(3, C))
    amounts = b.node("Cast", b.node("Relu", b.node("ReduceMax", "x", keepdims=0)), to=7)
    count = b.ints(2 if op == "Tile" else 4)
    x = b.node(op, x, b.node("Expand", b.node("Unsqueeze", amounts, b.ints(0)), count))
    found = flow_of(b.model({"x": [2, 3]}, {x: ["n", "m"]}))
    assert found.widths() == []


def test_resized_axes_stay_whole() -> None:
    """Channels pass; a `sizes` operand follows them."""
    def middle(b: Builder, x: str) -> str:
        sizes = b.node("Concat", b.node("Shape", x, start=0, end=2), b.ints(8, 8), axis=0)
        return b.node("Resize", x, "", "", sizes, mode="nearest")

    found, *_ = assert_cut_equals_mask(images(1, middle), 1)
    assert found.widths() == [(1, C)]


def test_sampled_channels_pass() -> None:
    """GridSample takes pixels where the grid says, of every channel."""
    def middle(b: Builder, x: str) -> str:
        shape = b.node("Concat", b.node("Shape", x, start=0, end=1), b.ints(3, 3, 2), axis=0)
        return b.node("GridSample", x, b.node("Expand", b.weight(1, 3, 3, 2), shape))

    found, *_ = assert_cut_equals_mask(images(1, middle), 1)
    assert found.widths() == [(1, C)]


def test_batch_and_heads_share_an_axis() -> None:
    """B x heads in one axis: numbers out of a Shape are scaled, dynamic ones stay dynamic."""
    b = Builder(0)
    q, k, v = (b.node("MatMul", "x", b.weight(3, 8)) for _ in range(3))
    count = b.node("Mul", b.node("Shape", "x", start=0, end=1), b.ints(2))
    flat = b.node("Concat", count, b.ints(5, 4), axis=0)

    def by_head(y: str) -> str:
        y = b.node("Transpose", b.node("Reshape", y, b.ints(0, 5, 2, 4)), perm=[0, 2, 1, 3])
        return b.node("Reshape", y, flat)

    q, k, v = by_head(q), b.node("Transpose", by_head(k), perm=[0, 2, 1]), by_head(v)
    y = b.node("MatMul", b.node("Softmax", b.node("MatMul", q, k), axis=-1), v)
    back = b.node("Concat", b.node("Shape", "x", start=0, end=1), b.ints(2, 5, 4), axis=0)
    y = b.node("Transpose", b.node("Reshape", y, back), perm=[0, 2, 1, 3])
    y = b.node("MatMul", b.node("Reshape", y, b.ints(0, 0, -1)), b.weight(8, 3))
    model = b.model({"x": ["n", 5, 3]}, {y: ["n", 5, 3]})
    for seed in range(6):
        found, *_ = assert_cut_equals_mask(model, seed)
    assert found.widths() == [(1, 2), (2, 4), (2, 4)]


def test_an_axis_of_length_one_is_tied_to_nothing() -> None:
    """A gate for each pixel, over all channels, holds none of them and is not cut."""
    def middle(b: Builder, x: str) -> str:
        gate = b.node("Sigmoid", b.node("Conv", x, b.weight(1, C, 1, 1)))
        return b.node("Mul", gate, x)

    found, removed, made = assert_cut_equals_mask(images(2, middle), 1)
    assert found.widths() == [(1, C)]
    assert removed.any()
    gate = next(n for n in made.model.nodes if n.op == "Sigmoid")
    assert made.first.shape[gate.outputs[0]][1] == 1


def test_a_part_of_a_tensor_does_not_become_empty() -> None:
    """Of channels that are taken out and put back some stay, in each part."""
    def middle(b: Builder, x: str) -> str:
        first = b.node("Slice", x, b.ints(0), b.ints(2), b.ints(1))
        rest = b.node("Gather", x, b.ints(2, 3, 4, 5), axis=1)
        return b.node("Concat", rest, first, axis=1)

    model = vectors(0, middle)
    assert flow_of(model).widths() == [(1, 2), (1, 4)]
    for seed in range(8):
        assert_cut_equals_mask(model, seed)


def test_directions_stay_both() -> None:
    """A cell without one of its directions would be another operator."""
    b = Builder(0)
    weights = b.weight(2, 12, 3), b.weight(2, 12, 4)
    b.node("GRU", b.node("Unsqueeze", "x", b.ints(0)), *weights, direction="bidirectional",
           hidden_size=4, outputs=2)  # fmt: skip
    x = b.node("Transpose", f"v{len(b.nodes) - 1}_1", perm=[1, 0, 2])
    x = b.node("Conv", b.node("Reshape", x, b.ints(-1, 2, 2, 2)), b.weight(3, 2, 1, 1))
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3, 2, 2]}))
    assert found.widths() == []
    removed = random_removed(found.dims, 0)
    assert np.array_equal(cut_at(found, removed).first.shape[x], (2, 3, 2, 2))


def test_one_position_left_does_not_grow_again() -> None:
    """A table cut to one column is no column that Expand repeats."""
    b = Builder(0)
    table = b.weight(1, 4, C)
    target = b.node("Concat", b.node("Shape", "x", start=0, end=1), b.ints(1, 1), axis=0)
    parts = [b.node("MatMul", b.node("Expand", table, target), b.weight(C, 3)) for _ in range(2)]
    x = b.node("Sum", "x", *parts)
    found = flow_of(b.model({"x": ["n", 4, 3]}, {x: ["n", 4, 3]}))
    removed = np.zeros(found.dims.count, np.bool_)
    first, second = found.dims.free
    removed[first.channels[1:]] = removed[second.channels[:-1]] = True
    made = cut_at(found, removed)
    assert found.widths() == [(1, C), (1, C)]
    assert {made.first.shape[n.inputs[0]] for n in made.model.nodes if n.op == "MatMul"} == {
        (2, 4, 1)
    }
