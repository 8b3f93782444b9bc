"""Scales of batch normalisations."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.passes.score_bn_scale import ScoreBnScale
from onnxprune.passes.score_l2 import ScoreL2
from tests.builder import Builder
from tests.nets import run, score, two_layers

FIRST, SECOND = np.array([[1.0, 2.0, 3.0]]), np.ones((3, 2))


def test_scores_are_absolute_scales() -> None:
    """The sign of gamma and the length of the filter do not matter."""
    [scores] = score(two_layers(FIRST, SECOND, gamma=[-3.0, 2.0, 1.0]), ScoreBnScale())
    assert scores == pytest.approx([1.5, 1.0, 0.5])


def test_dims_without_a_norm_fall_back_to_norms_and_say_so() -> None:
    """The warning counts them and gives names."""
    net = two_layers(FIRST, SECOND)
    assert score(net, ScoreBnScale())[0] == pytest.approx(score(net, ScoreL2())[0])
    [warning] = run(net, ScoreBnScale()).warnings
    assert warning.startswith("score-bn-scale: 1 of 1 Dims pass no BatchNormalization")
    assert "`w0`" in warning


def test_a_net_of_norms_warns_of_nothing() -> None:
    """Every Dim passes one."""
    assert run(two_layers(FIRST, SECOND, gamma=[1.0, 2.0, 3.0]), ScoreBnScale()).warnings == []


def test_norms_of_a_stream_add_up() -> None:
    """Each relative to its mean: the larger one does not outvote the other."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(1, 2))
    for gamma in ([1.0, 3.0], [300.0, 100.0]):
        vectors = [b.add(np.ones(2)) for _ in range(3)]
        h = b.node("BatchNormalization", b.node("MatMul", x, b.weight(2, 2)), b.add(gamma),
                   *vectors)  # fmt: skip
        x = b.node("Add", x, h)
    y = b.node("MatMul", x, b.weight(2, 2))
    [scores] = score(b.model({"x": ["n", 1]}, {y: ["n", 2]}), ScoreBnScale())
    assert scores == pytest.approx([1.0, 1.0])
