"""Fields: integer arrays that name, at each position of a tensor, the identity living there.

Pure functions on fields; what operators do with them is in `rules/`, what ties them in `flow`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Field:
    """Identities over a tensor.

    `ids` has the tensor's rank: full length along `axes`, 1 elsewhere. `axes` is kept apart from
    the lengths because "constant along an axis" and "the axis has length 1" are different
    things: after a cut an axis in `axes` may well have length 1. A field over several axes is
    *joint*: it thins along `thin`, and its other axes are rows, cut whole or not at all.
    """

    ids: IntArray
    axes: tuple[int, ...]
    thin: int

    @property
    def rows(self) -> tuple[int, ...]:
        """The axes that are not thinned."""
        return tuple(a for a in self.axes if a != self.thin)

    def moved(self, ids: IntArray, axis_of: Sequence[int]) -> Field:
        """The field after its axes went to other places: old axis a is new axis axis_of[a]."""
        axes = tuple(sorted(axis_of[a] for a in self.axes))
        return Field(ids, axes, axis_of[self.thin])


def along(ids: IntArray, axis: int, rank: int) -> Field:
    """A field over one axis from its identities, shape (n,)."""
    shape = [1] * rank
    shape[axis] = len(ids)
    return Field(ids.reshape(shape), (axis,), axis)


def settle(ids: IntArray, thin_first: Sequence[int]) -> Field | None:
    """A field from identities that may be constant along some axes; None where along all.

    Args:
        thin_first: axes in order of preference for the one that thins.
    """
    if not ids.size:
        return None
    axes = []
    for axis, length in enumerate(ids.shape):
        if length == 1:
            continue
        head = ids.take([0], axis=axis)
        if np.array_equal(np.broadcast_to(head, ids.shape), ids):
            ids = head
        else:
            axes.append(axis)
    if not axes:
        return None
    thin = next((a for a in thin_first if a in axes), axes[-1])
    return Field(ids, tuple(axes), thin)


def regroup_bounds(pairs: Iterable[tuple[Shape, Shape]]) -> list[tuple[int, int, int, int]]:
    """Blocks of axes that a Reshape maps onto each other: (in from, in to, out from, out to).

    A boundary counts only where the products agree for every pair of (input, output) shapes:
    at one choice of sizes they may agree by chance.
    """
    cuts: set[tuple[int, int]] | None = None
    for before, after in pairs:
        at: dict[int, list[int]] = {}
        total = 1
        for j in range(len(after) + 1):
            at.setdefault(total, []).append(j)
            if j < len(after):
                total *= after[j]
        found, total = set(), 1
        for i in range(len(before) + 1):
            found |= {(i, j) for j in at.get(total, [])}
            if i < len(before):
                total *= before[i]
        cuts = found if cuts is None else cuts & found
    assert cuts is not None
    return _chain(sorted(cuts))


def _chain(cuts: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """A chain of boundaries in which both sides advance; axes of length 1 go where they fit."""
    blocks: list[tuple[int, int, int, int]] = []
    i0 = j0 = 0
    for i, j in cuts:
        if i > i0 and j > j0:
            blocks.append((i0, i, j0, j))
            i0, j0 = i, j
    last = cuts[-1]
    if (i0, j0) != last:  # trailing axes of length 1 on one side only
        blocks.append((i0, last[0], j0, last[1]))
    return blocks


def regroup(
    ids: IntArray,
    before: Shape,
    after: Shape,
    blocks: list[tuple[int, int, int, int]],
    axes: Sequence[int] = (),
) -> IntArray:
    """Identities after a Reshape; only blocks along which they vary are expanded.

    Args:
        ids: each axis is 1 or the length in `before`.
        before, after: shapes of the tensor.
        axes: axes along which they varied before a cut left one position.
    """
    full, target = list(ids.shape), [1] * len(after)
    for i0, i1, j0, j1 in blocks:
        if any(ids.shape[i] > 1 or i in axes for i in range(i0, i1)):
            full[i0:i1] = before[i0:i1]
            target[j0:j1] = after[j0:j1]
    return np.broadcast_to(ids, full).reshape(target)


def woven(field: Field, blocks: list[tuple[int, int, int, int]]) -> IntArray | None:
    """Rows that a Reshape lays into one another, position by position; None where it does not.

    Returns: shape (axes made, rows, positions).
    """
    for i0, i1, _, _ in blocks:
        minor = [a for a in field.axes if field.thin < a < i1]
        if i0 <= field.thin and minor:
            rows = np.moveaxis(field.ids, [*minor, field.thin], range(-len(minor) - 1, 0))
            length = rows.shape[-1]
            return rows.reshape(-1, int(np.prod(rows.shape[-len(minor) - 1 : -1])), length)
    return None


def thin_after(field: Field, blocks: list[tuple[int, int, int, int]]) -> list[int]:
    """Preference for the thinning axis after a Reshape: the last axes of the thin one's block."""
    for i0, i1, j0, j1 in blocks:
        if i0 <= field.thin < i1:
            return list(range(j1 - 1, j0 - 1, -1))
    return []


def place(one: Field, space: Sequence[str], labels: Sequence[str | None]) -> Field:
    """A field of the space on the axes of a tensor."""
    index = {x: i for i, x in enumerate(space)}
    order = [index.get(x) if x is not None else None for x in labels]
    kept = [a for a in order if a is not None]
    ids = one.ids.transpose(kept + [a for a in range(one.ids.ndim) if a not in kept])
    lengths = iter(ids.shape)
    seen = ids.reshape([1 if a is None else next(lengths) for a in order])
    where = {a: i for i, a in enumerate(order) if a is not None}
    return one.moved(seen, [where.get(a, 0) for a in range(one.ids.ndim)])
