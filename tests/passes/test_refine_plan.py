"""Several plans are compared, and those without hope are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.passes import refine_plan
from tests.builder import Builder


def net() -> Any:
    """A wide layer of four channels said eight times, almost; then one in which each is needed."""
    b = Builder(0)
    said = np.tile(b.rng.standard_normal((6, 4)), 8) + 1e-3 * b.rng.standard_normal((6, 32))
    first = b.node("Relu", b.node("MatMul", "x", b.add(said)))
    second = b.node("Relu", b.node("MatMul", first, b.weight(32, 32)))
    y = b.node("MatMul", second, b.weight(32, 32))
    return b.model({"x": ["n", 6]}, {y: ["n", 32]})


@pytest.fixture
def given(tmp_path: Any) -> dict[str, Any]:
    x = np.random.default_rng(2).standard_normal((120, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    return {"data": tmp_path / "d.npz", "target": {"macs": 0.6}, "latency_s": 0}


def test_plans_without_hope_are_not_tried(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniform widths do more than double the damage here; the plan that won stays the same."""
    tried = prune(net(), **given).json()
    assert "curves" in tried["plans"]
    assert "uniform" not in tried["plans"]
    monkeypatch.setattr(refine_plan, "HOPELESS", np.inf)
    everything = prune(net(), **given).json()
    assert everything["plans"]["uniform"] > everything["plans"]["curves"]
    assert everything["widths"] == tried["widths"]
    assert tried["plans"].items() <= everything["plans"].items()
