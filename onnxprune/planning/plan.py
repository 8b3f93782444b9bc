"""Which channels stay: limits, the levels a Dim may take, and what a choice of levels keeps.

A plan gives each Dim one of its feasible levels; within a part the best-scored channels stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.identity.dims import BoolArray, Dim, Dims
from onnxprune.identity.fields import IntArray
from onnxprune.planning.cost import Cost
from onnxprune.planning.scores import FloatArray

Levels = dict[int, int]
"""Level of each Dim that may be cut, by Dim index."""

# accuracy.md: nothing is gained by emptying a layer; 1/8 keeps every layer's function.
FLOOR_SHARE = 1 / 8
# Kernels for CPUs with wide vectors compute 16 channels at once where a layer is wide enough;
# below, blocks of 8 and 4; narrow layers are left free.
AUTO_MULTIPLES = ((256, 16), (64, 8), (16, 4))


@dataclass(frozen=True)
class Limits:
    """What a plan must respect."""

    targets: Mapping[str, float] = field(default_factory=dict)
    """Share of the original's cost to keep at most, by name (macs, params, bytes)."""
    multiple: int | None = None
    """Width multiple; None chooses by width, and gives way where it keeps a target away."""
    approximate: bool = False
    """Cut approximate Dims too."""
    fixed: Mapping[int, float] = field(default_factory=dict)
    """Dim index -> channels a row keeps (above 1) or share of them."""
    skip: frozenset[int] = frozenset()
    """Dims left alone."""
    most: Mapping[int, int] = field(default_factory=dict)
    """Dim index -> the level that it keeps at most."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The channels that stay."""

    alive: BoolArray
    """Shape (channels,)."""
    levels: Levels
    cost: Cost
    whole: Cost
    coarse: str = ""
    """Why no target is met more closely; empty where one is."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """Plans that were compared, and what each cost the outputs: the error on samples held out, as
    `repair/choose` measures it."""
    taken: str = ""
    """Its name among those that were tried."""

    @property
    def ratios(self) -> dict[str, float]:
        return self.cost.share(self.whole)


def allowed_levels(dims: Dims, dim: Dim, multiple: int | None) -> list[int]:
    """Indices of the levels a Dim may take: floor and multiple respected; the last always.

    Args:
        multiple: None chooses by width.
    """
    last = len(dim.levels) - 1
    widths = dim.levels.max(axis=1)
    step = _multiple(dims, dim, multiple)
    floor = max(int(np.ceil(dim.size * FLOOR_SHARE)), step)
    found = [i for i in range(last) if widths[i] >= floor and widths[i] % step == 0]
    return [*found, last]


def _multiple(dims: Dims, dim: Dim, multiple: int | None) -> int:
    if int(dim.channels[0]) in dims.children:
        return 1  # heads and groups are counted, not computed side by side
    return auto_multiple(dim) if multiple is None else multiple


def auto_multiple(dim: Dim) -> int:
    """The multiple a kernel likes, where the Dim is wide enough to afford it."""
    if len({len(p) for p in dim.parts}) > 1:
        return 1  # parts of unequal length keep counts of their own
    return next((m for width, m in AUTO_MULTIPLES if dim.size >= width), 1)


def fixed_level(dim: Dim, want: float) -> int:
    """The level nearest below a wish: channels of a row, or a share of them up to 1."""
    widths = dim.levels.max(axis=1)
    goal = want * dim.size if want <= 1 else want
    below = np.flatnonzero(widths <= goal + 1e-9)
    return int(below[-1]) if len(below) else 0


def ranks(dims: Dims, scores: FloatArray) -> IntArray:
    """Place of each channel within its part: 0 for the best; ties go to the lower index."""
    found = np.zeros(dims.count, np.int64)
    for dim in dims.dims:
        for part in dim.parts:
            found[part[np.argsort(-scores[part], kind="stable")]] = np.arange(len(part))
    return found


def select(dims: Dims, scores: FloatArray, levels: Levels) -> BoolArray:
    """The channels that stay: the best of each part."""
    place = ranks(dims, scores)
    alive = np.ones(dims.count, np.bool_)
    for index, level in levels.items():
        dim = dims.dims[index]
        for part, count in zip(dim.parts, dim.levels[level], strict=True):
            alive[part] = place[part] < count
    return drop_rows(dims, alive)


def drop_rows(dims: Dims, alive: BoolArray) -> BoolArray:
    """Rows of a parent that is gone are gone, rows of rows too."""
    alive = alive.copy()
    while True:
        child = np.flatnonzero((dims.parent >= 0) & alive)
        lost = child[~alive[dims.parent[child]]]
        if not len(lost):
            return alive
        alive[lost] = False
