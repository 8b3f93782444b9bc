"""Repair of LSTMs and GRUs in whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from onnxprune.backend.runtime import session
from tests.builder import Builder

INPUTS, UNITS, SAMPLES, STEPS = 6, 24, 120, 10
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OFF: dict[str, Any] = {"latency_s": 0, "score": "l2"}


def sequence(
    op: str, direction: str = "forward", *, last: bool = False, bias: bool = True, **more: Any
) -> tuple[ModelProto, dict[str, Any]]:
    """Two cells, batch not first, and samples; `last`: only the last state is handed out."""
    b = Builder(5)
    d = 1 + (direction == "bidirectional")
    mixed = b.node("MatMul", "x", b.weight(INPUTS, INPUTS))
    flow, width = b.node("Transpose", mixed, perm=[1, 0, 2]), INPUTS
    for _ in range(2):
        rows = GATES[op] * UNITS
        weights = [b.add(b.rng.standard_normal(s) / np.sqrt(s[-1])) for s in
                   ((d, rows, width), (d, rows, UNITS))]  # fmt: skip
        weights += [b.weight(d, 2 * rows)] if bias else []
        y = b.node(op, flow, *weights, hidden_size=UNITS, direction=direction, outputs=2, **more)
        width = d * UNITS
        flow = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 0, width))
    if last:  # what the last nodes would have read is not there
        del b.nodes[-2:]
        b.nodes[-1].output[0] = ""
        moved = b.node("Transpose", f"{y}_1", perm=[1, 0, 2])
        flow = b.node("Reshape", moved, b.ints(0, width))
    y = b.node("Gemm", flow, b.weight(width, 4)) if last else b.node(
        "MatMul", flow, b.weight(width, 4)
    )  # fmt: skip
    x = b.rng.standard_normal((SAMPLES, STEPS, INPUTS)).cumsum(axis=1) * 0.5
    shape: list[int | str] = ["n", 4] if last else [STEPS, "n", 4]
    return b.model({"x": ["n", STEPS, INPUTS]}, {y: shape}), {"x": x.astype(np.float32)}


def error(model: ModelProto, made: ModelProto | None, seed: int = 9) -> float:
    """Squared distance of outputs on other samples, relative to their variance."""
    assert made is not None
    x = np.random.default_rng(seed).standard_normal((40, STEPS, INPUTS)).cumsum(axis=1) * 0.5
    ours, theirs = (session(m).run({"x": x.astype(np.float32)})[0] for m in (model, made))
    return float(((ours - theirs) ** 2).sum() / ((ours - ours.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("op", "direction", "more"),
    [
        ("LSTM", "forward", {}),
        ("LSTM", "bidirectional", {"bias": False}),
        ("LSTM", "reverse", {"last": True}),
        ("RNN", "bidirectional", {}),
        ("GRU", "forward", {"linear_before_reset": 1}),
        ("GRU", "reverse", {"linear_before_reset": 0}),
        ("GRU", "bidirectional", {"linear_before_reset": 1, "last": True}),
    ],
)
def test_a_cut_cell_comes_closer(
    op: str, direction: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """On samples that were not looked at; every gate is solved for."""
    model, data = sequence(op, direction, **more)
    np.savez(tmp_path / "data.npz", **data)
    given = {"data": tmp_path / "data.npz", "target": {"macs": 0.6}, **OFF}
    errors = []
    for repair in (False, True):
        errors.append(error(model, onnxprune.prune(model, repair=repair, **given).model))
    assert errors[1] < 0.5 * errors[0]
