"""What weights alone say of values: which are constant, and which are proportional.

A value's positions are described along its channel axes only. Each position has a *kind* and a
*factor*: it is `factor` times what its kind stands for, whatever the data. Kind 0 stands for the
number one, so its positions are constants; any other kind is a number that two positions share
only if one is a positive multiple of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from onnxprune.identity.fields import Shape

Kinds = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

# Rows of float32 weights that are multiples of each other agree to this, relative to their norm.
TOLERANCE = 1e-6
# A projection in float32 may be off by more than the rows are.
PROJECTED = 1e-5


@dataclass(frozen=True, eq=False)
class Known:
    """A value: arrays of its rank, of full length along axes whose positions differ, 1 elsewhere.

    Along an axis of length 1 the value may vary freely, unless it is constant.
    """

    kind: Kinds
    factor: FloatArray
    """Above 0, unless the kind is 0."""

    @property
    def constants(self) -> FloatArray:
        """The value where it is constant, NaN elsewhere."""
        return np.where(self.kind == 0, self.factor, np.nan)

    @property
    def is_constant(self) -> bool:
        """True where no position depends on the data."""
        return not self.kind.any()

    def spread(self, axis: int, length: int) -> Known:
        """The same, described position by position along an axis."""
        if self.kind.shape[axis] == length:
            return self
        shape = [1] * self.kind.ndim
        shape[axis] = length
        index = np.arange(length, dtype=np.uint64).reshape(shape)
        kind = np.where(self.kind == 0, np.uint64(0), mix(self.kind, index))
        return Known(kind, np.broadcast_to(self.factor, kind.shape))

    def salted(self, salt: str) -> Known:
        """The same factors of other kinds: what an operator makes of them."""
        kind = np.where(self.kind == 0, np.uint64(0), mix(self.kind, number(salt)))
        return Known(kind, self.factor)


def constant(values: Array) -> Known:
    """A stored tensor."""
    return Known(np.zeros(np.shape(values), np.uint64), np.asarray(values, np.float64))


def fresh(name: str, shape: Sequence[int]) -> Known:
    """A value of which nothing is known, described along the axes longer than 1."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(tuple(shape))
    return Known(mix(number(name), index), np.ones(tuple(shape)))


def tidy(kind: Kinds, factor: FloatArray, name: str) -> Known:
    """The same with zeros made constants, and numbers that are none made fresh."""
    shape = np.broadcast_shapes(kind.shape, factor.shape)
    kind, factor = np.broadcast_to(kind, shape).copy(), np.broadcast_to(factor, shape).copy()
    kind[factor == 0] = 0
    broken = ~np.isfinite(factor)
    if broken.any():
        kind[broken] = fresh(f"{name} overflow", kind.shape).kind[broken]
        factor[broken] = 1.0
    return Known(kind, factor)


def number(text: str) -> Kinds:
    """A number for a name."""
    return np.asarray(crc32(text.encode()) << 20 | len(text), np.uint64)


def mix(*parts: npt.ArrayLike) -> Kinds:
    """A hash of several numbers, never 0."""
    total: Any = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for part in parts:
            total = (total ^ np.asarray(part, np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            total = total ^ (total >> np.uint64(29))
            total = total * np.uint64(0x94D049BB133111EB)
            total = total ^ (total >> np.uint64(32))
    return np.asarray(total | np.uint64(1), np.uint64)


def align(values: Sequence[Known], shapes: Sequence[Shape]) -> list[Known]:
    """Values as they meet by broadcasting: described along every axis along which one is."""
    rank = max(len(s) for s in shapes)
    padded = [_padded(v, rank) for v in values]
    full = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    for axis in range(rank):
        length = max(v.kind.shape[axis] for v in padded)
        if length > 1:
            padded = [
                v.spread(axis, length) if s[axis] > 1 else v
                for v, s in zip(padded, full, strict=True)
            ]
    return padded


def _padded(one: Known, rank: int) -> Known:
    shape = (1,) * (rank - one.kind.ndim) + one.kind.shape
    return Known(one.kind.reshape(shape), one.factor.reshape(shape))


def on_axes(one: Known, axes: Sequence[int], shape: Sequence[int], name: str) -> Known:
    """A value described along some axes only, flat over them.

    Args:
        shape: of the value.
    """
    for axis in axes:
        one = one.spread(axis, shape[axis])
    places = range(len(axes))
    rest = [n for a, n in enumerate(one.kind.shape) if a not in axes]
    table = (prod(shape[a] for a in axes), prod(rest))
    factors = np.broadcast_to(one.factor, one.kind.shape)
    kind = np.moveaxis(one.kind, axes, places).reshape(table)
    factor = np.moveaxis(factors, axes, places).reshape(table)
    if kind.shape[1] == 1:
        return Known(kind[:, 0], factor[:, 0])
    even = (factor[:, :1] == factor).all(axis=1)
    constants = even & (kind == 0).all(axis=1)
    alike = even & (kind != 0).all(axis=1)
    made = np.where(alike, mix(*kind.T), fresh(f"{name} along {axes}", table[:1]).kind)
    made = np.where(constants, np.uint64(0), made)
    return Known(made, np.where(constants | alike, factor[:, 0], 1.0))


def labels(values: FloatArray, tolerance: float = TOLERANCE) -> npt.NDArray[np.int64]:
    """Numbers that are equal but for their last digits get the same label."""
    unique, inverse = np.unique(values, return_inverse=True)
    apart = np.diff(unique) > tolerance * np.abs(unique[1:])
    steps = np.concatenate([[0], np.cumsum(apart)]).astype(np.int64)
    return np.asarray(steps[inverse].reshape(np.shape(values)), np.int64)


def row_labels(rows: Array, bias: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Rows that are positive multiples of each other, biases included, get the same label.

    Args:
        rows: shape (n, columns).
    Returns: labels, and the norm of each row.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float64)
    scale = np.where(norms > 0, norms, 1.0)
    generator = np.random.default_rng(0)
    along = generator.standard_normal(rows.shape[1] + 1)
    seen = (rows @ along[:-1].astype(rows.dtype)) / scale + along[-1] * bias / scale
    order = np.argsort(seen, kind="stable")
    found = np.empty(len(rows), np.int64)
    start = 0
    line = seen[order]  # a bias may be many times its row
    apart = np.diff(line) > PROJECTED * np.maximum(1.0, np.abs(line[1:]))
    bounds = [*np.flatnonzero(apart) + 1, len(rows)]
    for end in bounds:
        found[order[start:end]] = start
        if end - start > 1:
            _tell_apart(rows, bias / scale, scale, order[start:end], found)
        start = int(end)
    return found, norms


def _tell_apart(
    rows: Array, bias: FloatArray, scale: FloatArray, members: Array, found: Array
) -> None:
    """Give rows that only looked alike labels of their own."""
    left, label = members, int(found[members[0]])
    while len(left) > 1:
        unit = rows[left].astype(np.float64) / scale[left, None]
        near = np.abs(unit - unit[0]).max(axis=1, initial=0) <= TOLERANCE
        near &= np.abs(bias[left] - bias[left[0]]) <= TOLERANCE * max(1.0, abs(bias[left[0]]))
        near[0] = True
        found[left[near]] = label
        left, label = left[~near], label + 1
        found[left] = label
