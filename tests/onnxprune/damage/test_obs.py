"""Optimal brain surgeon against brute force, and what its removals cost."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.damage.obs import (
    Elimination,
    Problem,
    damped,
    eliminate,
    inverse,
    lost,
)
from onnxprune.readers.stats import FloatArray, moments

TINY = 1e-9


def problem(inputs: FloatArray, weights: FloatArray, taps: int = 1) -> Problem:
    """A reader of these inputs; the same samples stand for both folds."""
    seen = moments(inputs, inputs[:, :0], is_full=True)
    owner = np.repeat(np.arange(inputs.shape[1] // taps), taps)
    return Problem(weights, owner, [seen, seen])


def brute(inputs: FloatArray, weights: FloatArray, gone: tuple[int, ...]) -> float:
    """Least squares on what stays: the mean squared error, summed over outputs."""
    kept = [i for i in range(inputs.shape[1]) if i not in gone]
    wanted = inputs @ weights.T
    seen = np.column_stack([inputs[:, kept], np.ones(len(inputs))])
    made = seen @ np.linalg.lstsq(seen, wanted, rcond=None)[0]
    return float(((wanted - made) ** 2).mean(axis=0).sum())


@pytest.fixture
def data() -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 1.0
    return inputs, rng.normal(size=(4, 6))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_lost_is_what_least_squares_says(
    data: tuple[FloatArray, FloatArray], count: int
) -> None:
    """For every choice of channels."""
    inputs, weights = data
    for gone in combinations(range(6), count):
        found = lost(problem(inputs, weights), np.array(gone), [TINY])
        assert found == pytest.approx(brute(inputs, weights, gone), rel=1e-5)


def test_costs_of_one_removal_are_exact(data: tuple[FloatArray, FloatArray]) -> None:
    """The closed form of each channel's cost, alone and after another one went."""
    inputs, weights = data
    run = Elimination(problem(inputs, weights))
    run.inverse = inverse(damped(problem(inputs, weights).train.covariance, TINY))
    expected = [brute(inputs, weights, (i,)) for i in range(6)]
    np.testing.assert_allclose(run.costs(6), expected, rtol=1e-5)
    run.remove(np.array([2]))
    then = run.costs(6)
    for other in (0, 1, 3, 4, 5):
        more = brute(inputs, weights, (2, other)) - brute(inputs, weights, (2,))
        assert then[other] == pytest.approx(more, rel=1e-4)


def test_blocks_of_taps_go_together() -> None:
    """A channel of several inputs costs what least squares without all of them loses."""
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    weights = rng.normal(size=(3, 8))
    run = Elimination(problem(inputs, weights, taps=2))
    run.inverse = inverse(damped(problem(inputs, weights).train.covariance, TINY))
    expected = [brute(inputs, weights, (2 * i, 2 * i + 1)) for i in range(4)]
    np.testing.assert_allclose(run.costs(4), expected, rtol=1e-5)


def test_a_dependent_channel_costs_nothing_and_goes_first() -> None:
    """As the ridge goes to zero: the others make up for it."""
    rng = np.random.default_rng(0)
    free = rng.normal(size=(300, 4))
    inputs = np.column_stack([free, free @ [1.0, -2.0, 0.5, 1.0]])
    weights = np.ones((2, 5)) * 3
    one = problem(inputs, weights)
    errors = [lost(one, np.array([4]), [ridge]) for ridge in (1e-1, 1e-3, 1e-6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6 * (inputs @ weights.T).var(axis=0).sum()
    order = eliminate([one], [np.arange(5)], 5)
    first = int(np.argmin(order))
    assert lost(one, np.array([first]), [1e-6]) < 1e-4


def test_several_readers_are_added_up() -> None:
    """What one reader does not need another may."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(300, 3))
    one = problem(inputs, np.array([[0.0, 1.0, 1.0]]))
    other = problem(inputs, np.array([[5.0, 1.0, 0.1]]))
    assert int(np.argmin(eliminate([one], [np.arange(3)], 3))) == 0
    assert int(np.argmin(eliminate([one, other], [np.arange(3)], 3))) == 2


def test_parts_shrink_at_one_pace() -> None:
    """Of each row one channel goes before a second one of any."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 8))
    weights = np.array([[1.0, 2.0, 4.0, 8.0, 10.0, 20.0, 40.0, 80.0]])
    order = eliminate([problem(inputs, weights)], [np.arange(4), np.arange(4, 8)], 8)
    halves = [np.argsort(order[part]).tolist() for part in (slice(0, 4), slice(4, 8))]
    assert halves == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert np.sort(order[:4])[0] < np.sort(order[4:])[1]
