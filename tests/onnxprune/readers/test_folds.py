"""Disjoint folds of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.readers.folds import FIT_FOLDS, folds
from onnxprune.samples.dataset import Dataset


def data(n: int, batch: int) -> tuple[Dataset, Dataset]:
    """Samples to fit on and to decide on."""
    x = np.zeros((n, 2), np.float32)
    whole = Dataset({"x": x}, {}, {"x": 0}, np.arange(n), batch=batch if batch > 1 else None)
    unit = n // batch * 3 // 4 * batch
    return whole.subset(range(unit)), whole.subset(range(unit, n))


@given(st.integers(12, 300), st.integers(1, 3), st.integers(12, 400))
def test_folds_are_disjoint_and_no_more_than_asked_for(n: int, batch: int, most: int) -> None:
    """The last decides, the others fit; batches that the graph fixes stay whole."""
    fit, decide = data(n, batch)
    found = folds(fit, decide, most)
    rows = [r for one in found for r in one.rows.tolist()]
    assert len(rows) == len(set(rows)) <= most
    assert all(one.n and one.n % batch == 0 for one in found)
    assert len(found) == FIT_FOLDS + 1
    assert set(found[-1].rows) <= set(decide.rows)
    assert all(set(one.rows) <= set(fit.rows) for one in found[:-1])
    sizes = [one.n for one in found[:-1]]
    assert max(sizes) - min(sizes) <= batch


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_make_fewer_folds(count: int) -> None:
    """None of them is empty."""
    fit = Dataset({"x": np.zeros((count, 2))}, {}, {"x": 0}, np.arange(count))
    found = folds(fit, fit, 640)
    assert [one.n for one in found] == [*[1] * count, count]
