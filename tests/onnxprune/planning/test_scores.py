"""What scores are made of: touches, relative sums, rows of parents, inner products."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.planning.scores import (
    Scores,
    Touches,
    check_finite,
    finish,
    grams,
    lift_to_parents,
    relative,
)
from tests.builder import Builder
from tests.oracle import Followed, flow_of


def touches(found: Followed) -> Touches:
    """What the Dims of a followed model touch."""
    return Touches(found.model, found.dims)


def two_layers(first: np.ndarray, second: np.ndarray, bias: np.ndarray | None = None) -> ModelProto:
    """A hidden layer between two products: rows of one make what columns of the other read."""
    b = Builder(0)
    h = b.node("MatMul", "x", b.add(first))
    if bias is not None:
        h = b.node("Add", h, b.add(bias))
    y = b.node("MatMul", b.node("Relu", h), b.add(second))
    return b.model({"x": ["n", first.shape[0]]}, {y: ["n", second.shape[1]]})


FIRST = np.array([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])
SECOND = np.array([[1.0, 0.0], [0.0, -2.0], [2.0, 2.0]])


def test_filters_that_make_a_channel_are_told_from_those_that_read_it() -> None:
    """One Dim, one producer, one reader, and a bias that is no filter."""
    found = flow_of(two_layers(FIRST, SECOND, np.array([9.0, 9.0, 9.0])))
    [dim] = found.dims.free
    own = [t for t in touches(found) if (found.dims.dim_of[found.dims.of[t.field.ids]] ==
                                         dim.index).all()]  # fmt: skip
    assert [(t.is_filter, t.reads) for t in own] == [(True, False), (False, False), (True, True)]


def test_norms_are_those_of_columns_and_rows() -> None:
    """By hand: L1 of what makes each channel, squared L2 of what reads it."""
    found = flow_of(two_layers(FIRST, SECOND))
    [dim] = found.dims.free
    seen = {t.reads: t for t in touches(found) if dim.channels[0] in found.dims.of[t.field.ids]}
    own, made = touches(found).norms(seen[False], np.abs)
    assert own.tolist() == dim.channels.tolist()
    assert made.tolist() == [7, 2, 1]
    assert touches(found).norms(seen[True], np.square)[1].tolist() == [1, 4, 8]


def test_masks_and_infinities_leave_scores_finite() -> None:
    """A mask of minus infinities beside the weights neither warns nor spoils a score."""
    b = Builder(0)
    h = b.node("Relu", b.node("MatMul", "x", b.weight(3, 4)))
    h = b.node("Add", h, b.add([[0, -np.inf, 0, -3e38]]))
    y = b.node("MatMul", h, b.weight(4, 2))
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 2]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = touches(found).gather(np.square, np.sqrt, lambda t: True)
    assert np.isfinite(scores.total).all()


def test_a_weight_used_twice_by_the_same_channels_counts_once() -> None:
    """A layer that is run twice is one layer."""
    b = Builder(0)
    w, first = b.weight(4, 4), b.weight(3, 4)
    x = b.node("MatMul", "x", first)
    for _ in range(2):
        x = b.node("Add", x, b.node("MatMul", x, w))
    y = b.node("MatMul", x, b.weight(4, 2))
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 2]}))
    [dim] = found.dims.free
    makers = [t.name for t in touches(found) if not t.reads and
              dim.channels[0] in found.dims.of[t.field.ids]]  # fmt: skip
    assert sorted(makers) == sorted([w, first])


def test_channels_that_no_filter_makes_count_by_their_readers() -> None:
    """Ones that an operator grew have no producer, and are judged all the same."""
    b = Builder(0)
    grown = b.node("Expand", b.add([[1.0]]), b.ints(1, 4))
    h = b.node("Mul", grown, b.weight(4))
    y = b.node("Add", b.node("MatMul", "x", b.weight(3, 2)), b.node("MatMul", h, b.weight(4, 2)))
    found = flow_of(b.model({"x": ["n", 3]}, {y: ["n", 2]}))
    four = [d for d in found.dims.free if len(d.channels) == 4]
    for dim in four:
        assert np.ptp(touches(found).magnitude(np.square, np.sqrt)[dim.channels]) > 0
    assert four


def test_scores_are_relative_to_their_dim() -> None:
    """Means are 1, whatever the scale; a Dim of zeros is all alike."""
    found = flow_of(two_layers(FIRST * 1e6, SECOND))
    scores = relative(found.dims, touches(found).magnitude(np.abs))
    [dim] = found.dims.free
    assert scores[dim.channels] == pytest.approx(np.array([7, 2, 1]) * 0.3)
    zeros = Scores(np.zeros(found.dims.count)).normalised(found.dims)
    assert zeros.of[dim.channels].tolist() == [1, 1, 1]


def test_a_score_that_is_no_number_is_refused() -> None:
    """The Dim is named."""
    found = flow_of(two_layers(FIRST, SECOND))
    [dim] = found.dims.free
    broken = np.ones(found.dims.count)
    broken[dim.channels[1]] = np.nan
    with pytest.raises(ModelError, match=f"`mine` of Dim `{dim.name}` is not finite"):
        check_finite(broken, found.dims, "mine")


def grouped(weights: np.ndarray) -> Followed:
    """A grouped convolution of two groups between plain ones."""
    b = Builder(0)
    h = b.node("Conv", "x", b.weight(6, 3, 1, 1))
    h = b.node("Relu", b.node("Conv", h, b.add(weights), group=2))
    y = b.node("Conv", h, b.weight(2, 8, 1, 1))
    return flow_of(b.model({"x": ["n", 3, 2, 2]}, {y: ["n", 2, 2, 2]}))


def test_a_parent_scores_what_its_rows_keep_on_average() -> None:
    """A group of weak filters is the weak group, however many channels its rows have."""
    weights = np.ones((8, 3, 1, 1))
    weights[:4] *= 0.1
    found = grouped(weights)
    [groups] = [d for d in found.dims.free if int(d.channels[0]) in found.dims.children]
    scores = finish(found.dims, touches(found).magnitude(np.square, np.sqrt), "x").of
    weak, strong = groups.channels
    # Own score of 1, rows of inputs (random, about 1) and rows of outputs.
    assert scores[weak] < scores[strong]
    flat = np.ones(found.dims.count)
    assert lift_to_parents(found.dims, flat) == pytest.approx(flat)


def test_inner_products_cover_all_producers_of_a_part() -> None:
    """A stream's filters are those of every layer that adds to it, each at equal weight."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((3, 4)), 100 * rng.standard_normal((5, 4))
    b = Builder(0)
    h = b.node("Add", b.node("MatMul", "x", b.add(first)), b.node("MatMul", "z", b.add(second)))
    y = b.node("MatMul", b.node("Relu", h), b.weight(4, 2))
    found = flow_of(b.model({"x": ["n", 3], "z": ["n", 5]}, {y: ["n", 2]}))
    [(part, gram)] = grams(touches(found))
    assert part.tolist() == found.dims.free[0].channels.tolist()
    wanted = sum(w.T @ w / ((w**2).sum() / 4) for w in (first, second))
    np.testing.assert_allclose(gram, wanted, rtol=1e-5)


def test_gates_of_a_unit_are_one_filter() -> None:
    """Of a recurrent cell the rows of all gates make a unit, from inputs and from states."""
    b = Builder(0)
    w, r = b.weight(1, 12, 2), b.weight(1, 12, 3)
    h = b.node("LSTM", "x", w, r, hidden_size=3)
    y = b.node("MatMul", b.node("Squeeze", h, b.ints(1)), b.weight(3, 2))
    found = flow_of(b.model({"x": [4, "n", 2]}, {y: [4, "n", 2]}))
    [(_, gram)] = grams(touches(found))
    wanted = np.zeros((3, 3))
    for name in (w, r):
        rows = found.model.array(name)[0].reshape(4, 3, -1).transpose(1, 0, 2).reshape(3, -1)
        wanted += rows @ rows.T / ((rows**2).sum() / 3)
    np.testing.assert_allclose(gram, wanted, rtol=1e-5)
