"""Takes removed identities out of tensors: new shapes, index lists, orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ToolDefect
from onnxprune.identity.dims import BoolArray
from onnxprune.identity.fields import Field, IntArray, Shape


@dataclass(frozen=True, eq=False)
class Take:
    """Positions of one axis that stay.

    Without `rows`, `kept` has shape (n,). With them each row of those axes keeps positions of its
    own: `kept` has the lengths of the row axes (after what was taken of them), then n.
    """

    axis: int
    kept: IntArray
    rows: tuple[int, ...] = ()

    @property
    def first(self) -> IntArray:
        """Positions that the first row keeps."""
        found: IntArray = self.kept.reshape(-1, self.kept.shape[-1])[0]
        return found

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The positions of an array that stay."""
        if not self.rows:
            return array.take(self.kept, axis=self.axis)
        shape = [1] * array.ndim
        for at, axis in enumerate(self.rows):
            shape[axis] = self.kept.shape[at]
        order = np.argsort([*self.rows, self.axis])
        shape[self.axis] = self.kept.shape[-1]
        index = self.kept.transpose(order).reshape(shape)
        full = [n if a == self.axis else array.shape[a] for a, n in enumerate(shape)]
        return np.take_along_axis(array, np.broadcast_to(index, full), axis=self.axis)


def takes(fields: Sequence[Field], shape: Shape, alive: BoolArray) -> list[Take]:
    """What to take, in order, from a tensor with these fields; nothing where all stays.

    Args:
        alive: shape (identities,).
    Raises: ToolDefect: rows would keep unequal counts.
    """
    keep: list[BoolArray] = [np.ones(n, np.bool_) for n in shape]
    joint = [f for f in fields if len(f.axes) > 1]
    for one in fields:
        mask = alive[one.ids]
        for axis in one.rows if len(one.axes) > 1 else one.axes:
            others = tuple(a for a in range(mask.ndim) if a != axis)
            keep[axis] = keep[axis] & mask.any(axis=others)
    thin = {f.thin for f in joint}
    plain = [
        Take(a, np.flatnonzero(k)) for a, k in enumerate(keep) if a not in thin and not k.all()
    ]
    found = list(plain)
    for axis in sorted(thin):
        take = _thin([f for f in joint if f.thin == axis], axis, keep, alive)
        found += [take] if take is not None else []
    return found


def _thin(joint: list[Field], axis: int, keep: list[BoolArray], alive: BoolArray) -> Take | None:
    rows = tuple(sorted({a for f in joint for a in f.rows}))
    mask: BoolArray = np.ones([1] * len(keep), np.bool_)
    for one in joint:
        mask = mask & alive[one.ids]
    shape = [1] * len(keep)
    shape[axis] = len(keep[axis])
    mask = mask & keep[axis].reshape(shape)
    for row in rows:
        if mask.shape[row] > 1:
            mask = mask.compress(keep[row], axis=row)
    table = np.moveaxis(mask, axis, -1).reshape(
        [mask.shape[a] for a in rows] + [mask.shape[axis]]
    )
    flat = table.reshape(-1, table.shape[-1])
    counts = flat.sum(axis=1)
    if len(set(counts.tolist())) != 1:
        raise ToolDefect(f"rows would keep unequal counts: {sorted(set(counts.tolist()))}")
    if flat.all():
        return None
    if (flat == flat[0]).all():
        return Take(axis, np.flatnonzero(flat[0]))
    kept = np.nonzero(flat)[1].reshape(*table.shape[:-1], int(counts[0]))
    return Take(axis, kept, rows)


def compact_field(one: Field, found: Sequence[Take]) -> Field:
    """A field over what stays."""
    ids = one.ids
    for take in found:
        if take.axis not in one.axes:
            continue
        if take.rows:
            full = [take.kept.shape[take.rows.index(a)] if a in take.rows else n
                    for a, n in enumerate(ids.shape)]  # fmt: skip
            ids = np.broadcast_to(ids, full)
        ids = take.apply(ids)
    axes = tuple(a for a in range(ids.ndim) if a in one.axes or ids.shape[a] > 1)
    return Field(ids, axes, one.thin)


def lengths(shape: Shape, found: Sequence[Take]) -> Shape:
    """The shape after taking."""
    after = list(shape)
    for take in found:
        after[take.axis] = take.kept.shape[-1]
    return tuple(after)
