"""What outputs lose for an error of a reader, on nets where it can be computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.damage import outputs
from onnxprune.damage.outputs import factors
from onnxprune.identity.dims import Dims
from onnxprune.readers.find import find_views
from tests.builder import Builder
from tests.calibrated import dataset
from tests.nets import run


def found(model: ModelProto, x: Any, seed: int = 0) -> dict[str, float]:
    """Factors of all readers, in the order of the graph."""
    state = run(model)
    shapes = state.subject.shapes[0]
    views = list(find_views(state.model, shapes, state[Dims].ties).values())
    return factors(state.model, shapes, views, dataset(model, x), seed)


def chain(seed: int = 0) -> tuple[ModelProto, Any, Any]:
    """Two products down to one number, and their weights."""
    b = Builder(seed)
    first, second = b.rng.standard_normal((6, 8)), b.rng.standard_normal((8, 1))
    y = b.node("MatMul", b.node("MatMul", "x", b.add(first)), b.add(second))
    return b.model({"x": ["n", 6]}, {y: ["n", 1]}), first, second


def test_a_linear_net_loses_what_its_weights_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of each hidden channel's size, times its weight, relative to the output."""
    monkeypatch.setattr(outputs, "DRAWS", 200)
    model, first, second = chain()
    x = np.random.default_rng(1).standard_normal((16, 6))
    hidden = x @ first
    expected = (hidden.var(axis=0) * second[:, 0] ** 2).sum() / (hidden @ second).var()
    inner, last = found(model, x).values()
    assert inner == pytest.approx(expected, rel=0.1)
    assert last == pytest.approx(1.0, rel=0.1)


def test_what_a_softmax_hides_costs_nothing() -> None:
    """The same number added to all classes changes no probability."""
    b = Builder(0)
    h = b.node("MatMul", "x", b.weight(6, 1))
    other = b.node("MatMul", "x", b.weight(6, 4))
    y = b.node("Softmax", b.node("Add", other, h))
    x = b.rng.standard_normal((16, 6))
    hidden, told = found(b.model({"x": ["n", 6]}, {y: ["n", 4]}), x).values()
    assert hidden < 1e-6
    assert told > 1e-3


def test_a_reader_that_no_output_depends_on_costs_nothing() -> None:
    """What it gives is multiplied by zero."""
    b = Builder(0)
    idle = b.node("MatMul", "x", b.weight(6, 2))
    y = b.node("Add", b.node("MatMul", "x", b.weight(6, 2)), b.node("Mul", idle, b.add([0.0])))
    model = b.model({"x": ["n", 6]}, {y: ["n", 2]})
    idly, read = found(model, b.rng.standard_normal((20, 6))).values()
    assert idly == 0
    assert read > 0


def test_labels_are_looked_behind() -> None:
    """A class number tells nothing; what it is the largest of does."""
    b = Builder(0)
    y = b.node("ArgMax", b.node("MatMul", "x", b.weight(6, 4)), axis=1, keepdims=0)
    model = b.model({"x": ["n", 6]}, {y: ["n"]}, types={y: 7})
    assert all(value > 0 for value in found(model, b.rng.standard_normal((16, 6))).values())


def test_groups_share_what_is_measured_of_their_node() -> None:
    """One measure a node, split evenly."""
    b = Builder(0)
    h = b.node("Conv", "x", b.weight(4, 2, 3, 3), group=2)
    y = b.node("GlobalAveragePool", b.node("Relu", h))
    values = found(b.model({"x": ["n", 4, 5, 5]}, {y: ["n", 4, 1, 1]}),
                   b.rng.standard_normal((16, 4, 5, 5)))  # fmt: skip
    assert len(values) == 2
    assert len({*values.values()}) == 1


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_cells_are_measured_by_what_they_give(op: str) -> None:
    """States of all steps, and the last ones."""
    gates, b = {"LSTM": 4, "GRU": 3}[op], Builder(0)
    weights = [b.weight(1, gates * 5, 3), b.weight(1, gates * 5, 5)]
    states = b.node(op, "x", *weights, hidden_size=5, outputs=2)
    mean = b.node("ReduceMean", states, b.ints(0, 1), keepdims=0)
    y = b.node("MatMul", b.node("Add", mean, b.node("Squeeze", f"{states}_1", b.ints(0))),
               b.weight(5, 2))  # fmt: skip
    values = found(b.model({"x": [4, "n", 3]}, {y: ["n", 2]}),
                   b.rng.standard_normal((20, 4, 3)))  # fmt: skip
    assert len(values) >= 2
    assert all(np.isfinite(value) and value > 0 for value in values.values())


def test_the_same_seed_gives_the_same_numbers() -> None:
    """Another one others."""
    model, _, _ = chain()
    x = np.random.default_rng(1).standard_normal((30, 6))
    assert found(model, x) == found(model, x)
    assert found(model, x) != found(model, x, seed=1)


def test_half_precision_is_measured_too() -> None:
    """Noise is far above what it rounds."""
    b = Builder(0)
    first, second = b.rng.standard_normal((6, 8)), b.rng.standard_normal((8, 1))
    both = []
    for dtype, kind in ((np.float32, 1), (np.float16, 10)):
        c = Builder(0)
        h = c.node("Relu", c.node("MatMul", "x", c.add(first, dtype)))
        y = c.node("MatMul", h, c.add(second, dtype))
        model = c.model({"x": ["n", 6]}, {y: ["n", 1]}, types={"x": kind, y: kind})
        x = np.random.default_rng(1).standard_normal((16, 6))
        state = run(model)
        views = [*find_views(state.model, state.subject.shapes[0], state[Dims].ties).values()]
        data = dataset(model, x, dtype)
        both.append([*factors(state.model, state.subject.shapes[0], views, data, 0).values()])
    assert both[1] == pytest.approx(both[0], rel=0.05)
