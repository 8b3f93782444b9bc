"""Levels a Dim may take, and what a choice of levels keeps."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.identity.dims import Dims
from onnxprune.planning.plan import allowed_levels, drop_rows, fixed_level, ranks, select
from tests.builder import Builder
from tests.oracle import flow_of


def chain(*widths: int) -> Dims:
    """The Dims of a chain of products of these widths."""
    b, h = Builder(0), "x"
    for before, after in zip((3, *widths), (*widths, 2), strict=True):
        h = b.node("Relu", b.node("MatMul", h, b.weight(before, after)))
    return flow_of(b.model({"x": ["n", 3]}, {h: ["n", 2]})).dims


def widths(size: int, multiple: int | None) -> list[int]:
    """Widths that a Dim of this size may take."""
    dims = chain(size)
    [dim] = dims.free
    return [int(dim.levels[i].max()) for i in allowed_levels(dims, dim, multiple)]


def test_narrow_dims_are_free_above_their_floor() -> None:
    """Any width from an eighth on."""
    assert widths(12, None) == list(range(2, 13))


def test_wide_dims_keep_to_the_steps_of_kernels() -> None:
    """The wider, the larger the step; none below an eighth."""
    assert widths(40, None) == list(range(8, 41, 4))
    assert widths(64, None) == list(range(8, 65, 8))
    assert widths(256, None) == list(range(32, 257, 16))


def test_a_given_multiple_holds_wherever_it_fits() -> None:
    """The floor is at least one multiple; the original width is always allowed."""
    assert widths(64, 16) == [16, 32, 48, 64]
    assert widths(20, 8) == [8, 16, 20]
    assert widths(6, 8) == [6]


def test_a_wish_is_met_from_below() -> None:
    """A number of channels, or a share up to 1; at least one channel stays."""
    [dim] = chain(10).free
    kept = [int(dim.levels[fixed_level(dim, want)].max()) for want in (4, 0.55, 1, 0.01, 100)]
    assert kept == [4, 5, 10, 1, 10]


def test_the_best_channels_stay_and_ties_go_to_the_first() -> None:
    """Equal scores keep the lower index: a plan is the same each time."""
    dims = chain(5)
    [dim] = dims.free
    scores = np.ones(dims.count)
    scores[dim.channels] = [1, 3, 1, 3, 2]
    assert ranks(dims, scores)[dim.channels].tolist() == [3, 0, 4, 1, 2]
    alive = select(dims, scores, {dim.index: 3})
    assert alive[dim.channels].tolist() == [True, True, False, True, True]
    assert alive.sum() == dims.count - 1


def grouped() -> Dims:
    """A grouped convolution of three groups between two plain ones."""
    b = Builder(0)
    h = b.node("Conv", "x", b.weight(6, 3, 1, 1))
    h = b.node("Relu", b.node("Conv", h, b.weight(9, 2, 1, 1), group=3))
    y = b.node("Conv", h, b.weight(2, 9, 1, 1))
    return flow_of(b.model({"x": ["n", 3, 2, 2]}, {y: ["n", 2, 2, 2]})).dims


def test_rows_of_a_parent_that_is_gone_are_gone() -> None:
    """A group takes its inputs and outputs along."""
    dims = grouped()
    parent = next(iter(dims.children))
    alive = np.ones(dims.count, np.bool_)
    alive[parent] = False
    left = drop_rows(dims, alive)
    assert not left[dims.children[parent]].any()
    assert left.sum() == dims.count - 1 - len(dims.children[parent])


@pytest.mark.parametrize("multiple", [None, 2])
def test_groups_are_counted_one_by_one(multiple: int | None) -> None:
    """A multiple is about widths; how many heads or groups there are is not one."""
    dims = grouped()
    [groups] = [d for d in dims.free if int(d.channels[0]) in dims.children]
    assert len(allowed_levels(dims, groups, multiple)) == 3
