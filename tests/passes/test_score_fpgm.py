"""Distances between filters."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.passes.score_fpgm import ScoreFpgm, distances
from tests.nets import score, two_layers


def test_scores_are_sums_of_distances() -> None:
    """Filters at 0, 3 and 4 on a line: 7, 4 and 5 to the others, by hand."""
    [scores] = score(two_layers([[0.0, 3.0, 4.0]], np.ones((3, 1))), ScoreFpgm())
    assert scores == pytest.approx(np.array([7, 4, 5]) * 3 / 16)


def test_the_filter_in_the_middle_goes_first_however_long() -> None:
    """Where a norm would keep it: this is what the criterion is for."""
    filters = np.array([[10.0, 12.0, 11.0, 11.0, 11.0], [0.0, 0.0, 1.0, -1.0, 0.0]])
    [scores] = score(two_layers(filters, np.ones((5, 1))), ScoreFpgm())
    assert scores.argmin() == 4


def test_distances_come_from_inner_products() -> None:
    """As they would from the vectors; rounding leaves no number below zero."""
    vectors = np.random.default_rng(0).standard_normal((6, 3))
    vectors[5] = vectors[4]
    wanted = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert distances(vectors @ vectors.T) == pytest.approx(wanted, abs=1e-7)
