"""Lengths of axes as functions of the channels that live."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.fields import Field, along
from onnxprune.identity.ties import Ties
from onnxprune.planning.lengths import Lengths


def dims_of(*sizes: int, parents: list[int] | None = None) -> Dims:
    """A Dim for each size; identities are channels.

    Args:
        parents: of each channel; -1 for none.
    """
    count = sum(sizes)
    parent = np.full(count, -1) if parents is None else np.array(parents)
    bounds = np.cumsum([0, *sizes])
    parts = [np.arange(a, b) for a, b in pairwise(bounds)]
    levels = [np.arange(1, n + 1)[:, None] for n in sizes]
    found = tuple(
        Dim(i, f"d{i}", (p,), levels[i], (int(parent[p[0]]),)) for i, p in enumerate(parts)
    )
    return Dims(np.arange(count), count, found, parent, Ties())


def alive_but(count: int, *gone: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """All channels but some."""
    alive = np.ones(count, np.bool_)
    alive[list(gone)] = False
    return alive


def test_an_axis_of_two_parts_is_the_sum_of_both() -> None:
    """What Concat makes shrinks with either; a channel repeated three times counts three."""
    lengths = Lengths(dims_of(4, 2))
    ids = np.array([0, 1, 2, 3, 4, 4, 4, 5, 5, 5])
    [axis] = lengths.axes((along(ids, 0, 1),), (10,), (10,))
    assert lengths.evaluate(np.ones(6, np.bool_)).tolist() == [10]
    assert lengths.evaluate(alive_but(6, 1, 4)).tolist() == [6]
    assert lengths.dims_of([axis or 0]) == {0, 1}


def test_an_axis_is_scaled_to_the_sizes_of_cost() -> None:
    """An axis that holds the batch too is shorter where the batch is."""
    lengths = Lengths(dims_of(3))
    lengths.axes((along(np.array([0, 1, 2, 0, 1, 2]), 0, 1),), (6,), (3,))
    assert lengths.evaluate(alive_but(3, 2)).tolist() == [2]


def test_positions_that_two_fields_share_need_both() -> None:
    """Where neither field says what the other does, positions are counted one by one."""
    lengths = Lengths(dims_of(3, 3))
    one, other = along(np.array([0, 1, 2]), 0, 1), along(np.array([3, 4, 5]), 0, 1)
    lengths.axes((one, other), (3,), (3,))
    assert lengths.evaluate(alive_but(6, 0, 4)).tolist() == [1]


def test_half_of_a_part_is_counted_by_position() -> None:
    """An axis that holds some channels of a part depends on which of them stay."""
    lengths = Lengths(dims_of(4))
    lengths.axes((along(np.array([0, 1]), 0, 1),), (2,), (2,))
    assert lengths.evaluate(alive_but(4, 0, 1)).tolist() == [0]
    assert lengths.evaluate(alive_but(4, 2, 3)).tolist() == [2]


def test_rows_go_with_their_parents() -> None:
    """Of a joint field the row axis counts parents, the thinned one the positions of a row."""
    dims = dims_of(2, 3, 3, parents=[-1, -1, 0, 0, 0, 1, 1, 1])
    lengths = Lengths(dims)
    joint = Field(np.arange(2, 8).reshape(2, 3), (0, 1), 1)
    lengths.axes((joint,), (2, 3), (2, 3))
    assert lengths.evaluate(np.ones(8, np.bool_)).tolist() == [2, 3]
    assert lengths.evaluate(alive_but(8, 0, 2, 3, 4, 7)).tolist() == [1, 2]


def test_a_row_of_several_parents_stays_without_one() -> None:
    """Both directions of a cell have units of every head that their sum is seen as."""
    lengths = Lengths(dims_of(4, 2, parents=[4, 4, 5, 5, -1, -1]))
    units = Field(np.array([[0, 1, 2, 3], [0, 1, 2, 3]]), (0, 1), 1)
    directions, hidden = lengths.axes((units,), (2, 4), (2, 4))
    assert directions is None
    assert lengths.evaluate(alive_but(6, 0, 1, 4))[hidden or 0] == 2


def test_rows_that_are_a_channel_each_go_with_it() -> None:
    """Pixels of a channel are all gone or none; the axes of pixels keep their lengths."""
    lengths = Lengths(dims_of(3))
    pixels = np.repeat(np.arange(3), 4).reshape(3, 2, 2)
    lengths.axes((Field(pixels, (0, 1, 2), 2),), (3, 2, 2), (3, 2, 2))
    assert lengths.evaluate(alive_but(3, 1))[0] == 2
    assert set(lengths.evaluate(alive_but(3, 1))[1:].tolist()) <= {2}


def test_a_field_that_a_parent_implies_is_left_out() -> None:
    """A channel goes with its parent: both on one axis say no more than the channel."""
    dims = dims_of(1, 3, parents=[-1, 0, 0, 0])
    lengths = Lengths(dims)
    lengths.axes((along(np.array([1, 2, 3]), 0, 1), along(np.array([0, 0, 0]), 0, 1)), (3,), (3,))
    assert lengths.evaluate(alive_but(4, 3)).tolist() == [2]
    assert lengths.by_part(np.ones(4, np.bool_), np.ones(1)).tolist() == pytest.approx([3.0, 1.0])


def test_without_channels_there_is_nothing_to_evaluate() -> None:
    """A model of which nothing may shrink has no lengths."""
    lengths = Lengths(dims_of())
    assert lengths.axes((), (3,), (3,)) == (None,)
    assert lengths.evaluate(np.zeros(0, np.bool_)).tolist() == []
