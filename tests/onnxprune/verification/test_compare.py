"""Outputs side by side: each figure means what it says, in one batch or many."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import ModelError
from onnxprune.verification.compare import Comparer, Comparison, compare


def one(reference: object, candidate: object, name: str = "y") -> Comparison:
    return compare([name], [reference], [candidate])[0]


def softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x) / np.exp(x).sum(-1, keepdims=True))


def test_equal_outputs_differ_by_nothing() -> None:
    """No error, cosine 1, no divergence, full agreement."""
    logits = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    found = one(logits, logits)
    assert (found.kind, found.samples) == ("logits", 7)
    assert (found.error_mean, found.error_worst, found.agreement) == (0, 0, 1)
    assert found.cosine_least == pytest.approx(1)
    assert found.kl_mean == pytest.approx(0, abs=1e-12)


def test_the_worst_sample_is_named() -> None:
    """Its error is relative to that sample's own length."""
    reference = np.full((200, 4, 4), 2.0)
    candidate = reference.copy()
    candidate[150] *= 1.5
    candidate[3] *= 1.1
    found = one(reference, candidate)
    assert found.worst_sample == 150
    assert found.error_worst == pytest.approx(0.5)
    assert found.error_p99 == pytest.approx(0.1)
    assert found.error_mean == pytest.approx(0.6 / 200)
    assert found.kl_mean is None
    assert found.agreement is None


def test_divergence_is_that_of_the_distributions() -> None:
    """Of probabilities, their logarithms and logits alike."""
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 6, 5))
    p, q = softmax(a), softmax(b)
    expected = (p * np.log(p / q)).sum(1).mean()
    for ours, theirs in ((a, b), (p, q), (np.log(p), np.log(q))):
        found = one(ours, theirs)
        assert found.kl_mean == pytest.approx(expected)
        assert found.agreement == np.mean(a.argmax(1) == b.argmax(1))


def test_divergence_from_zero_is_finite() -> None:
    """A probability of 0 is taken as the least float32 tells from 0."""
    found = one(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert found.kl_mean is not None
    assert 10 < found.kl_mean < 30


def test_whole_numbers_and_text_agree_or_not() -> None:
    """Their distance means nothing."""
    for reference, candidate in (
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9])),
        (np.array(list("abcd")), np.array(list("abcx"))),
        (np.array([True] * 4), np.array([True, True, True, False])),
    ):
        found = one(reference, candidate)
        assert (found.kind, found.agreement, found.error_mean) == ("labels", 0.75, None)


def test_lists_of_maps_are_tables() -> None:
    """As a scikit-learn classifier's ZipMap gives them."""
    reference = [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}]
    found = one(reference, [{0: 0.75, 1: 0.25}, {0: 0.5, 1: 0.5}])
    assert (found.kind, found.agreement) == ("distribution", 0.5)


def test_a_candidate_that_is_not_finite_is_infinitely_wrong() -> None:
    """It cannot hide behind a mean."""
    reference = np.ones((3, 2, 2))
    candidate = reference.copy()
    candidate[1, 0, 0] = np.nan
    found = one(reference, candidate)
    assert found.error_worst == found.error_mean == np.inf
    assert found.worst_sample == 1


@given(seed=st.integers(0, 999), size=st.integers(1, 9), name=st.sampled_from(["y", "logits"]))
def test_batches_change_nothing(seed: int, size: int, name: str) -> None:
    """Figures gathered batch by batch are those of all samples at once."""
    generator = np.random.default_rng(seed)
    reference = generator.standard_normal((9, 3, 4))
    candidate = reference + 0.1 * generator.standard_normal((9, 3, 4))
    comparer = Comparer([name])
    for start in range(0, 9, size):
        part = slice(start, start + size)
        comparer.add([reference[part]], [candidate[part]])
    found, whole = comparer.result()[0], one(reference, candidate, name)
    figures, expected = (astuple(c) for c in (found, whole))
    assert figures[:3] == expected[:3]
    assert figures[3:] == tuple(
        e if e is None else pytest.approx(e, rel=1e-9) for e in expected[3:]
    )


def test_changed_shapes_and_types_are_errors() -> None:
    """They name the output."""
    for candidate in (np.ones((2, 4)), np.ones((2, 3), np.int64)):
        with pytest.raises(ModelError, match="`score`"):
            compare(["score"], [np.ones((2, 3))], [candidate])


def test_nothing_compared_is_no_figure() -> None:
    """Without batches every figure is None."""
    assert Comparer(["y"]).result() == (Comparison("y", "values", 0),)
