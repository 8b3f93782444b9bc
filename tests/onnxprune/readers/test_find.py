"""Which nodes are readers, and whose channels they see and give."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.readers.find import find_views
from onnxprune.readers.view import View
from tests.builder import Builder
from tests.oracle import flow_of


def views_of(proto: ModelProto) -> tuple[dict[str, View], np.ndarray]:
    """The readers of a model, and the channel of each identity."""
    found = flow_of(proto)
    return find_views(found.model, found.shapes[0], found.dims.ties), found.dims.of


def test_every_group_is_a_reader_of_its_own() -> None:
    """A depthwise convolution sums over nothing, and is none."""
    b = Builder(0)
    h = b.node("Conv", "x", b.weight(8, 3, 1, 1))
    depthwise = b.node("Conv", h, b.weight(8, 1, 3, 3), group=8)
    grouped = b.node("Conv", depthwise, b.weight(4, 4, 1, 1), group=2)
    views, _ = views_of(b.model({"x": ["n", 3, 5, 5]}, {grouped: ["n", 4, 3, 3]}))
    assert list(views) == [h, f"{grouped} group 0", f"{grouped} group 1"]
    assert [v.weights.shape for v in views.values()] == [(8, 3), (2, 4), (2, 4)]


def test_columns_are_the_channels_that_rows_upstream_make() -> None:
    """Each of the taps of a channel belongs to it; what nothing thins has no identity."""
    b = Builder(1)
    first = b.node("Conv", "x", b.weight(5, 3, 1, 1))
    second = b.node("Conv", b.node("Relu", first), b.weight(4, 5, 2, 3))
    y = b.node("GlobalMaxPool", second)
    views, of = views_of(b.model({"x": ["n", 3, 5, 5]}, {y: ["n", 4, 1, 1]}))
    made, seen = of[views[first].rows], of[views[second].columns]
    assert len(set(made.tolist())) == 5
    assert seen.tolist() == np.repeat(made, 6).tolist()


@pytest.mark.parametrize("case", ["shared", "captured", "computed", "given"])
def test_weights_that_may_not_change_make_no_reader(case: str) -> None:
    """Another node reads them, or a body, or the caller; or they are no numbers at all."""
    b = Builder(2)
    w = b.weight(4, 4)
    x = b.node("MatMul", "x", b.weight(4, 4))
    w = b.node("Relu", w) if case == "computed" else w
    y = b.node("Relu", b.node("MatMul", x, w))
    if case == "shared":
        y = b.node("MatMul", y, w)
    if case == "captured":
        inner = Builder(0)
        inner.node("Identity", w)
        inner.nodes[0].output[0] = "inside"
        body = inner.model({}, {"inside": [4, 4]}).graph
        yes = b.node("If", b.add(True, np.bool_), then_branch=body, else_branch=body)
        y = b.node("Add", y, b.node("ReduceMax", yes, keepdims=0))
    proto = b.model({"x": ["n", 4]}, {y: ["n", 4]})
    if case == "given":
        proto.graph.input.append(b.model({w: [4, 4]}, {}).graph.input[0])
    views, _ = views_of(proto)
    assert list(views) == [x]
