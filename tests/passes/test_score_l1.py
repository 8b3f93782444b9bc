"""L1 norms of filters."""

from __future__ import annotations

import pytest

from onnxprune.passes.score_l1 import ScoreL1
from tests.nets import score, two_layers

FIRST = [[3.0, 0.0, -1.0], [-4.0, 2.0, 0.0]]
SECOND = [[1.0], [50.0], [-3.0]]


def test_scores_are_sums_of_absolute_weights() -> None:
    """Of the columns that make the channels, by hand: 7, 2 and 1, relative to their mean."""
    [scores] = score(two_layers(FIRST, SECOND), ScoreL1())
    assert scores == pytest.approx([2.1, 0.6, 0.3])


def test_a_bias_is_no_filter() -> None:
    """However large."""
    [scores] = score(two_layers(FIRST, SECOND, bias=[0.0, 0.0, 1e3]), ScoreL1())
    assert scores == pytest.approx([2.1, 0.6, 0.3])
