"""Constants and multiples: what is proportional is found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxprune.cleanup.known import Known, align, constant, fresh, labels, on_axes, row_labels, tidy


@given(seed=st.integers(0, 2**16), rows=st.integers(2, 40), columns=st.integers(1, 9))
@example(seed=214, rows=39, columns=1)  # biases thousands of times their rows
def test_multiples_get_one_label(seed: int, rows: int, columns: int) -> None:
    """Rows of float32 weights times positive factors, and no others, are the same."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((rows, columns + 1))
    of, factor = rng.integers(0, rows, rows), rng.uniform(0.1, 10, (rows, 1))
    table = (base[of] * factor).astype(np.float32)
    found, norms = row_labels(table[:, :-1], table[:, -1].astype(np.float64))
    assert np.array_equal(found[:, None] == found, of[:, None] == of)
    assert np.allclose(norms, np.linalg.norm(table[:, :-1], axis=1), rtol=1e-5)


@pytest.mark.parametrize("change", [1e-3, 1e-5])
def test_what_differs_a_little_is_told_apart(change: float) -> None:
    """Rows that a projection cannot tell apart are compared number by number."""
    rng = np.random.default_rng(0)
    row = rng.standard_normal(50)
    other = row.copy()
    other[7] += change
    table = np.stack([row, other, 2 * row]).astype(np.float32)
    found, _ = row_labels(table, np.zeros(3))
    assert found[0] == found[2] != found[1]


def test_signs_and_zeros_are_other_rows() -> None:
    """A negative multiple is no multiple here, and a row of zeros is none of any."""
    found, norms = row_labels(np.array([[1, 2], [-1, -2], [0, 0]], np.float32), np.zeros(3))
    assert len(set(found.tolist())) == 3
    assert norms[2] == 0


def test_labels_compare_relative_to_the_number() -> None:
    """A large number beside does not blur small ones."""
    found = labels(np.array([1e9, 0.1, 0.1 * (1 + 1e-8), 0.2, -0.1]))
    assert found[1] == found[2]
    assert len(set(found.tolist())) == 4


def test_a_free_axis_is_not_an_equal_one() -> None:
    """What varies freely along an axis differs from position to position once it is spread."""
    spread = fresh("x", (1, 1)).spread(1, 5)
    assert len(set(spread.kind.ravel().tolist())) == 5
    assert constant(np.ones((1, 1))).spread(1, 5).is_constant


def test_only_axes_of_length_one_broadcast() -> None:
    """A vector along channels meets a value that varies along them position by position."""
    x, b = align([fresh("x", (1, 1, 1)), constant(np.arange(3.0)[:, None])], [(2, 3, 4), (3, 1)])
    assert x.kind.shape == (1, 3, 1)
    assert b.kind.shape == (1, 3, 1)
    gate = align([fresh("g", (1, 1)), fresh("x", (1, 3))], [(2, 1), (2, 3)])[0]
    assert gate.kind.shape == (1, 1)


def test_numbers_that_are_none_are_not_known() -> None:
    """Zeros are constants whatever they multiply; infinities are nothing."""
    kind, factor = np.array([5, 5, 0], np.uint64), np.array([0.0, np.inf, np.nan])
    known = tidy(kind, factor, "x")
    assert known.constants[0] == 0
    assert np.isnan(known.constants[1:]).all()
    assert np.isfinite(known.factor).all()


def test_a_description_along_one_axis_needs_all_others_to_agree() -> None:
    """A channel is constant only if it is the same number everywhere else."""
    kind = np.array([[0, 0], [0, 0], [3, 0]], np.uint64)
    known = on_axes(Known(kind, np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 1.0]])), (0,), (3, 2), "x")
    assert known.constants[0] == 1
    assert np.isnan(known.constants[1:]).all()
