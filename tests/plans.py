"""What tests of planning share: small chains, and planners over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.planning.cost import CostModel
from onnxprune.planning.plan import Limits, Plan
from onnxprune.planning.planner import Planner
from onnxprune.planning.scores import FloatArray
from onnxprune.rules import load_rules
from onnxprune.shape.sizes import choose
from tests.builder import Builder
from tests.oracle import Followed, flow_of


def chain(*widths: int, norm: bool = False, outputs: int = 2) -> Followed:
    """A chain of products of these widths; with a norm over channels at its end."""
    b, h = Builder(0), "x"
    for before, after in zip((3, *widths), widths, strict=False):
        h = b.node("Relu", b.node("MatMul", h, b.weight(before, after)))
    if norm:
        h = b.node("LayerNormalization", h, b.weight(widths[-1]), axis=-1)
    h = b.node("MatMul", h, b.weight(widths[-1], outputs))
    return flow_of(b.model({"x": ["n", 3]}, {h: ["n", outputs]}))


def planner(found: Followed, seed: int = 0, scores: FloatArray | None = None, **limits: Any) -> (
    Planner
):  # fmt: skip
    """A planner with random scores."""
    if scores is None:
        scores = np.random.default_rng(seed).uniform(0.1, 2.0, found.dims.count)
    at_cost = choose(found.model)[3]
    cost = CostModel(found.model, found.dims, at_cost, found.shapes[0], load_rules())
    return Planner(found.dims, scores, cost, Limits(**limits))


def shares(found: Followed, plan: Plan) -> list[float]:
    """What is kept of each free Dim."""
    return [float(plan.alive[d.channels].mean()) for d in found.dims.free]
