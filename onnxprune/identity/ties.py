"""What a walk over a graph finds out: sources of identities, ties, pins, readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxprune.identity.fields import Field, IntArray

Slot = tuple[str, int | str]
"""Where a source stands: (node key, input index) for a weight's use, (node key, word) else."""


Axes = tuple[tuple[int, ...], int]
"""Axes of a field, and the one that thins."""

Blocks = list[tuple[int, int, int, int]]
"""Axes that a reshape maps onto each other: (in from, in to, out from, out to)."""


@dataclass(frozen=True, eq=False)
class Source:
    """Identities made afresh: one use of an initializer, or positions an operator adds."""

    fields: tuple[Field, ...]
    initializer: str = ""


@dataclass(frozen=True, eq=False)
class Pin:
    """Identities that may not go, and why, in the user's words."""

    ids: IntArray
    reason: str


@dataclass(frozen=True, eq=False)
class Reader:
    """A sum over identities: the node's input `slot` is summed along the axes of `field`."""

    key: str
    slot: int
    field: Field
    beside: bool = False
    """True for what must be silenced too: a bias that is added before the sum."""
    alone: bool = False
    """True for a weight that sums over what the node keeps inside: a recurrent state."""


@dataclass
class Ties:
    """Everything a walk found out about identities."""

    count: int = 0
    pairs: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    links: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    """(parent, child): a parent is gone exactly if all its children are."""
    joints: list[IntArray] = field(default_factory=list)
    """Shape (..., positions): rows that keep equal counts, or vanish whole."""
    weaves: list[IntArray] = field(default_factory=list)
    """Shape (rows, positions): rows laid into one another, position by position."""
    steps: list[list[IntArray]] = field(default_factory=list)
    """Parts of rows, in order: each keeps as many as the one before it or one less, and the
    last no less than one below the first."""
    parts: list[IntArray] = field(default_factory=list)
    """Identities that a tensor of their own holds: some of each must stay."""
    pins: list[Pin] = field(default_factory=list)
    approximate: list[Pin] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    sources: dict[Slot, Source] = field(default_factory=dict)
    fields: dict[str, tuple[Field, ...]] = field(default_factory=dict)
    """Fields of every computed value."""
    settled: dict[str, list[Axes | None]] = field(default_factory=dict)
    """Axes along which moved fields vary, in the order of the moved fields."""
    blocks: dict[str, Blocks] = field(default_factory=dict)
    """Which axes each reshape maps onto which."""
    unknown: list[str] = field(default_factory=list)
    """Nodes without a rule."""


@dataclass(frozen=True)
class Violation:
    """A tie that does not hold in a cut graph."""

    where: str
    what: str


class Checker(Protocol):
    """What the proof knows about the original: see `proof`."""

    def source(self, slot: Slot) -> tuple[Field, ...] | None: ...
    def same(self, a: IntArray, b: IntArray) -> bool: ...
    def holds(self, name: str, fields: Sequence[Field]) -> bool: ...
    def linked(self, parent: IntArray, child: IntArray) -> bool: ...
    def axes(self, name: str) -> list[Axes | None] | None: ...
    def blocks(self, name: str) -> Blocks | None: ...
    def order(self, slot: Slot, weight: Field, data: Field) -> IntArray | None: ...
    def reorder(self, slot: Slot, take: Field, axis: int) -> None: ...
    def follow(self, a: IntArray, b: IntArray) -> None: ...
    def follow_rows(self, parent: IntArray, child: IntArray) -> None: ...
    def spans(self, name: str, axis: int) -> bool | None: ...
