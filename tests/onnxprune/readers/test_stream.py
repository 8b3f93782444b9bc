"""The residual sum that a reader's output joins."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Model
from onnxprune.readers.find import find_views
from onnxprune.readers.frontier import part
from onnxprune.readers.stream import Stream, bends, joined, stream
from onnxprune.readers.view import channel_rows
from tests.builder import Builder
from tests.oracle import Followed, flow_of


def residual(kind: str) -> tuple[Followed, str]:
    """A stream that a convolution adds to, and the key of it."""
    b = Builder(0)
    x = b.node("Conv", "x", b.weight(4, 3, 1, 1))
    h = last = b.node("Conv", b.node("Relu", x), b.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])
    if kind == "norm":
        rest = [b.weight(4), b.weight(4), b.weight(4), b.add(np.full(4, 0.7))]
        h = b.node("BatchNormalization", b.node("Add", h, b.weight(4, 1, 1)), *rest)
    if kind == "elsewhere":
        h = b.node("Relu", h)
    if kind == "moved":
        h = b.node("Transpose", h, perm=[0, 1, 3, 2])
    total = b.node("Add", x, h)
    y = b.node("Relu", total)
    return flow_of(b.model({"x": ["n", 3, 5, 5]}, {y: ["n", 4, 5, 5]})), last


def of(found: Followed, key: str) -> tuple[Stream | None, str]:
    """The stream of a reader, and the sum it joins somehow."""
    view = find_views(found.model, found.shapes[0], found.dims.ties)[key]
    return stream(found.model, found.shapes[0], view), joined(found.model, view)


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_the_share_of_a_reader_is_what_it_gives(kind: str) -> None:
    """Total less the other operand, back through norms and biases."""
    found, key = residual(kind)
    own, name = of(found, key)
    assert own is not None
    assert own.total == name or kind == "norm"
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 5)).astype(np.float32)
    model: Model = found.model
    names = [key, own.total, own.other]
    given, *sums = session(part(model, model.nodes, names, {}), optimize=False).run({"x": x})
    at = np.arange(50)
    total, other = (channel_rows(value, own.axis, at) for value in sums)
    assert own.share(total, other) == pytest.approx(channel_rows(given, own.axis, at), abs=1e-4)


def test_a_reader_whose_output_is_bent_joins_no_stream() -> None:
    """Behind an activation nothing can be made up for; moves keep channels together."""
    assert of(*residual("elsewhere")) == (None, "")
    alone, name = of(*residual("moved"))
    assert alone is None
    assert name


AFTER = {
    "Relu": True,
    "Mul": True,
    "SiLU": True,
    "HardSwish": True,
    "scaled Relu": True,
    "norm Relu": True,
    "pooled Relu": True,
    "halves": True,
    "inverse Conv": True,
    "Add": False,
    "Softmax": False,
    "Conv": False,
    "scaled Conv": False,
    "Relu and Conv": False,
    "nothing": False,
}


def after(b: Builder, h: str, kind: str) -> str:
    """What reads the output of a layer."""
    if kind.startswith("scaled"):
        h = b.node("Mul", h, b.weight(4, 1, 1))
    if kind.startswith("norm"):
        h = b.node("BatchNormalization", h, *(b.add(np.full(4, 0.7)) for _ in range(4)))
    if kind.startswith("pooled"):
        h = b.node("ReduceMean", h, b.ints(2, 3))
    if kind.startswith("inverse"):
        h = b.node("Div", b.add(1.0), h)
    if kind == "halves":  # one gates the other
        first = b.node("Split", h, axis=1, num_outputs=2, outputs=2)
        return b.node("Mul", b.node("Sigmoid", first), f"{first}_1")
    if kind == "SiLU":
        return b.node("Mul", h, b.node("Sigmoid", h))
    if kind == "HardSwish":  # as exporters write it
        gate = b.node("Clip", b.node("Add", h, b.add(3.0)), b.add(0.0), b.add(6.0))
        return b.node("Div", b.node("Mul", h, gate), b.add(6.0))
    if kind in ("Add", "Mul"):
        return b.node(kind, h, b.node("Neg", "x"))
    if kind == "Softmax":
        return b.node(kind, h, axis=1)
    if kind == "nothing":
        return h
    convolved = b.node("Conv", h, b.weight(4, 4, 1, 1)) if "Conv" in kind else ""
    bent = b.node("Relu", h) if "Relu" in kind else ""
    return b.node("Add", bent, convolved) if bent and convolved else bent or convolved


@pytest.mark.parametrize(("kind", "wanted"), AFTER.items())
def test_what_bends_takes_each_channel_for_itself(kind: str, wanted: bool) -> None:
    """Activations and products do, factors alone and sums over channels do not."""
    b = Builder(0)
    first = b.node("Conv", "x", b.weight(4, 4, 1, 1))
    y = after(b, first, kind)
    model = b.model({"x": ["n", 4, 5, 5]}, {y: ["n", None, None, None]})
    assert bends(Model(model), first) is wanted
