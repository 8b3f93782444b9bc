"""A reader's view: what it gives is its weights times what it sees, whatever operator it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Model
from onnxprune.readers.find import find_cut_views, find_views
from onnxprune.readers.frontier import part
from onnxprune.readers.view import Changes, View
from tests.builder import Builder
from tests.oracle import cut_at, flow_of, random_removed

CHANNELS, OUTPUTS = 6, 4
Make = Callable[[Builder, str], str]


def conv(*kernel: int, group: int = 1, bias: bool = True, **more: Any) -> Make:
    """A convolution of 6 channels to 4."""

    def make(b: Builder, x: str) -> str:
        w = b.weight(OUTPUTS, CHANNELS // group, *kernel)
        return b.node("Conv", x, w, *([b.weight(OUTPUTS)] * bias), group=group, **more)

    return make


def spread(*kernel: int, group: int = 1, **more: Any) -> Make:
    """A transposed convolution of 6 channels to 4."""

    def make(b: Builder, x: str) -> str:
        w = b.weight(CHANNELS, OUTPUTS // group, *kernel)
        return b.node("ConvTranspose", x, w, b.weight(OUTPUTS), group=group, **more)

    return make


def coded(b: Builder, x: str) -> str:
    """A convolution whose weights and bias are integers."""
    ints = b.add(b.rng.integers(-127, 128, (OUTPUTS, CHANNELS, 3, 3)), np.int8)
    scale, zero = b.add(b.rng.uniform(0.001, 0.01, OUTPUTS)), b.add(np.zeros(OUTPUTS), np.int8)
    more = b.add(b.rng.integers(-99, 100, OUTPUTS), np.int32), b.add(np.full(OUTPUTS, 0.002))
    w = b.node("DequantizeLinear", ints, scale, zero, axis=0)
    bias = b.node("DequantizeLinear", *more, axis=0)
    return b.node("Conv", x, w, bias, pads=[1, 1, 1, 1])


def matmul(b: Builder, x: str) -> str:
    """A product over the last axis of what is turned."""
    return b.node("MatMul", b.node("Transpose", x, perm=[0, 2, 3, 1]), b.weight(CHANNELS, OUTPUTS))


def half(b: Builder, x: str) -> str:
    """A product with a turned weight of half precision."""
    w = b.node("Cast", b.add(b.rng.standard_normal((OUTPUTS, CHANNELS)), ml_dtypes.bfloat16), to=1)
    w = b.node("Transpose", w)
    return b.node("MatMul", b.node("Transpose", x, perm=[0, 2, 3, 1]), w)


def gemm(**more: Any) -> Make:
    """A product over what is averaged."""

    def make(b: Builder, x: str) -> str:
        shape = (OUTPUTS, CHANNELS) if more.get("transB") else (CHANNELS, OUTPUTS)
        x = b.node("Flatten", b.node("GlobalAveragePool", x))
        return b.node("Gemm", x, b.weight(*shape), b.weight(1, OUTPUTS), **more)

    return make


READERS: dict[str, Make] = {
    "pads": conv(3, 2, pads=[1, 2, 0, 1]),
    "strides": conv(3, 3, strides=[3, 2], pads=[2, 0, 2, 0], bias=False),
    "dilations": conv(2, 3, dilations=[2, 3], pads=[0, 3, 0, 3]),
    "two groups": conv(3, 3, group=2, pads=[1, 1, 1, 1]),
    "same upper": conv(4, 3, auto_pad="SAME_UPPER", strides=[2, 1]),
    "same lower": conv(4, 3, auto_pad="SAME_LOWER"),
    "valid": conv(2, 2, auto_pad="VALID"),
    "spread": spread(3, 2, strides=[2, 3], pads=[1, 0, 0, 1]),
    "spread in groups": spread(3, 3, group=2, dilations=[2, 1], output_padding=[1, 0],
                               strides=[2, 1]),
    "spread alike": spread(3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    "integers": coded,
    "matmul": matmul,
    "half": half,
    "gemm": gemm(),
    "gemm turned": gemm(transB=1, alpha=0.5, beta=2.0),
}  # fmt: skip


def net(make: Make, seed: int) -> tuple[ModelProto, str]:
    """A reader with channels to lose on both sides, and its key."""
    b = Builder(seed)
    x = b.node("Relu", b.node("Conv", "x", b.weight(CHANNELS, 3, 1, 1), b.weight(CHANNELS)))
    key = make(b, x)
    is_last = b.nodes[-1].op_type in ("MatMul", "Gemm")
    h = b.node("Relu", key)
    y = b.node("MatMul", h, b.weight(OUTPUTS, 2)) if is_last else \
        b.node("Conv", h, b.weight(2, OUTPUTS, 1, 1))  # fmt: skip
    rank = 2 if b.nodes[-3].op_type == "Gemm" else 4
    return b.model({"x": ["n", 3, 8, 7]}, {y: [f"d{a}" for a in range(rank)]}), key


def values(model: Model, names: set[str]) -> dict[str, Any]:
    """Values of a model on two drawn samples."""
    x = np.random.default_rng(7).standard_normal((2, 3, 8, 7)).astype(np.float32)
    names = names - {"x"}
    found = session(part(model, model.nodes, sorted(names), {}), optimize=False).run({"x": x})
    return {"x": x, **dict(zip(sorted(names), found, strict=True))}


def own(views: Mapping[str, View], key: str) -> list[View]:
    """The views of one node."""
    return [view for view in views.values() if view.node.key == key]


def assert_sums(model: Model, views: list[View]) -> None:
    """Weights times inputs, plus the bias, are the outputs at all positions."""
    known = values(model, {n for v in views for n in (*v.seen, *v.given)})
    for view in views:
        at = np.arange(view.count(known))
        seen, given = view.inputs(known, at, known), view.outputs(known, at)
        assert seen.shape == (len(at), len(view.columns))
        assert given.shape == (len(at), len(view.rows))
        assert seen @ view.weights.T + view.bias == pytest.approx(given, abs=1e-4)


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_gives_weights_times_what_it_sees(kind: str) -> None:
    """In the original, and in cuts of it: there with fewer of both."""
    proto, key = net(READERS[kind], seed=1)
    found = flow_of(proto)
    origins = find_views(found.model, found.shapes[0], found.dims.ties)
    views = own(origins, key)
    assert len(views) == (2 if "groups" in kind else 1)
    assert_sums(found.model, views)
    for seed in range(8):
        removed = random_removed(found.dims, seed)
        made, alive = cut_at(found, removed), ~removed[found.dims.of]
        cut = find_cut_views(made.model, made.first, found.dims.ties, origins, alive)
        less = own(cut, key)
        assert [v.key for v in less] == [v.key for v in views if alive[v.rows].any()]
        for view in less:
            origin = origins[view.key]
            assert len(view.rows) == alive[origin.rows].sum()
            assert len(view.columns) == alive[origin.columns].sum()
        assert_sums(made.model, less)


@pytest.mark.parametrize("kind", READERS)
def test_what_is_written_is_what_the_net_computes(kind: str) -> None:
    """Other weights and another bias, as near as their type holds them."""
    proto, key = net(READERS[kind], seed=2)
    found = flow_of(proto)
    views = own(find_views(found.model, found.shapes[0], found.dims.ties), key)
    rng, changes, wanted = np.random.default_rng(3), Changes(found.model), {}
    for view in views:
        lines = rng.uniform(-1, 1, view.weights.shape), rng.uniform(-1, 1, view.bias.shape)
        view.write(changes, *lines)
        wanted[view.key] = lines
    made = changes.apply()
    known = values(made, {n for v in views for n in (*v.seen, *v.given)})
    for view in views:
        at = np.arange(view.count(known))
        weights, bias = wanted[view.key]
        sums = view.inputs(known, at, known) @ weights.T + bias
        least = 0.02 if kind in ("integers", "half") else 1e-5
        assert view.outputs(known, at) == pytest.approx(sums, abs=least * np.abs(sums).max())


def test_some_positions_are_those_of_all() -> None:
    """In the order in which they are asked for, over all samples of a batch."""
    proto, key = net(READERS["strides"], seed=4)
    found = flow_of(proto)
    [view] = own(find_views(found.model, found.shapes[0], found.dims.ties), key)
    known = values(found.model, {*view.seen, *view.given})
    count = view.count(known)
    at = np.array([0, 3, count // 2, count - 1])
    everything = np.arange(count)
    some, whole = (view.inputs(known, places, known) for places in (at, everything))
    assert np.array_equal(some, whole[at])
    assert np.array_equal(view.outputs(known, at), view.outputs(known, everything)[at])


def test_a_bias_is_added_to_what_is_there() -> None:
    """Behind a product stands the Add of the exporter, or a new one."""
    b = Builder(5)
    first = b.node("MatMul", "x", b.weight(4, 6))
    h = b.node("Relu", b.node("Add", first, b.weight(6)))
    second = b.node("MatMul", h, b.weight(6, 3))
    y = b.node("Relu", second)
    found = flow_of(b.model({"x": ["n", 4]}, {y: ["n", 3]}))
    changes = Changes(found.model)
    for view in find_views(found.model, found.shapes[0], found.dims.ties).values():
        view.write(changes, view.weights, view.bias + 1)
    made = changes.apply()
    assert [n.op for n in made.nodes] == ["MatMul", "Add", "Relu", "MatMul", "Add", "Relu"]
    x = np.zeros((1, 4), np.float32)
    hidden = np.maximum(found.model.array("w1") + 1, 0)
    expected = np.maximum(hidden @ found.model.array("w2") + 1, 0)
    assert session(made.proto).run({"x": x})[0] == pytest.approx(expected[None], rel=1e-5)


def test_nothing_written_is_the_model_itself() -> None:
    """No copy where nothing is."""
    model = Model(net(READERS["gemm"], seed=0)[0])
    assert Changes(model).apply() is model
