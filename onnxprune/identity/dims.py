"""Joins identities into channels, channels into Dims, and finds which counts Dims may keep.

Channels are the connected components of equality. Channels that occur alike in every source
(same weights, same axes, same multiplicity) are interchangeable: they form a *part*; parts that
a balance ties to each other's counts form one `Dim` with one list of feasible widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.identity.balance import feasible_levels
from onnxprune.identity.channels import (
    LEVELS,
    Reasons,
    components,
    hold_across,
    hold_parents,
    join,
    reasons,
)
from onnxprune.identity.fields import IntArray
from onnxprune.identity.ties import Slot, Ties

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Dim:
    """Channels alike in every field: what a plan gives a width."""

    index: int
    name: str
    parts: tuple[IntArray, ...]
    """Channels of each part, ascending."""
    levels: IntArray
    """Shape (levels, parts): feasible kept counts, ascending; the last keeps all."""
    parents: tuple[int, ...]
    """For each part the channel (a head, a group) whose row it is; -1 for none."""
    pinned: str = ""
    """Why nothing may go; empty for a free Dim."""
    approximate: str = ""
    """Why removing is not zeroing; empty for an exact Dim."""

    @property
    def rows(self) -> int:
        """Parts that keep equal counts."""
        return len(self.parts)

    @property
    def size(self) -> int:
        """Channels in a row (of the widest part)."""
        return max(len(p) for p in self.parts)

    @cached_property
    def channels(self) -> IntArray:
        """All channels, part by part."""
        return np.concatenate(self.parts)

    @property
    def is_free(self) -> bool:
        return not self.pinned and len(self.levels) > 1

    @property
    def is_exact(self) -> bool:
        return not self.approximate


@dataclass(frozen=True, eq=False)
class Dims:
    """All channels of a model and the Dims they form."""

    of: IntArray
    """Shape (identities,): the channel of each identity."""
    count: int
    dims: tuple[Dim, ...]
    parent: IntArray
    """Shape (channels,): the channel whose row this one is part of; -1 for none."""
    ties: Ties
    links: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    @cached_property
    def free(self) -> tuple[Dim, ...]:
        """Dims that may be cut."""
        return tuple(d for d in self.dims if d.is_free)

    @cached_property
    def children(self) -> dict[int, IntArray]:
        """Channels of each parent's rows."""
        if not self.count:
            return {}
        order = np.argsort(self.parent, kind="stable")
        values, starts = np.unique(self.parent[order], return_index=True)
        groups = np.split(order, starts[1:])
        return {int(v): g for v, g in zip(values, groups, strict=True) if v >= 0}

    @cached_property
    def dim_of(self) -> IntArray:
        """Shape (channels,): index of each channel's Dim."""
        found = np.full(self.count, -1, np.int64)
        for dim in self.dims:
            found[dim.channels] = dim.index
        return found


def find_dims(ties: Ties) -> Dims:
    """Channels and Dims from everything a walk found out."""
    of, links = join(ties)
    count = int(of.max(initial=-1)) + 1
    parent = np.full(count, -1, np.int64)
    parent[links[:, 1]] = links[:, 0]
    pins = reasons(of, [(p.ids, p.reason) for p in ties.pins], count)
    rows, membership = _balances(ties, of, count)
    for table in rows:
        hold_across(pins, parent, table)
    hold_parents(pins, links)
    soft = reasons(of, [(p.ids, p.reason) for p in ties.approximate], count)
    hold_parents(soft, links)  # what goes with a row that is approximate is no less so
    likeness = _likeness(ties, of, parent)
    likeness += _mix(1, np.array([p >= 0 for p in pins[0]], np.uint64))
    likeness += _mix(2, np.array([p >= 0 for p in soft[0]], np.uint64))
    steps = _steps(ties, of, membership)
    part_of = _group(np.stack([likeness, membership], axis=1)) if count else of
    family_of = _families(part_of, rows)
    dims = _build(ties, of, part_of, family_of, parent, pins, soft, rows, steps)
    pairs = frozenset(map(tuple, links.tolist()))
    return Dims(of, count, dims, parent, ties, pairs)


def _mix(salt: int, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash (splitmix64) whose sums tell multisets apart."""
    with np.errstate(over="ignore"):
        z = values + np.uint64((salt * 0x9E3779B97F4A7C15) & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return out


def _likeness(
    ties: Ties, of: IntArray, parent: IntArray
) -> npt.NDArray[np.uint64]:
    """A hash per channel of where it occurs: equal for interchangeable channels."""
    total = np.zeros(len(parent), np.uint64)
    places = [of[one.ids.ravel()] for source in ties.sources.values() for one in source.fields]
    for salt, channels in enumerate([*places, *_parts(ties, of, parent)], start=11):
        found, times = np.unique(channels, return_counts=True)
        total[found] += _mix(salt, times.astype(np.uint64))
    return total


def _parts(ties: Ties, of: IntArray, parent: IntArray) -> Iterator[IntArray]:
    """Channels of which some must stay: those of a tensor cut out of another, and their heads."""
    for ids in ties.parts:
        channels = of[ids]
        for _ in range(LEVELS):
            yield channels
            channels = np.unique(parent[channels])
            if channels[0] < 0:
                break


def _balances(
    ties: Ties, of: IntArray, count: int
) -> tuple[list[IntArray], npt.NDArray[np.uint64]]:
    """Distinct balances (channels of rows, shape (rows, positions)) and a hash of membership."""
    membership = np.zeros(count, np.uint64)
    seen: dict[bytes, None] = {}
    kept: list[IntArray] = []
    for ids in ties.joints:
        if _is_one_axis(of[ids]):
            continue
        rows = np.unique(np.sort(of[ids.reshape(-1, ids.shape[-1])], axis=1), axis=0)
        key = rows.tobytes() + str(rows.shape).encode()
        if len(rows) == 1 or key in seen:
            continue
        seen[key] = None
        kept.append(rows)
        number = np.repeat(np.arange(len(rows)), rows.shape[1])
        cells, times = np.unique(
            np.stack([number, rows.ravel()], axis=1), axis=0, return_counts=True
        )
        salted = cells[:, 0].astype(np.uint64) * np.uint64(1 << 20) + times.astype(np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(membership, cells[:, 1], _mix(len(kept) + 7, salted))
    return kept, membership


def _is_one_axis(channels: IntArray) -> bool:
    """True for rows that are a channel each: they go whole, whatever the others do."""
    varies = [a for a, n in enumerate(channels.shape) if (np.diff(channels, axis=a) != 0).any()]
    return len(varies) < 2 and channels.ndim - 1 not in varies


def _steps(
    ties: Ties, of: IntArray, membership: npt.NDArray[np.uint64]
) -> list[list[IntArray]]:
    """Channels of the parts of woven rows; who is in which is mixed into the hash."""
    found = [[of[ids] for ids in rows] for rows in ties.steps]
    for number, rows in enumerate(found):
        for at, channels in enumerate(rows):
            salt = np.full(len(channels), at, np.uint64)
            with np.errstate(over="ignore"):
                np.add.at(membership, channels, _mix(-2 - number, salt))
    return found


def _group(keys: npt.NDArray[np.uint64]) -> IntArray:
    inverse: IntArray = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    return inverse


def _families(part_of: IntArray, rows: list[IntArray]) -> IntArray:
    """Family of each part: parts whose counts a balance ties together."""
    parts = int(part_of.max(initial=-1)) + 1
    pairs = []
    for table in rows:
        members = np.unique(part_of[table.ravel()])
        pairs.append(np.stack([members, np.full_like(members, members[0])]))
    return components(parts, pairs)


def _build(
    ties: Ties,
    of: IntArray,
    part_of: IntArray,
    family_of: IntArray,
    parent: IntArray,
    pins: Reasons,
    soft: Reasons,
    rows: list[IntArray],
    steps: list[list[IntArray]],
) -> tuple[Dim, ...]:
    order = np.argsort(part_of, kind="stable")
    starts = np.unique(part_of[order], return_index=True)[1]
    members = np.split(order, starts[1:]) if len(order) else []
    families: dict[int, list[IntArray]] = {}
    for part, channels in enumerate(members):
        families.setdefault(int(family_of[part]), []).append(np.sort(channels))
    tables: dict[int, list[IntArray]] = {}
    for table in rows:
        tables.setdefault(int(family_of[part_of[table.flat[0]]]), []).append(table)
    ordered = sorted(families.values(), key=lambda parts: min(int(p[0]) for p in parts))
    falling: dict[int, list[list[IntArray]]] = {}
    for step in steps:
        family = next(int(family_of[part_of[r[0]]]) for r in step if len(r))
        falling.setdefault(family, []).append(step)
    names = _names(ties, of, ordered)
    return tuple(
        Dim(
            index=i,
            name=names[i],
            parts=(parts := tuple(sorted(found, key=lambda p: int(p[0])))),
            levels=_levels(parts, tables.get(at := int(family_of[part_of[parts[0][0]]]), []),
                           falling.get(at, [])),
            parents=tuple(int(parent[p[0]]) for p in parts),
            pinned=_text(pins, parts),
            approximate=_text(soft, parts),
        )
        for i, found in enumerate(ordered)
    )


def _levels(
    parts: tuple[IntArray, ...], tables: list[IntArray], steps: list[list[IntArray]]
) -> IntArray:
    """Feasible kept counts of the parts of one Dim."""
    sizes = [len(p) for p in parts]
    if len(parts) == 1:
        return np.arange(1, sizes[0] + 1)[:, None]
    number = {int(c): i for i, p in enumerate(parts) for c in p}

    def weights(table: Sequence[IntArray]) -> npt.NDArray[np.float64]:
        """How much each part counts in each row."""
        found = np.zeros((len(table), len(parts)))
        for at, row in enumerate(table):
            own, times = np.unique([number[int(c)] for c in row], return_counts=True)
            found[at, own.astype(np.int64)] = times / np.array(sizes)[own.astype(np.int64)]
        return found

    return feasible_levels(
        sizes, [weights(list(t)) for t in tables], [weights(step) for step in steps]
    )


def _text(marks: Reasons, parts: tuple[IntArray, ...]) -> str:
    for part in parts:
        marked = marks[0][part]
        if (marked >= 0).any():
            return marks[1][int(marked[marked >= 0][0])]
    return ""


def _names(ties: Ties, of: IntArray, families: list[list[IntArray]]) -> list[str]:
    """A name for each Dim: the largest weight that makes it, else the first node it is seen at."""
    firsts = np.array([int(parts[0][0]) for parts in families], np.int64)
    best = _best_sources(ties, of, firsts)
    bases = [best.get(int(channel), (0, f"dim {int(channel)}")) for channel in firsts]
    taken: dict[str, int] = {}
    names = [""] * len(bases)
    # A weight's plain name is the Dim's that it makes, not the one's that it sums over.
    for at in sorted(range(len(bases)), key=lambda i: -bases[i][0]):
        base = bases[at][1]
        taken[base] = taken.get(base, 0) + 1
        names[at] = base if taken[base] == 1 else f"{base}#{taken[base]}"
    return names


def _best_sources(ties: Ties, of: IntArray, firsts: IntArray) -> dict[int, tuple[int, str]]:
    """For some channels: (how well it names them, name) of the best source they occur in."""
    wanted = np.zeros(int(of.max(initial=-1)) + 1, np.bool_)
    wanted[firsts] = True
    read = {(r.key, r.slot, r.field.axes) for r in ties.readers}
    best: dict[int, tuple[int, str]] = {}
    for slot, source in ties.sources.items():
        for one in source.fields:
            makes = bool(source.initializer) and (*slot, one.axes) not in read
            kind = (2 if makes and len(source.fields) > 1 else 1) if source.initializer else 0
            channels = of[one.ids.ravel()]
            for channel in np.unique(channels[wanted[channels]]):
                if best.get(int(channel), (-1, ""))[0] < kind:
                    best[int(channel)] = (kind, _source_name(slot, source.initializer))
    return best


def _source_name(slot: Slot, initializer: str) -> str:
    """A weight's name; rows of a contraction (heads, groups) by what it makes."""
    key, word = slot
    is_row = str(word).startswith("rows")
    return initializer or (f"rows of {key}" if is_row else f"{key} {word}")
