"""What the other filters cannot make up for."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.passes.score_redundancy import RIDGE, ScoreRedundancy, by_cosine, by_fit
from tests.nets import run, score, two_layers

TWINS = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("by", ["fit", "cosine"])
def test_of_two_equal_filters_one_goes_and_the_other_stays(by: str) -> None:
    """The shorter of a pair in one direction is worth next to nothing."""
    [scores] = score(two_layers(TWINS, np.ones((3, 1))), ScoreRedundancy(by=by))
    assert scores.argmin() == 0
    assert scores[0] < 0.01
    assert min(scores[1], scores[2]) > 0.5


def test_what_a_fit_leaves_is_the_distance_to_the_others() -> None:
    """The first to go is the one that least squares by all others does best."""
    filters = np.random.default_rng(1).standard_normal((5, 12))
    gram = filters @ filters.T
    ridge = RIDGE * np.trace(gram) / 5
    left = []
    for i in range(5):
        rest = np.delete(filters, i, axis=0)
        weights = np.linalg.solve(rest @ rest.T + ridge * np.eye(4), rest @ filters[i])
        gone = filters[i] - weights @ rest
        left.append(gone @ gone + ridge * (weights @ weights) + ridge)
    scores = by_fit(gram)
    assert scores.argmin() == int(np.argmin(left))
    assert scores.min() == pytest.approx(min(left))


def test_filters_leave_in_the_order_that_search_would_choose() -> None:
    """Step by step, each time the one that a fit by those still there makes up for best."""
    filters = np.random.default_rng(2).standard_normal((6, 9))
    gram = filters @ filters.T
    ridge = RIDGE * np.trace(gram) / 6 * np.eye(6)
    order, left = [], list(range(6))
    while left:
        inverse = np.linalg.inv((gram + ridge)[np.ix_(left, left)])
        order.append(left.pop(int(np.argmax(np.diag(inverse)))))
    assert np.argsort(by_fit(gram), kind="stable").tolist() == order


def test_wide_parts_go_in_rounds_and_stay_in_order() -> None:
    """More filters than rounds: those that are sums of others still go first."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((150, 400))
    mixed = rng.standard_normal((150, 150)) / 12 @ base
    vectors = np.concatenate([base, mixed, 3 * rng.standard_normal((10, 400))])
    scores = by_fit(vectors @ vectors.T)
    assert (scores < 1e-1 * np.median(scores[-10:])).sum() >= 150


def test_cosine_takes_the_shorter_of_each_pair() -> None:
    """By hand: at 60 degrees half is left, at a right angle all."""
    filters = np.array([[2.0, 0.0, 0.0], [0.5, 0.75**0.5, 0.0], [0.0, 0.0, 1.0]])
    assert by_cosine(filters @ filters.T) == pytest.approx([1.0, 0.5, 1.0])


def test_empty_filters_are_worth_nothing() -> None:
    """Filters of zeros point nowhere."""
    filters = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert by_cosine(filters @ filters.T).tolist() == [0.0, 1.0, 1.0]
    assert by_fit(filters @ filters.T).argmin() == 0


def test_an_unknown_measure_is_bad_usage() -> None:
    """The hint lists those there are."""
    with pytest.raises(UsageError, match="no measure is named `angle`") as refused:
        run(two_layers(TWINS, np.ones((3, 1))), ScoreRedundancy(by="angle"))
    assert "`cosine`" in refused.value.hint
