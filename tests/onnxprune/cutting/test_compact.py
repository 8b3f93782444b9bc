"""What is taken out of a tensor when identities go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.cutting.compact import Take, compact_field, lengths, takes
from onnxprune.errors import ToolDefect
from onnxprune.identity.fields import Field, along


def alive(count: int, *gone: int) -> np.ndarray:
    found = np.ones(count, np.bool_)
    found[list(gone)] = False
    return found


def test_nothing_is_taken_where_all_stays() -> None:
    """An untouched weight is the original's."""
    assert takes([along(np.arange(3), 0, 2)], (3, 2), alive(3)) == []


def test_plain_axes_lose_positions() -> None:
    """Each axis by itself; two kinds on one axis lose what either loses."""
    fields = [along(np.arange(4), 0, 2), along(np.arange(4, 7), 1, 2)]
    found = takes(fields, (4, 3), alive(7, 1, 6))
    assert [(t.axis, t.kept.tolist()) for t in found] == [(0, [0, 2, 3]), (1, [0, 1])]
    array = np.arange(12).reshape(4, 3)
    for take in found:
        array = take.apply(array)
    assert array.tolist() == [[0, 1], [6, 7], [9, 10]]
    assert lengths((4, 3), found) == (3, 2)
    both = [along(np.array([0, 1, 0, 1]), 0, 1), along(np.array([2, 2, 3, 3]), 0, 1)]
    assert takes(both, (4,), alive(4, 1, 2))[0].kept.tolist() == [2]


def test_rows_keep_positions_of_their_own() -> None:
    """A joint field is taken row by row; a row without positions goes whole."""
    one = Field(np.arange(12).reshape(3, 4), (0, 1), 1)
    found = takes([one], (3, 4), alive(12, 0, 1, 4, 7, 8, 9, 10, 11))
    assert [(t.axis, t.rows) for t in found] == [(0, ()), (1, (0,))]
    array = np.arange(12).reshape(3, 4)
    for take in found:
        array = take.apply(array)
    assert array.tolist() == [[2, 3], [5, 6]]
    assert found[1].first.tolist() == [2, 3]
    assert np.array_equal(compact_field(one, found).ids, array)


def test_rows_that_agree_are_taken_at_once() -> None:
    """One list of positions is enough."""
    one = Field(np.arange(6).reshape(2, 3), (0, 1), 1)
    [take] = takes([one], (2, 3), alive(6, 1, 4))
    assert (take.rows, take.kept.tolist()) == ((), [0, 2])


def test_uneven_rows_are_a_defect() -> None:
    """Nobody may ask for what is no rectangle."""
    with pytest.raises(ToolDefect, match="unequal counts: \\[2, 3\\]"):
        takes([Field(np.arange(6).reshape(2, 3), (0, 1), 1)], (2, 3), alive(6, 1))


def test_a_field_that_others_cut_by_rows_gets_rows() -> None:
    """Positions of a shared axis differ from row to row afterwards."""
    joint = Field(np.arange(6).reshape(2, 3), (0, 1), 1)
    shared = along(np.arange(6, 9), 1, 2)
    found = takes([joint, shared], (2, 3), alive(9, 0, 4))
    left = compact_field(shared, found)
    assert left.axes == (0, 1)
    assert left.ids.tolist() == [[7, 8], [6, 8]]
    assert compact_field(along(np.arange(2), 0, 2), found).ids.shape == (2, 1)


@given(st.data())
def test_taking_is_indexing(data: st.DataObject) -> None:
    """With rows on two axes, on either side of the thinned one."""
    shape = (2, 4, 3)
    kept = np.array(
        [[sorted(data.draw(st.permutations(range(4)))[:2]) for _ in range(3)] for _ in range(2)]
    )
    take = Take(1, kept, (0, 2))
    array = np.arange(24).reshape(shape)
    found = take.apply(array)
    assert found.shape == (2, 2, 3)
    for i in range(2):
        for k in range(3):
            assert found[i, :, k].tolist() == array[i, kept[i, k], k].tolist()
