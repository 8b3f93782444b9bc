"""Finding Dims as a pass."""

from __future__ import annotations

import numpy as np

from onnxprune.identity.dims import Dims
from tests.builder import Builder
from tests.nets import run, two_layers


def test_a_hidden_layer_is_a_dim_and_both_ends_are_pinned() -> None:
    """Free is what lies between; what the caller sees is not, with the reason."""
    dims = run(two_layers(np.ones((2, 5)), np.ones((5, 3))))[Dims]
    assert [(d.rows, d.size, d.name) for d in dims.free] == [(1, 5, "w0")]
    held = {d.name: d.pinned for d in dims.dims if not d.is_free}
    assert held["w0#2"].startswith("lined up with graph input `x`, axis 1")
    assert held["w1"] == "graph output `v2`"


def test_a_network_behind_a_scaler_is_followed() -> None:
    """What classical pipelines put in front changes no shape, and pins only the inputs."""
    b = Builder(0)
    scaled = b.node("Scaler", "x", domain="ai.onnx.ml", offset=[0.0] * 3, scale=[1.0] * 3)
    h = b.node("Relu", b.node("MatMul", scaled, b.weight(3, 6)))
    y = b.node("MatMul", h, b.weight(6, 2))
    model = b.model({"x": ["n", 3]}, {y: ["n", 2]})
    model.opset_import.add(domain="ai.onnx.ml", version=1)
    assert [d.size for d in run(model)[Dims].free] == [6]
