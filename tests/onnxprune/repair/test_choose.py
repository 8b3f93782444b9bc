"""Plans are compared by what the outputs lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.identity.dims import Dims
from onnxprune.model.graph import Model
from onnxprune.readers.folds import folds
from onnxprune.repair.choose import Trials, output_error
from tests.builder import Builder
from tests.calibrated import dataset
from tests.nets import run


def net() -> Any:
    """Eight hidden channels, of which the last four are large."""
    b = Builder(0)
    first = b.rng.standard_normal((6, 8)) * np.repeat([0.01, 1.0], 4)
    hidden = b.node("Relu", b.node("MatMul", "x", b.add(first)))
    y = b.node("MatMul", hidden, b.weight(8, 3))
    return b.model({"x": ["n", 6]}, {y: ["n", 3]})


def data(count: int = 60) -> Any:
    return np.random.default_rng(2).standard_normal((count, 6)).astype(np.float32)


def test_a_model_is_no_error_to_itself() -> None:
    """And one with other weights is some."""
    model = net()
    other = net()
    other.graph.initializer[1].raw_data = b"\0" * len(other.graph.initializer[1].raw_data)
    whole = dataset(model, data())
    assert output_error(Model(model), Model(model), whole) == 0
    # Outputs that are all zero differ from the original by its second moment.
    assert output_error(Model(model), Model(other), whole) >= 1


def test_the_plan_that_loses_least_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small channels go rather than large ones; equal plans are tried once."""
    model = net()
    state = run(model)
    dims, samples = state[Dims], dataset(model, data())
    parts = folds(samples.subset(range(45)), samples.subset(range(45, 60)), 640)
    hidden = next(d for d in dims.free if d.size == 8)
    small, large = (np.ones(dims.count, np.bool_) for _ in range(2))
    small[hidden.channels[:4]] = False
    large[hidden.channels[4:]] = False
    calls = []
    real = Trials._error
    monkeypatch.setattr(Trials, "_error", lambda self, a: calls.append(1) or real(self, a))
    best, errors = Trials(state.subject, dims, parts).best(
        {"large": large, "small": small, "small again": small.copy()}
    )
    assert best == "small"
    assert len(calls) == 2
    assert errors["small"] == errors["small again"] < errors["large"]


def test_a_prune_says_what_it_compared(tmp_path: Path) -> None:
    """Plans and errors stand in the result; an allocator that was asked for is not compared."""
    np.savez(tmp_path / "d.npz", x=data(80))
    given: dict[str, Any] = {"data": tmp_path / "d.npz", "target": {"macs": 0.6}, "latency_s": 0}
    tried = prune(net(), **given).json()["plans"]
    assert {"curves", "global", "uniform"} <= tried.keys()
    assert prune(net(), allocate="curves", **given).json()["plans"] is None
