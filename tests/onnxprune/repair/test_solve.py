"""Solves and rescalings, on numbers drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.readers.stats import Moments, moments
from onnxprune.repair import solve
from onnxprune.repair.solve import RIDGES, SCALES, Affine, best_pull, refit, repair, restored


def drawn(seed: int, rows: int, noise: float) -> tuple[Moments, Moments, Affine]:
    """Moments of two halves of a noisy linear map, and sliced weights that are off."""
    rng = np.random.default_rng(seed)
    mix, weights = rng.standard_normal((6, 6)), rng.standard_normal((4, 6))
    a = rng.standard_normal((2, rows, 6)) @ mix + 1
    t = a @ weights.T + 2 + noise * rng.standard_normal((2, rows, 4))
    sliced = Affine(weights + rng.standard_normal((4, 6)), np.zeros(4))
    first, second = (moments(x, y, is_full=True) for x, y in zip(a, t, strict=True))
    return first, second, sliced


@given(st.integers(0, 999), st.sampled_from([3, 10, 100]), st.sampled_from([0.0, 1.0, 30.0]))
def test_a_repaired_reader_is_never_worse_than_the_sliced_one(
    seed: int, rows: int, noise: float
) -> None:
    """On the samples that decide; where nothing helps, the sliced reader stays."""
    fit, decide, sliced = drawn(seed, rows, noise)
    found = repair([fit, decide], sliced, may_solve=True)
    assert found.line.error(decide) == found.after <= found.before == sliced.error(decide)
    if found.kind == "sliced":
        assert found.line is sliced


def test_scaling_brings_mean_and_variance_back() -> None:
    """As far as the limits of the scale allow."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 3))
    t = a * [0.8, 1.5, 9.0] + [1, 2, 3]
    seen = moments(a, t, is_full=False)
    found = restored(seen, Affine(np.ones(3), np.zeros(3)))
    assert found.weights == pytest.approx([0.8, 1.5, SCALES[1]])
    assert found.mean(seen) + found.bias == pytest.approx(t.mean(axis=0))


def test_a_channel_that_does_not_vary_is_not_scaled() -> None:
    """Its variance is noise, and a ratio of noise is no scale."""
    a, t = np.full((50, 1), 2.0), np.arange(50.0)[:, None]
    found = restored(moments(a, t, is_full=False), Affine(np.ones(1), np.zeros(1)))
    assert found.weights == pytest.approx([1.0])


def test_noise_asks_for_a_stronger_pull() -> None:
    """With few samples and much noise the sliced weights know more than the data."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((4, 20))

    def half(rows: int, noise: float) -> Moments:
        a = rng.standard_normal((rows, 20))
        return moments(a, a @ weights.T + noise * rng.standard_normal((rows, 4)), is_full=True)

    sliced = Affine(weights + 0.1, np.zeros(4))
    clean = best_pull([half(500, 0.01), half(500, 0.01)], sliced)
    noisy = best_pull([half(25, 5.0), half(200, 5.0)], sliced)
    assert clean is not None
    assert noisy is not None
    assert clean < noisy


def test_numbers_that_are_not_finite_repair_nothing() -> None:
    """An overflow in the net is no reason to break it further."""
    fit, decide, sliced = drawn(0, 10, 0.0)
    broken = moments(np.full((1, 6), np.inf), np.zeros((1, 4)), is_full=True)
    assert repair([broken, decide], sliced, may_solve=True).kind == "sliced"
    assert repair([fit, broken], sliced, may_solve=True).kind == "sliced"


def test_a_layer_that_lost_nothing_gets_its_variance_back_even_at_the_cost_of_its_own_error() -> (
    None
):
    """Upstream it shrank to half, and what is left tells little about what was there."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((2, 400, 3))
    t = 2 * (0.3 * a + np.sqrt(1 - 0.09) * rng.standard_normal(a.shape))
    folds = [moments(x, y, is_full=False) for x, y in zip(a, t, strict=True)]
    found = repair(folds, Affine(np.ones(3), np.zeros(3)), may_solve=False)
    assert found.kind == "scaled"
    assert found.after > found.before
    assert found.line.variance(folds[1]) == pytest.approx(folds[1].variance_t, rel=0.2)


def test_what_went_is_made_up_for_though_noise_upstream_asks_for_a_strong_pull() -> None:
    """An input went that the others tell exactly; few samples, and much noise in the targets."""
    rng = np.random.default_rng(4)
    weights, mix = rng.standard_normal((4, 9)), rng.standard_normal((1, 8))
    sliced = Affine(weights[:, :8], np.zeros(4))
    noisy, apart = [], []
    for _ in range(4):
        kept = rng.standard_normal((30, 8))
        given = np.hstack([kept, kept @ mix.T]) @ weights.T
        noisy.append(moments(kept, given + 5 * rng.standard_normal(given.shape), is_full=True))
        apart.append(moments(kept, given, is_full=True))
    start = refit(apart, sliced)
    assert start.weights == pytest.approx(weights[:, :8] + weights[:, 8:] @ mix, abs=0.01)
    found = repair(noisy, sliced, may_solve=True, joins=True, start=start)
    from_sliced = repair(noisy, sliced, may_solve=True, joins=True)
    assert found.kind == "solved"
    assert found.line.error(apart[0]) < 0.5 * from_sliced.line.error(apart[0])


def test_some_of_many_outputs_tell_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one, where there are twice as many as are looked at."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((4, 30, 12))
    truth = rng.standard_normal((8, 12))
    noise = rng.standard_normal((4, 30, 8)) * np.where(np.arange(8) % 2, 30.0, 0.1)
    whole = [moments(x, x @ truth.T + e, is_full=True) for x, e in zip(a, noise, strict=True)]
    start = Affine(truth + 1.0, np.zeros(8))
    assert best_pull(whole, start) > RIDGES[0], "the noisy ones ask for a strong pull"
    monkeypatch.setattr(solve, "OUTPUTS", 4)
    assert best_pull(whole, start) == RIDGES[0]
