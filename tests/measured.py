"""What tests of damage curves share: a small net with data that it is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from tests.builder import Builder

SAMPLES = 120


def net(seed: int = 0) -> ModelProto:
    """x (N, 12) -> 32 -> 24 -> 5, with Relu between."""
    b, h = Builder(seed), "x"
    for before, after in ((12, 32), (32, 24)):
        h = b.node("Relu", b.node("Gemm", h, b.weight(before, after), b.weight(after)))
    y = b.node("Gemm", h, b.weight(24, 5), b.weight(5))
    return b.model({"x": ["N", 12]}, {y: ["N", 5]})


def samples(seed: int = 0, count: int = SAMPLES) -> dict[str, np.ndarray]:
    """Inputs of few directions, so that channels tell of each other."""
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((count, 4)) @ rng.standard_normal((4, 12))
    return {"x": (low + 0.1 * rng.standard_normal(low.shape)).astype(np.float32)}


def written(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """The net and its samples as files."""
    model, data = folder / "net.onnx", folder / "data.npz"
    onnx.save(net(seed), str(model))
    np.savez(data, **samples())
    return model, data
