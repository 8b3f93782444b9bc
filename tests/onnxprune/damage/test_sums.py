"""What errors of a reader's outputs count relative to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.damage.sums import LEAST_VARIANCE, gather
from onnxprune.identity.dims import Dims
from onnxprune.readers.find import find_views
from onnxprune.readers.folds import folds
from onnxprune.readers.stats import total
from tests.builder import Builder
from tests.calibrated import dataset
from tests.nets import run

# How much the outputs of the first layer vary, as standard deviations.
SIZES = np.array([1.0, 0.3, 0.2, 1e-4])


def shares(model: Any) -> Any:
    """Variance of each output of the first layer, in units of the damage of errors there."""
    x = np.random.default_rng(2).standard_normal((80, 6)).astype(np.float32)
    whole, state = dataset(model, x), run(model)
    views = list(find_views(state.model, state.subject.shapes[0], state[Dims].ties).values())
    parts = folds(whole.subset(range(60)), whole.subset(range(60, 80)), 640)
    one = gather(state.model, state.subject.shapes[0], views, parts, 0)[views[0].key]
    return np.einsum("ok,kj,oj->o", one.weights, total(one.folds).covariance, one.weights)


def first(b: Builder) -> str:
    weight = np.linalg.qr(b.rng.standard_normal((6, 6)))[0][:, :4] * SIZES
    return b.node("Add", b.node("MatMul", "x", b.add(weight)), b.weight(4))


def test_before_an_activation_each_output_counts_alike() -> None:
    """But what hardly varies counts as if it varied a little."""
    b = Builder(0)
    y = b.node("MatMul", b.node("Relu", first(b)), b.weight(4, 3))
    found = shares(b.model({"x": ["n", 6]}, {y: ["n", 3]}))
    assert found[:3] == pytest.approx([0.25] * 3)
    mean = (SIZES**2).mean() * LEAST_VARIANCE
    assert found[3] == pytest.approx(0.25 * SIZES[3] ** 2 / mean, rel=0.3)


def test_elsewhere_outputs_count_by_their_variance() -> None:
    """Of the sum over all that is given."""
    b = Builder(0)
    y = b.node("MatMul", first(b), b.weight(4, 3))
    found = shares(b.model({"x": ["n", 6]}, {y: ["n", 3]}))
    assert found.sum() == pytest.approx(1)
    assert found / found[0] == pytest.approx(SIZES**2, rel=0.5)


def test_what_joins_a_sum_counts_by_the_variance_of_the_sum() -> None:
    """A small term may be off by much of itself."""
    b = Builder(0)
    term = first(b)
    other = b.node("MatMul", "x", b.add(10 * np.eye(6, 4)))
    y = b.node("Relu", b.node("Add", term, other))
    found = shares(b.model({"x": ["n", 6]}, {y: ["n", 4]}))
    assert 0.5e-3 < found.sum() < 1e-2
