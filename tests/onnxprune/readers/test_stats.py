"""Sums over sampled positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.readers.stats import POSITIONS, Gatherer, moments, positions


@given(seed=st.integers(0, 99), samples=st.integers(1, 50), is_full=st.booleans())
def test_sums_are_those_of_all_rows(seed: int, samples: int, is_full: bool) -> None:
    """Adding up sample by sample loses nothing."""
    rng = np.random.default_rng(seed)
    a, t = rng.standard_normal((2, samples, 4, 3))
    gatherer = Gatherer(is_full)
    for one in zip(a, t, strict=True):
        gatherer.add(*one)
    found = gatherer.finish()
    whole = moments(a.reshape(-1, 3), t.reshape(-1, 3), is_full=is_full)
    assert found.n == whole.n == 4 * samples
    for name in ("a", "t", "aa", "at", "tt"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name))


def test_positions_depend_on_the_sample_alone() -> None:
    """Few are all taken; of many some are drawn, others for each sample."""
    assert positions(5, 0, 3).tolist() == [0, 1, 2, 3, 4]
    drawn = positions(1000, 0, 3)
    assert len(set(drawn.tolist())) == POSITIONS
    assert drawn.tolist() == positions(1000, 0, 3).tolist() != positions(1000, 0, 4).tolist()


@given(seed=st.integers(0, 99), is_full=st.booleans())
def test_moments_are_means_and_covariances(seed: int, is_full: bool) -> None:
    """As NumPy has them, of inputs with each other and with targets."""
    a, t = np.random.default_rng(seed).standard_normal((2, 30, 4))
    found = moments(a, t, is_full=is_full)
    both = np.cov(a.T, t.T, bias=True)
    wanted = both[:4, :4], both[:4, 4:]
    covariance, cross = wanted if is_full else tuple(np.diag(part) for part in wanted)
    assert found.mean_a == pytest.approx(a.mean(axis=0))
    assert found.mean_t == pytest.approx(t.mean(axis=0))
    assert found.covariance == pytest.approx(covariance)
    assert found.cross == pytest.approx(cross)
    assert found.variance_t == pytest.approx(t.var(axis=0))


def test_numbers_that_are_not_finite_are_told() -> None:
    """So are sums of nothing."""
    rows = np.ones((3, 2))
    assert moments(rows, rows, is_full=True).is_finite
    assert not moments(rows * np.inf, rows, is_full=True).is_finite
    assert not moments(rows[:0], rows[:0], is_full=True).is_finite
