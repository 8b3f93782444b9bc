"""The order in which channels go is the one that trying every removal finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.damage.obs import ORDER_RIDGE, damped
from onnxprune.passes.score_obs import ScoreObs
from onnxprune.readers.folds import folds
from tests.builder import Builder
from tests.calibrated import calibrated, scored

Matrix = np.ndarray[Any, Any]


def net(readers: int, seed: int) -> tuple[ModelProto, Matrix, list[Matrix]]:
    """A hidden layer of eight that some products read."""
    b = Builder(seed)
    first = b.rng.standard_normal((5, 8))
    seconds = [b.rng.standard_normal((8, 3 + at)) for at in range(readers)]
    h = b.node("Tanh", b.node("MatMul", "x", b.add(first)))
    outs = [b.node("MatMul", h, b.add(w)) for w in seconds]
    shapes: dict[str, list[int | str]] = {y: ["n", w.shape[1]] for y, w in
                                          zip(outs, seconds, strict=True)}  # fmt: skip
    return b.model({"x": ["n", 5]}, shapes), first, seconds


def left_by(gone: list[int], covariance: Matrix, weights: Matrix) -> float:
    """Error of a product without some inputs once its other weights are refit."""
    kept = [i for i in range(len(covariance)) if i not in gone]
    out = covariance[np.ix_(gone, gone)]
    if kept:
        across = covariance[np.ix_(gone, kept)]
        out = out - across @ np.linalg.solve(covariance[np.ix_(kept, kept)], across.T)
    return float(np.einsum("ko,kl,lo->", weights[gone], out, weights[gone]))


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_removal_is_that_of_brute_force(readers: int, seed: int) -> None:
    """One channel at a time: the one whose removal costs all readers least after a refit."""
    model, first, seconds = net(readers, seed)
    x = np.random.default_rng(9).standard_normal((200, 5)).astype(np.float32)
    state = calibrated(model, x)
    parts = folds(*state.calibration, 640)
    rows = np.concatenate([part.rows for part in parts])
    train = np.concatenate([part.rows for part in parts[:-1]])
    hidden = np.tanh(x @ first)
    covariance = damped(np.cov(hidden[train].T, bias=True), ORDER_RIDGE)
    norms = [(hidden[rows] @ w).var(axis=0).sum() for w in seconds]
    gone: list[int] = []
    while len(gone) < 8:
        def cost(channel: int) -> float:
            return sum(left_by([*gone, channel], covariance, w) / norm
                       for w, norm in zip(seconds, norms, strict=True))  # fmt: skip

        gone.append(min((c for c in range(8) if c not in gone), key=cost))
    [found] = scored(model, x, ScoreObs())
    assert np.argsort(found).tolist() == gone


def test_of_two_channels_that_tell_the_same_one_goes_late() -> None:
    """The first to go is one of the pair, however strongly both are read; the other stays."""
    model, first, seconds = net(1, 0)
    first[:, 1] = first[:, 0]
    seconds[0][:2] *= 3
    b = Builder(0)
    h = b.node("Tanh", b.node("MatMul", "x", b.add(first)))
    y = b.node("MatMul", h, b.add(seconds[0]))
    model = b.model({"x": ["n", 5]}, {y: ["n", 3]})
    [found] = scored(model, np.random.default_rng(9).standard_normal((200, 5)), ScoreObs())
    pair = sorted(np.argsort(np.argsort(found))[:2].tolist())
    assert pair == [0, 7]
