"""Broken bytes: whatever a file holds, it is pruned, or refused with a message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from onnxprune.errors import PruneError
from tests.builder import Builder

FLIPS = int(os.environ.get("ONNXPRUNE_FUZZ", "60"))


def _mlp() -> ModelProto:
    b = Builder(0)
    h = b.node("Relu", b.node("Gemm", "x", b.weight(6, 8), b.weight(8)))
    y = b.node("Add", b.node("MatMul", h, b.weight(8, 4)), b.weight(4))
    return b.model({"x": ["N", 6]}, {y: ["N", 4]})


def _cnn() -> ModelProto:
    b = Builder(1)
    h = b.node("Conv", "x", b.weight(8, 3, 3, 3), b.weight(8), pads=[1, 1, 1, 1])
    h = b.node("Add", b.node("Conv", b.node("Relu", h), b.weight(8, 8, 1, 1)), h)
    h = b.node("Reshape", b.node("GlobalAveragePool", h), b.ints(0, -1))
    y = b.node("Gemm", h, b.weight(4, 8), transB=1)
    return b.model({"x": ["N", 3, 6, 6]}, {y: ["N", 4]})


def _lstm() -> ModelProto:
    b = Builder(2)
    b.node("LSTM", "x", b.weight(1, 16, 3), b.weight(1, 16, 4), outputs=2, hidden_size=4)
    h = b.node("Squeeze", "v0_1", b.ints(0))
    y = b.node("MatMul", h, b.weight(4, 2))
    return b.model({"x": ["T", "N", 3]}, {y: ["N", 2]})


@pytest.mark.parametrize("make", [_mlp, _cnn, _lstm])
def test_flipped_bytes_never_end_in_a_traceback(
    make: Callable[[], ModelProto], tmp_path: Path
) -> None:
    """One to four bytes are changed: the tool prunes the model or raises one of its own errors.

    Some changes leave a model that is whole (a weight's byte), most do not: both must occur.
    """
    whole = make().SerializeToString()
    rng = np.random.default_rng(7)
    path, ends = tmp_path / "model.onnx", set()
    for _ in range(FLIPS):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        ends.add(_try(path))
    assert ends == {"pruned", "refused"}


@pytest.mark.parametrize("make", [_mlp, _cnn, _lstm])
def test_cut_short_files_are_refused(make: Callable[[], ModelProto], tmp_path: Path) -> None:
    """A prefix of a model is no model, wherever it ends."""
    whole, path = make().SerializeToString(), tmp_path / "model.onnx"
    for length in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:length])
        assert _try(path) == "refused"


def _try(path: Path) -> str:
    try:
        onnxprune.prune(path, target={"macs": 0.6}, latency_s=0)
    except PruneError:
        return "refused"
    return "pruned"
