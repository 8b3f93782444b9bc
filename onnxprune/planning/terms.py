"""Sums of products of lengths: what a rule that counts returns when it is asked with unknowns.

A rule knows nothing of this: it multiplies and adds what `shape_of` tells. A rule that does more
(divides, compares) raises TypeError here, and is asked again with numbers for each plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.identity.fields import IntArray

FloatArray = npt.NDArray[np.float64]
Product = tuple[int, ...]
"""Indices of lengths, ascending."""


class Sum:
    """A polynomial: a whole factor for each product of unknown lengths."""

    __slots__ = ("of",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, of: Mapping[Product, int]) -> None:
        self.of = of

    @staticmethod
    def unknown(index: int) -> Sum:
        """The length with this index."""
        return Sum({(index,): 1})

    def __add__(self, other: Sum | int) -> Sum:
        found = dict(self.of)
        for product, factor in as_products(other).items():
            found[product] = found.get(product, 0) + factor
        return Sum(found)

    def __mul__(self, other: Sum | int) -> Sum:
        found: dict[Product, int] = {}
        for a, m in self.of.items():
            for b, n in as_products(other).items():
                product = tuple(sorted(a + b))
                found[product] = found.get(product, 0) + m * n
        return Sum(found)

    def __sub__(self, other: Sum | int) -> Sum:
        return self + Sum(as_products(other)) * -1

    def __rsub__(self, other: int) -> Sum:
        return self * -1 + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        raise TypeError("an unknown length is compared")

    def __bool__(self) -> bool:
        raise TypeError("an unknown length is compared")


def as_products(value: Sum | int) -> Mapping[Product, int]:
    """The factors of a sum or a number.

    Raises: TypeError: it is neither.
    """
    if isinstance(value, Sum):
        return value.of
    if isinstance(value, int | np.integer):
        return {(): int(value)} if value else {}
    raise TypeError(f"a count of type {type(value).__name__}")


@dataclass(frozen=True, eq=False)
class Table:
    """Many sums, evaluated together; each belongs to an item (a node, a weight)."""

    items: int
    owner: IntArray
    """Shape (products,): the item of each."""
    factor: IntArray
    """Shape (products,)."""
    lengths: IntArray
    """Shape (products, most factors): indices of lengths; -1 for 1."""

    @classmethod
    def of(cls, sums: Sequence[Sum | int]) -> Table:
        rows = [(i, f, p) for i, one in enumerate(sums) for p, f in as_products(one).items()]
        width = max((len(p) for _, _, p in rows), default=0)
        table = np.full((len(rows), max(width, 1)), -1, np.int64)
        for at, (_, _, product) in enumerate(rows):
            table[at, : len(product)] = product
        owner, factor = (np.array([r[k] for r in rows], np.int64) for k in (0, 1))
        return cls(len(sums), owner, factor, table)

    def products(self, lengths: IntArray) -> IntArray:
        """The value of each product. Args: lengths: shape (lengths,)."""
        found: IntArray = np.append(lengths, 1)[self.lengths].prod(axis=1) * self.factor
        return found

    def values(self, lengths: IntArray) -> IntArray:
        """The value of each item."""
        found = np.zeros(self.items, np.int64)
        np.add.at(found, self.owner, self.products(lengths))
        return found

    def slopes(self, lengths: IntArray, weight: FloatArray) -> FloatArray:
        """How the weighted sum of items grows with each length.

        Args:
            weight: shape (items,).
        """
        share: Any = self.products(lengths) * weight[self.owner]
        each = share[:, None] / np.maximum(np.append(lengths, 1)[self.lengths], 1)
        flat = self.lengths.ravel()
        at = np.where(flat < 0, len(lengths), flat)
        return np.bincount(at, each.ravel(), len(lengths) + 1)[:-1].astype(np.float64)

    def touched(self, item: int) -> IntArray:
        """Indices of the lengths an item depends on."""
        found: IntArray = np.unique(self.lengths[self.owner == item])
        return found[found >= 0]
