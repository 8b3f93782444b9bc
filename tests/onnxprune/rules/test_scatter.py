"""Indexing by tensors: the indexed axis stays whole, channels on the others may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from tests.builder import Builder
from tests.oracle import assert_cut_equals_mask, cut_at, flow_of, random_removed

T, C = 4, 6
seeds = st.integers(0, 1000)
Middle = Callable[[Builder, str], str]


def around(seed: int, middle: Middle, opset: int = 21) -> ModelProto:
    """Tokens > product > what is tested, on (batch, tokens, channels) > product."""
    b = Builder(seed)
    x = b.node("MatMul", "x", b.weight(3, C))
    x = b.node("MatMul", middle(b, x), b.weight(C, 3))
    return b.model({"x": [2, T, 3]}, {x: [2, "t", 3]}, opset=opset)


def gather_elements(b: Builder, x: str) -> str:
    return b.node("GatherElements", x, b.add(b.rng.integers(0, T, (2, 3, C)), np.int64), axis=1)


def expanded_elements(b: Builder, x: str) -> str:
    """Places found in the data, the same for all channels."""
    at = b.node("Transpose", b.node("ArgMax", "x", axis=1), perm=[0, 2, 1])
    at = b.node("Expand", at, b.ints(2, 3, C))
    return b.node("GatherElements", x, at, axis=1)


def scatter_elements(b: Builder, x: str) -> str:
    rows = np.stack([b.rng.permutation(T)[:2] for _ in range(2 * C)]).reshape(2, C, 2)
    at = b.add(rows.transpose(0, 2, 1), np.int64)
    return b.node("ScatterElements", x, at, b.weight(2, 2, C), axis=1)


def gather_nd(b: Builder, x: str) -> str:
    return b.node("GatherND", x, b.add([[[0, 1], [1, 3]], [[1, 0], [0, 0]]], np.int64))


def gather_batches(b: Builder, x: str) -> str:
    return b.node("GatherND", x, b.add([[[1], [3]], [[0], [0]]], np.int64), batch_dims=1)


def scatter_nd(b: Builder, x: str) -> str:
    at = b.add([[0, 1], [1, 3], [1, 0]], np.int64)
    return b.node("ScatterND", x, at, b.weight(3, C), reduction="add")


def trilu(b: Builder, x: str) -> str:
    x = b.node("Transpose", b.node("Unsqueeze", x, b.ints(1)), perm=[0, 3, 1, 2])
    x = b.node("Trilu", x, upper=0)
    return b.node("Squeeze", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.ints(1))


def reverse_sequence(b: Builder, x: str) -> str:
    return b.node("ReverseSequence", x, b.ints(2, 4), time_axis=1, batch_axis=0)


def col2im(b: Builder, x: str) -> str:
    """Nine rows for each channel, made by a product, added up into images of 2 x 2."""
    x = b.node("MatMul", x, b.weight(C, C * 9))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    x = b.node("Col2Im", x, b.ints(2, 2), b.ints(3, 3), pads=[1, 1, 1, 1])
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.ints(0, -1, C))


def image(b: Builder, x: str) -> str:
    """Channels on axis 1, tokens as an image of 2 x 2."""
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1]), b.ints(0, 0, 2, 2))


def tokens(b: Builder, x: str) -> str:
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.ints(0, -1, C))


def roi_align(b: Builder, x: str) -> str:
    rois = b.add(b.rng.uniform(0, 2, (2, 4)))
    x = b.node("RoiAlign", image(b, x), rois, b.ints(1, 0), output_height=2, output_width=2)
    return tokens(b, x)


def max_roi_pool(b: Builder, x: str) -> str:
    rois = b.add([[0, 0, 0, 1, 1], [1, 0, 0, 1, 0]])
    return tokens(b, b.node("MaxRoiPool", image(b, x), rois, pooled_shape=[1, 2]))


def crop(b: Builder, x: str) -> str:
    return b.node("CenterCropPad", x, b.ints(2, 2, C))


def crop_axes(b: Builder, x: str) -> str:
    return b.node("CenterCropPad", x, b.ints(6), axes=[1])


@pytest.mark.parametrize(
    "middle",
    [
        gather_elements,
        expanded_elements,
        scatter_elements,
        gather_nd,
        gather_batches,
        scatter_nd,
        trilu,
        reverse_sequence,
        roi_align,
        max_roi_pool,
        crop,
        crop_axes,
    ],
)
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_channels_beside_an_indexed_axis_are_cut(middle: Middle, seed: int) -> None:
    """What is picked is picked for all channels that are left."""
    found, *_ = assert_cut_equals_mask(around(seed, middle), seed)
    assert (1, C) in found.widths()


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_columns_of_an_image_go_in_blocks(seed: int) -> None:
    """All nine rows of a channel are one channel, read as one."""
    found, *_ = assert_cut_equals_mask(around(seed, col2im), seed)
    assert found.widths() == [(1, C), (1, C)]


def along_channels(b: Builder, x: str) -> str:
    return b.node("GatherElements", x, b.add(b.rng.integers(0, C, (2, T, C)), np.int64), axis=2)


def update_channels(b: Builder, x: str) -> str:
    x = b.node("Transpose", x, perm=[2, 0, 1])
    x = b.node("ScatterND", x, b.add([[1], [4]], np.int64), b.weight(2, 2, T))
    return b.node("Transpose", x, perm=[1, 2, 0])


def noise(b: Builder, x: str) -> str:
    return b.node("Add", x, b.node("RandomNormal", shape=[C], seed=1.0))


@pytest.mark.parametrize("middle", [along_channels, update_channels, noise])
def test_indexed_channels_are_held(middle: Middle) -> None:
    """Numbers of channels in another tensor would mean others after a cut."""
    found = flow_of(around(0, middle))
    assert found.widths() == []
    assert "n_v" in found.pins()


def test_numbers_drawn_for_channels_are_approximate() -> None:
    """A cut draws fewer numbers, so other ones."""

    def like(b: Builder, x: str) -> str:
        return b.node("Add", x, b.node("RandomUniformLike", x, seed=1.0))

    found = flow_of(around(0, like))
    assert [(d.size, d.is_exact) for d in found.dims.free] == [(C, False)]
    cut_at(found, random_removed(found.dims, 1, exact_only=False))


@pytest.mark.parametrize("op", ["NonZero", "Unique"])
def test_what_the_data_counts_is_held(op: str) -> None:
    """Where a result's length depends on the data, nothing before it may go."""
    b = Builder(0)
    x = b.node(op, b.node("MatMul", "x", b.weight(3, C)))
    kind: Any = TensorProto.INT64 if op == "NonZero" else TensorProto.FLOAT
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["a", "b"]}, types={x: kind}))
    assert found.widths() == []
    assert "known only when it runs" in found.pins()


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_one_hot_rows_are_held(seed: int) -> None:
    """The table behind OneHot keeps its rows and may lose columns."""
    b = Builder(seed)
    x = b.node("OneHot", "ids", b.ints(10), b.add([0.0, 1.0]), axis=-1)
    x = b.node("MatMul", b.node("MatMul", x, b.weight(10, C)), b.weight(C, 3))
    model = b.model({"ids": ["n", T]}, {x: ["n", T, 3]}, types={"ids": TensorProto.INT64})
    found, *_ = assert_cut_equals_mask(model, seed)
    assert found.widths() == [(1, C)]


def test_the_size_of_an_eye_is_held() -> None:
    """A one stands where two places are the same number."""
    b = Builder(0)
    x = b.node("EyeLike", b.node("MatMul", "x", b.weight(3, C)), dtype=1)
    x = b.node("MatMul", x, b.weight(C, 3))
    assert flow_of(b.model({"x": [4, 3]}, {x: [4, 3]})).widths() == []
