"""Sums of products of lengths."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.planning.terms import Sum, Table

LENGTHS = np.array([3, 5, 7])


def value(found: Sum | int) -> int:
    """What a sum is at some lengths."""
    return int(Table.of([found]).values(LENGTHS)[0])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(-3, 3))
def test_a_sum_computes_what_numbers_would(indices: list[int], number: int) -> None:
    """Products, sums and differences of unknowns are those of their lengths."""
    unknown = prod(Sum.unknown(i) for i in indices)
    known = prod(int(LENGTHS[i]) for i in indices)
    assert value(unknown * number) == known * number
    assert value(2 + unknown - number) == 2 + known - number
    assert value(number - unknown * unknown) == number - known * known


@pytest.mark.parametrize("ask", [
    lambda x: x // 2, lambda x: x == 1, lambda x: max(x, 1), lambda x: bool(x), lambda x: 1.5 * x,
])  # fmt: skip
def test_what_is_no_sum_of_products_is_refused(ask: object) -> None:
    """A rule that compares or divides cannot go on with a wrong idea of a length."""
    with pytest.raises(TypeError):
        ask(Sum.unknown(0))  # type: ignore[operator]


def test_items_are_evaluated_together() -> None:
    """Each item has its own sum; one without any is zero."""
    a, b = Sum.unknown(0), Sum.unknown(2)
    table = Table.of([a * b + 1, 0, b * b, 9])
    assert table.values(LENGTHS).tolist() == [22, 0, 49, 9]
    assert table.touched(0).tolist() == [0, 2]
    assert table.touched(3).tolist() == []


def test_slopes_are_what_one_more_position_adds() -> None:
    """Sums are linear in each length, so the slope is a difference."""
    a, b, c = (Sum.unknown(i) for i in range(3))
    table = Table.of([a * b * c, 2 * a + c])
    weight = np.array([0.5, 3.0])
    for axis in range(3):
        more = LENGTHS.copy()
        more[axis] += 1
        grown = (table.values(more) - table.values(LENGTHS)) @ weight
        assert table.slopes(LENGTHS, weight)[axis] == pytest.approx(grown)
