"""Fields: pure functions on arrays of identities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.identity.fields import (
    Field,
    along,
    place,
    regroup,
    regroup_bounds,
    settle,
    thin_after,
    woven,
)


def test_a_field_over_one_axis() -> None:
    """It has the tensor's rank, and nothing but its axis is long."""
    one = along(np.arange(3), 1, 4)
    assert one.ids.shape == (1, 3, 1, 1)
    assert (one.axes, one.thin, one.rows) == ((1,), 1, ())


def test_axes_go_where_they_are_moved() -> None:
    """The thinned axis is carried, wherever it goes."""
    joint = Field(np.arange(6).reshape(2, 3), (0, 1), 1)
    turned = joint.moved(joint.ids.T, [1, 0])
    assert (turned.axes, turned.thin, turned.rows) == ((0, 1), 0, (1,))


def test_constant_axes_are_compressed() -> None:
    """What does not vary along an axis does not live there; nothing at all lives nowhere."""
    ids = np.broadcast_to(np.arange(3)[None, :, None], (2, 3, 4))
    found = settle(ids, [])
    assert found is not None
    assert (found.axes, found.ids.shape) == ((1,), (1, 3, 1))
    assert settle(np.zeros((2, 2), int), []) is None


@pytest.mark.parametrize(("wish", "thin"), [([0], 0), ([1], 1), ([], 1), ([5, 0], 0)])
def test_the_thinned_axis_is_the_first_wish_that_varies(wish: list[int], thin: int) -> None:
    """Without a wish it is the last axis."""
    found = settle(np.arange(6).reshape(2, 3), wish)
    assert found is not None
    assert found.thin == thin


@pytest.mark.parametrize(
    ("pairs", "blocks"),
    [
        ([((2, 12), (2, 3, 4)), ((3, 12), (3, 3, 4))], [(0, 1, 0, 1), (1, 2, 1, 3)]),
        ([((4, 4), (4, 4)), ((6, 4), (4, 6))], [(0, 2, 0, 2)]),  # agrees by chance at one size
        ([((2, 1, 6), (2, 6)), ((3, 1, 6), (3, 6))], [(0, 1, 0, 1), (1, 3, 1, 2)]),
        ([((2, 6), (2, 6, 1)), ((3, 6), (3, 6, 1))], [(0, 1, 0, 1), (1, 2, 1, 2), (2, 2, 2, 3)]),
        ([((1,), (1, 1)), ((1,), (1, 1))], [(0, 1, 0, 1), (1, 1, 1, 2)]),
    ],
    ids=str,
)
def test_a_reshape_has_blocks(
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], blocks: list[tuple[int, ...]]
) -> None:
    """Axes map onto each other where products agree at every size."""
    found = regroup_bounds(pairs)
    for before, after in pairs:
        for i0, i1, j0, j1 in found:
            assert np.prod(before[i0:i1]) == np.prod(after[j0:j1])
    assert (found[0][0], found[0][2]) == (0, 0)
    assert (found[-1][1], found[-1][3]) == (len(pairs[0][0]), len(pairs[0][1]))
    if pairs[0][0] != (2, 1, 6):
        assert found == blocks


@given(st.permutations([2, 3, 4]), st.integers(1, 3))
def test_regrouping_is_what_reshape_does(sizes: list[int], at: int) -> None:
    """Positions keep their flat order, whichever axes are joined or split."""
    before = (5, *sizes)
    after = (5, *sizes[: at - 1], *((sizes[at - 1], 1)), *sizes[at:])
    for axis in range(1, 4):
        one = along(np.arange(before[axis]), axis, 4)
        blocks = regroup_bounds([(before, after), ((7, *before[1:]), (7, *after[1:]))])
        ids = regroup(one.ids, before, after, blocks)
        full = np.broadcast_to(one.ids, before).reshape(after)
        assert np.array_equal(np.broadcast_to(ids, after), full)
        flat = regroup(one.ids, before, (5, 24), regroup_bounds([(before, (5, 24))]))
        assert np.array_equal(np.broadcast_to(flat, (5, 24)), full.reshape(5, 24))


def test_blocks_that_do_not_vary_stay_small() -> None:
    """A channel of a large image is not repeated for its pixels."""
    ids = regroup(np.arange(3).reshape(1, 3, 1, 1), (2, 3, 64, 64), (2, 3, 4096),
                  regroup_bounds([((2, 3, 64, 64), (2, 3, 4096))]))  # fmt: skip
    assert ids.shape == (1, 3, 1)
    left = regroup(np.array([[7]]), (2, 1), (2, 1, 1), [(0, 1, 0, 1), (1, 2, 1, 3)], axes=[1])
    assert left.shape == (1, 1, 1)


def test_the_thinned_axis_after_a_reshape() -> None:
    """It is one of those that its own block becomes, the last first."""
    one = along(np.arange(12), 1, 2)
    blocks = regroup_bounds([((2, 12), (2, 3, 4)), ((3, 12), (3, 3, 4))])
    assert thin_after(one, blocks) == [2, 1]
    assert thin_after(along(np.arange(2), 5, 6), blocks) == []


def test_rows_are_woven_where_they_are_the_minor_axis() -> None:
    """(size, heads) on one axis lays the heads into one another."""
    ids = np.arange(6).reshape(1, 3, 2)  # position, head
    blocks = regroup_bounds([((5, 3, 2), (5, 6)), ((7, 3, 2), (7, 6))])
    rows = woven(Field(ids, (1, 2), 1), blocks)
    assert rows is not None
    assert np.array_equal(rows[0], [[0, 2, 4], [1, 3, 5]])
    assert woven(Field(ids, (1, 2), 2), blocks) is None


def test_a_field_is_placed_by_labels() -> None:
    """Axes are found by name; one without a name gets nothing."""
    one = Field(np.arange(6).reshape(2, 1, 3), (0, 2), 2)
    put = place(one, ["a", "b", "c"], ("c", None, "a"))
    assert put.ids.shape == (3, 1, 2)
    assert (put.axes, put.thin) == ((0, 2), 0)
