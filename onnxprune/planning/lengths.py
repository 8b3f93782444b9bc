"""Lengths of axes as functions of the channels that live, evaluated for all axes together.

Most axes are sums: so many positions for each channel of a part. An axis where that does not hold
(positions that two fields must both keep) is counted position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.fields import Field, IntArray, Shape
from onnxprune.planning.terms import FloatArray

# Rows of two joint fields are counted pair by pair up to here; else the first stand for all.
MOST_ROWS = 4096


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of an axis: positions for each channel of some parts."""

    parts: IntArray
    each: IntArray


@dataclass(frozen=True, eq=False)
class _Counted:
    """An axis counted by position: `channels` has shape (fields, rows, positions)."""

    channels: IntArray
    counts: IntArray
    """How many positions each stands for."""

    def length(self, alive: BoolArray) -> int:
        found = alive[self.channels].all(axis=0) @ self.counts
        return int(found.max(initial=0))


class Lengths:
    """Axes that depend on channels, each once; an axis is known by its index."""

    def __init__(self, dims: Dims) -> None:
        self.dims = dims
        parts = [p for d in dims.dims for p in d.parts]
        self.part_dim = np.array([d.index for d in dims.dims for _ in d.parts], np.int64)
        self.part_size = np.array([len(p) for p in parts], np.int64)
        self.part_of = np.zeros(dims.count, np.int64)
        for at, part in enumerate(parts):
            self.part_of[part] = at
        self._known: dict[tuple[Any, ...], int] = {}
        self._tensors: dict[tuple[Any, ...], tuple[int | None, ...]] = {}
        self._rows: list[list[_Row]] = []
        self._counted: dict[int, _Counted] = {}

    def axes(self, fields: Sequence[Field], first: Shape, shape: Shape) -> tuple[int | None, ...]:
        """The index of each axis of a tensor; None for one that no channel changes.

        Args:
            first: the shape that the fields were found at.
            shape: the shape wanted.
        """
        key = (tuple(map(id, fields)), first, shape)  # fields live as long as their Dims
        if key not in self._tensors:
            found = [(f, self.dims.of[f.ids]) for f in fields]
            self._tensors[key] = tuple(
                self._axis([x for x in found if a in x[0].axes], a, first[a], n)
                for a, n in enumerate(shape)
            )
        return self._tensors[key]

    def _axis(
        self, fields: list[tuple[Field, IntArray]], axis: int, base: int, length: int
    ) -> int | None:
        tables = [t for one, ids in fields if (t := self._table(one, ids, axis)) is not None]
        if not tables or not base:
            return None
        key = (base, length, *((t.shape, t.tobytes()) for t in tables))
        if key not in self._known:
            self._known[key] = len(self._rows)
            self._add(_stacked(self._needed(tables)), base, length)
        return self._known[key]

    def _table(self, one: Field, ids: IntArray, axis: int) -> IntArray | None:
        """Channels of an axis, shape (rows, positions); None where it does not shrink."""
        if len(one.axes) == 1:
            return ids.reshape(1, -1)
        if one.thin == axis:
            return np.moveaxis(ids, axis, -1).reshape(-1, ids.shape[axis])
        # A row is gone with the parent it belongs to, or with the channel that it is.
        rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
        parents = self.dims.parent[rows]
        for found in (rows, parents):
            if (found == found[:, :1]).all() and found.min() >= 0:
                return found[None, :, 0]
        return None  # a row of several heads loses these, and stays

    def _needed(self, tables: list[IntArray]) -> list[IntArray]:
        """Without those that say no more than another: a channel goes with its parents."""
        kept: list[IntArray] = []
        for table in sorted(tables, key=len, reverse=True):
            if not any(self._implies(other, table) for other in kept):
                kept = [k for k in kept if not self._implies(table, k)] + [table]
        return kept

    def _implies(self, own: IntArray, above: IntArray) -> bool:
        if above.shape not in (own.shape, (1, own.shape[1])):
            return False
        while (own >= 0).any():
            if (own == above).all():
                return True
            own = np.where(own >= 0, self.dims.parent[own], -1)
        return False

    def _add(self, table: IntArray, base: int, length: int) -> None:
        rows = self._sums(table[0], base, length) if len(table) == 1 else None
        if rows is None:
            flat = table.reshape(-1, table.shape[-1])
            unique, counts = np.unique(flat, axis=1, return_counts=True)
            channels = unique.reshape(*table.shape[:-1], unique.shape[-1])
            self._counted[len(self._rows)] = _Counted(channels, counts * length // base)
            rows = [_Row(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        self._rows.append(rows)

    def _sums(self, table: IntArray, base: int, length: int) -> list[_Row] | None:
        """Each distinct row as a sum over parts; None where one is none."""
        distinct = np.unique(table, axis=0) if len(table) > 1 else table
        rows = []
        for channels in distinct:
            row = self._row(channels, base, length)
            if row is None:
                return None
            rows.append(row)
        return rows

    def _row(self, channels: IntArray, base: int, length: int) -> _Row | None:
        """Positions a channel of each part has; None where its channels differ."""
        own, counts = np.unique(channels, return_counts=True)
        each = counts * length // base
        parts, first, times = np.unique(self.part_of[own], return_index=True, return_counts=True)
        at = np.searchsorted(parts, self.part_of[own])
        if (times != self.part_size[parts]).any() or (each[first][at] != each).any():
            return None
        return _Row(parts, each[first])

    # --- all axes at once ------------------------------------------------------------------

    @cached_property
    def _matrix(self) -> tuple[Any, IntArray]:
        """Positions by (row, part), and where the rows of each axis start."""
        rows = [r for axis in self._rows for r in axis]
        starts = np.cumsum([0, *(len(axis) for axis in self._rows)])[:-1].astype(np.int64)
        ends = np.cumsum([0, *(len(r.parts) for r in rows)])
        parts = np.concatenate([r.parts for r in rows] or [np.zeros(0, np.int64)])
        each = np.concatenate([r.each for r in rows] or [np.zeros(0, np.int64)])
        return csr_matrix((each, parts, ends), (len(rows), len(self.part_size))), starts

    @cached_property
    def _order(self) -> tuple[IntArray, IntArray]:
        order = np.argsort(self.part_of, kind="stable")
        return order, np.searchsorted(self.part_of[order], np.arange(len(self.part_size)))

    def counts(self, alive: BoolArray) -> IntArray:
        """Channels alive in each part."""
        order, starts = self._order
        if not len(starts):
            return np.zeros(0, np.int64)
        found: IntArray = np.add.reduceat(alive[order], starts, dtype=np.int64)
        return found

    def evaluate(self, alive: BoolArray) -> IntArray:
        """The length of every axis. Args: alive: shape (channels,)."""
        matrix, starts = self._matrix
        if not len(starts):
            return np.zeros(0, np.int64)
        found: IntArray = np.maximum.reduceat(matrix @ self.counts(alive), starts)
        for at, axis in self._counted.items():
            found[at] = axis.length(alive)
        return found

    def by_part(self, alive: BoolArray, slopes: FloatArray) -> FloatArray:
        """Slopes along axes as slopes along the channels of each part.

        A parent takes its rows along: their channels' slopes are its own too.
        """
        matrix, starts = self._matrix
        if not len(starts):
            return np.zeros(len(self.part_size))
        counts = self.counts(alive)
        rows = matrix @ counts
        weights = np.zeros(len(rows))
        ends = [*starts[1:], len(rows)]
        best = [a + int(np.argmax(rows[a:b])) for a, b in zip(starts, ends, strict=True)]
        weights[best] = slopes
        found: FloatArray = np.asarray(matrix.T @ weights, np.float64)
        for at, axis in self._counted.items():
            parts = np.unique(self.part_of[axis.channels[:, :1].ravel()])
            found[parts] += slopes[at] * axis.counts.sum() / max(len(axis.counts), 1)
        return self._with_rows(found, counts)

    def _with_rows(self, slopes: FloatArray, counts: IntArray) -> FloatArray:
        found = slopes.copy()
        for part, channel in self._links:
            above = self.part_of[channel]
            found[above] += slopes[part] * counts[part] / max(counts[above], 1)
        return found

    @cached_property
    def _links(self) -> list[tuple[int, int]]:
        """(part, the channel whose row it is), innermost rows first."""
        parts = [(p, c) for d in self.dims.dims for p, c in zip(d.parts, d.parents, strict=True)]
        found = [(int(self.part_of[p[0]]), c) for p, c in parts if c >= 0]
        return sorted(found, key=lambda link: -self._depth(link[1]))

    def _depth(self, channel: int) -> int:
        above = int(self.dims.parent[channel])
        return 0 if above < 0 else 1 + self._depth(above)

    def dims_of(self, axes: Sequence[int]) -> set[int]:
        """Dims that axes depend on, and those whose rows they are."""
        matrix, starts = self._matrix
        ends = [*starts[1:], matrix.shape[0]]
        found = set[int]()
        for axis in axes:
            parts = matrix[starts[axis] : ends[axis]].indices
            if axis in self._counted:
                parts = self.part_of[np.unique(self._counted[axis].channels)]
            found |= set(self.part_dim[parts].tolist())
        waiting = list(found)
        while waiting:
            above = {int(self.dims.dim_of[p]) for p in self.dims.dims[waiting.pop()].parents
                     if p >= 0} - found  # fmt: skip
            found |= above
            waiting += above
        return found


def _stacked(tables: list[IntArray]) -> IntArray:
    """Tables of several fields with one number of rows: shape (fields, rows, positions)."""
    sizes = [len(t) for t in tables]
    if len(set(sizes)) == 1:
        return np.stack(tables)
    if np.prod(sizes) > MOST_ROWS:
        return np.stack([t[:1] for t in tables])
    pairs = np.array(list(product(*(range(n) for n in sizes))))
    return np.stack([t[pairs[:, i]] for i, t in enumerate(tables)])
