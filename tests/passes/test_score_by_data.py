"""Scores of a hidden layer on data, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.passes.score_activation import ScoreActivation
from onnxprune.passes.score_activation_variance import ScoreActivationVariance
from onnxprune.passes.score_output import ScoreOutput
from onnxprune.passes.score_variance import ScoreVariance
from onnxprune.readers.folds import folds
from tests.builder import Builder
from tests.calibrated import calibrated, scored
from tests.nets import two_layers

RNG = np.random.default_rng(5)
FIRST, SECOND = RNG.standard_normal((4, 6)), RNG.standard_normal((6, 3))
BIAS = RNG.standard_normal(6)
X = RNG.standard_normal((100, 4)).astype(np.float32)


def hidden(model: Any) -> np.ndarray[Any, Any]:
    """The hidden layer on the samples that are looked at."""
    rows = np.concatenate([p.rows for p in folds(*calibrated(model, X).calibration, 640)])
    found: np.ndarray[Any, Any] = np.maximum(X[rows] @ FIRST + BIAS, 0)
    return found


def relative(values: np.ndarray[Any, Any]) -> Any:
    """As a test compares them: divided by their mean."""
    return pytest.approx(values / values.mean(), rel=1e-4)


def test_scores_are_what_the_papers_say() -> None:
    """Wanda's products of lengths, FLAP's variance times squared length, variance alone."""
    model = two_layers(FIRST, SECOND, bias=BIAS)
    z = hidden(model)
    [activation] = scored(model, X, ScoreActivation())
    [variance] = scored(model, X, ScoreVariance())
    [alone] = scored(model, X, ScoreActivationVariance())
    assert activation == relative(np.abs(SECOND).sum(axis=1) * np.sqrt((z**2).mean(axis=0)))
    assert variance == relative((SECOND**2).sum(axis=1) * z.var(axis=0))
    assert alone == relative(z.var(axis=0))


def test_one_readers_factor_does_not_change_its_order() -> None:
    """With one reader it is the mean square of what each channel adds."""
    model = two_layers(FIRST, SECOND, bias=BIAS)
    [found] = scored(model, X, ScoreOutput())
    assert found == relative((SECOND**2).sum(axis=1) * (hidden(model) ** 2).mean(axis=0))


def test_a_reader_that_the_output_hides_does_not_count() -> None:
    """Channels are ranked as the other reader says, whatever this one reads."""
    def found(loud: float) -> np.ndarray[Any, Any]:
        b = Builder(0)
        h = b.node("Relu", b.node("Add", b.node("MatMul", "x", b.add(FIRST)), b.add(BIAS)))
        told = b.node("MatMul", h, b.add(SECOND))
        idle = b.node("MatMul", h, b.add(SECOND[::-1, :1] * loud))
        y = b.node("Softmax", b.node("Add", told, idle))  # one number for all classes
        [own] = scored(b.model({"x": ["n", 4]}, {y: ["n", 3]}), X, ScoreOutput())
        return own

    assert found(1.0) == pytest.approx(found(5.0), rel=1e-3)


def test_taps_of_a_channel_belong_together() -> None:
    """A kernel that takes differences of a constant channel adds nothing; a blur does."""
    b = Builder(0)
    kernel = np.zeros((2, 2, 1, 2))
    kernel[0, 0, 0] = 1.0, -1.0
    kernel[1, 1, 0] = 1.0, 1.0
    x = b.node("Conv", "x", b.add(np.eye(2)[:, :, None, None]))
    y = b.node("Conv", b.node("Relu", x), b.add(kernel))
    model = b.model({"x": ["n", 2, 1, 6]}, {y: ["n", 2, 1, 5]})
    each = np.random.default_rng(1).uniform(1, 2, (60, 2, 1, 1))
    [found] = scored(model, np.broadcast_to(each, (60, 2, 1, 6)), ScoreOutput())
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] == pytest.approx(2)
