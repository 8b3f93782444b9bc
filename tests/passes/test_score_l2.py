"""L2 norms of filters."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.passes.score_l2 import ScoreL2
from tests.builder import Builder
from tests.nets import score, two_layers

FIRST = [[3.0, 0.0, -1.0], [-4.0, 3.0, 0.0]]


def test_scores_are_lengths_of_filters() -> None:
    """By hand: 5, 3 and 1, relative to their mean."""
    [scores] = score(two_layers(FIRST, np.ones((3, 1))), ScoreL2())
    assert scores == pytest.approx(np.array([5, 3, 1]) / 3)


def test_producers_of_a_stream_count_alike() -> None:
    """The layer with the larger weights does not outvote the other."""
    b = Builder(0)
    first, second = b.add([[1.0, 3.0]]), b.add([[300.0, 100.0]])
    h = b.node("Add", b.node("MatMul", "x", first), b.node("MatMul", "x", second))
    y = b.node("MatMul", b.node("Relu", h), b.weight(2, 2))
    [scores] = score(b.model({"x": ["n", 1]}, {y: ["n", 2]}), ScoreL2())
    assert scores == pytest.approx([1.0, 1.0])


def test_channels_of_a_flattened_map_are_scored_by_what_makes_them() -> None:
    """A reader with many columns for each channel changes nothing."""
    b = Builder(0)
    h = b.node("Relu", b.node("Conv", "x", b.add(np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1))))
    y = b.node("Gemm", b.node("Flatten", h), b.weight(2, 12), transB=1)
    [scores] = score(b.model({"x": ["n", 1, 2, 2]}, {y: ["n", 2]}), ScoreL2())
    assert scores == pytest.approx([0.5, 1.0, 1.5])


def test_quantised_filters_are_scored_as_what_they_stand_for() -> None:
    """The row with the large scale is the long filter, though its integers are small."""
    b = Builder(0)
    numbers = np.array([[100, 0], [0, 10]], np.int8)
    w = b.node("DequantizeLinear", b.add(numbers, np.int8), b.add([0.01, 1.0]), axis=0)
    h = b.node("Relu", b.node("Gemm", "x", w, transB=1))
    y = b.node("MatMul", h, b.weight(2, 2))
    [scores] = score(b.model({"x": ["n", 2]}, {y: ["n", 2]}), ScoreL2())
    assert scores == pytest.approx(np.array([1, 10]) / 5.5)
