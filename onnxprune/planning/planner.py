"""Searches the levels that meet the targets, with the exact cost of every plan it looks at.

Every Dim goes down its allowed levels step by step. An allocator says in which order the steps
of all Dims are taken; the fewest steps that meet all targets are found by bisection, and what
room is left is given back to single Dims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, product
from math import prod

import numpy as np

from onnxprune.errors import UsageError, did_you_mean
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.fields import IntArray
from onnxprune.planning.cost import TARGETS, Cost, CostModel
from onnxprune.planning.damage import Damage
from onnxprune.planning.plan import (
    Levels,
    Limits,
    Plan,
    allowed_levels,
    drop_rows,
    fixed_level,
    ranks,
)
from onnxprune.planning.refusal import WORDS, impossible, nothing_counted
from onnxprune.planning.scores import FloatArray

# A target is met closely within this share of it ...
CLOSE = 0.005
# ... and well enough that nobody need be told within this one.
NEAR = 0.1
# Plans tried to use up what room is left, and all plans of a model that has no more than these.
TRIES = 300
Price = Callable[["Planner"], FloatArray]

# Room for the rounding of a share.
SLACK = 1e-12


class Planner:
    """One model's Dims, scores, cost and limits."""

    def __init__(
        self,
        dims: Dims,
        scores: FloatArray,
        cost: CostModel,
        limits: Limits,
        damage: Damage | None = None,
    ) -> None:
        self.dims, self.scores, self.cost, self.limits = dims, scores, cost, limits
        self.damage = damage or Damage()
        self._check_targets()
        self.fixed = {i: fixed_level(dims.dims[i], want) for i, want in limits.fixed.items()}
        self.open = self._allowed()
        self.indices = np.array(list(self.open), np.int64)
        self.top = np.array([len(a) - 1 for a in self.open.values()], np.int64)

    def _check_targets(self) -> None:
        for name, share in self.limits.targets.items():
            if name not in TARGETS:
                raise UsageError(f"no target is named `{name}`", hint=did_you_mean(name, TARGETS))
            if not 0 < share <= 1:
                raise UsageError(
                    f"target `{name}={share:g}` is no share of the original's {WORDS[name]}",
                    hint="give what to keep, above 0 and up to 1: 0.5 keeps half",
                )

    def _allowed(self) -> dict[int, list[int]]:
        """Levels of each Dim that may be cut, by index."""
        skip = self._left_alone()
        return {
            d.index: self._up_to(d.index, allowed_levels(self.dims, d, self.limits.multiple))
            for d in self.dims.free
            if d.index not in skip
            and d.index not in self.fixed
            and (d.is_exact or self.limits.approximate)
        }

    def _up_to(self, index: int, levels: list[int]) -> list[int]:
        most = self.limits.most.get(index, levels[-1])
        return [*(level for level in levels if level < most), most]

    def _left_alone(self) -> set[int]:
        """Dims to skip; a head that goes would take rows of them along, so heads stay too."""
        found = set(self.limits.skip)
        waiting = list(found)
        while waiting:
            dim = self.dims.dims[waiting.pop()]
            above = {int(self.dims.dim_of[p]) for p in dim.parents if p >= 0} - found
            found |= above
            waiting += above
        return found

    # --- one plan ----------------------------------------------------------------------------

    @cached_property
    def _ranks(self) -> IntArray:
        return ranks(self.dims, self.scores)

    @cached_property
    def _base(self) -> IntArray:
        """Channels each part keeps before any step: all, or as fixed."""
        counts = self.cost.lengths.part_size.copy()
        for index, level in self.fixed.items():
            counts[self.parts_of[index]] = self.dims.dims[index].levels[level]
        return counts

    @cached_property
    def parts_of(self) -> list[slice]:
        ends = np.cumsum([0, *(len(d.parts) for d in self.dims.dims)])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @cached_property
    def _packed(self) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """Parts of open Dims, their Dim's place, and where their counts by level stand."""
        parts, owners, starts, strides, flat = [], [], [], [], []
        offset = 0
        for at, (index, levels) in enumerate(self.open.items()):
            table = self.dims.dims[index].levels[levels]
            own = np.arange(self.parts_of[index].start, self.parts_of[index].stop)
            parts.append(own)
            owners.append(np.full(len(own), at))
            starts.append(offset + np.arange(len(own)))
            strides.append(np.full(len(own), len(own)))
            flat.append(table.ravel())
            offset += table.size
        joined = [
            np.concatenate([np.zeros(0, np.int64), *x]).astype(np.int64)
            for x in (parts, owners, starts, strides, flat)
        ]
        return joined[0], joined[1], joined[2], joined[3], joined[4]

    def counts(self, at: IntArray) -> IntArray:
        """Channels each part keeps. Args: at: place of each open Dim in its allowed levels."""
        parts, owners, starts, strides, flat = self._packed
        counts = self._base.copy()
        counts[parts] = flat[starts + at[owners] * strides]
        return counts

    def alive(self, at: IntArray) -> BoolArray:
        """The channels that stay."""
        kept: BoolArray = self._ranks < self.counts(at)[self.cost.lengths.part_of]
        return drop_rows(self.dims, kept) if self.dims.children else kept

    def evaluate(self, at: IntArray) -> Cost:
        """The cost of a plan."""
        return self.cost.evaluate(self.alive(at))

    def plan(self, at: IntArray, coarse: str = "") -> Plan:
        """The plan for these places."""
        alive = self.alive(at)
        places = zip(self.open.items(), at.tolist(), strict=True)
        levels: Levels = self.fixed | {i: allowed[place] for (i, allowed), place in places}
        return Plan(alive, levels, self.cost.evaluate(alive), self.cost.whole, coarse)

    def room(self, cost: Cost) -> float:
        """How far a cost is below the tightest target, as a share of it; negative above."""
        ratios = cost.share(self.cost.whole)
        return min(
            ((share - ratios[n] + SLACK) / share for n, share in self.limits.targets.items()),
            default=0.0,
        )

    # --- the search ----------------------------------------------------------------------------

    @cached_property
    def steps(self) -> tuple[IntArray, IntArray]:
        """Every step down of every open Dim: place of the Dim, place reached in its levels."""
        owner = np.repeat(np.arange(len(self.top)), self.top)
        reached = np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(n - 1, -1, -1) for n in self.top.tolist())]
        )
        return owner, reached.astype(np.int64)

    def ready(self) -> Planner:
        """This planner, or a finer one where only that can meet the targets.

        Raises: BudgetError: even the smallest plan is above a target; says what is in the way.
        """
        for name in self.limits.targets:
            if not getattr(self.cost.whole, name):
                raise nothing_counted(self.cost, name)
        least = self.plan(np.zeros_like(self.top))
        if not self.limits.targets or self.room(least.cost) >= 0:
            return self
        if self.limits.multiple is None:
            return self._finer().ready()
        raise impossible(self.cost, self.limits, self.open, least)

    def least(self) -> Plan:
        """The smallest plan, whatever widths kernels like."""
        work = self._finer() if self.limits.multiple is None else self
        return work.plan(np.zeros_like(work.top))

    def _finer(self) -> Planner:
        """The same without a preference for widths that kernels like."""
        limits = replace(self.limits, multiple=1)
        return Planner(self.dims, self.scores, self.cost, limits, self.damage)

    def fewest(self, keys: FloatArray) -> IntArray:
        """Places after the fewest steps that meet all targets, steps taken by rising key.

        Args:
            keys: shape (steps,); rising along the steps of one Dim.
        """
        owner, _ = self.steps
        order = np.argsort(keys, kind="stable")

        def after(taken: int) -> IntArray:
            down = np.bincount(owner[order[:taken]], minlength=len(self.top))
            return self.top - down.astype(np.int64)

        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self.room(self.evaluate(after(middle))) < 0:
                low = middle + 1
            else:
                high = middle
        return self._return(after(low), order[:low])

    def _return(self, at: IntArray, taken: IntArray) -> IntArray:
        """Undo the latest steps that were not needed: the last one may have won far too much."""
        owner, _ = self.steps
        if not len(taken):
            return at
        rest = owner[taken[owner[taken] != owner[taken[-1]]]][::-1]

        def after(undone: int) -> IntArray:
            return at + np.bincount(rest[:undone], minlength=len(at))

        low, high = 0, len(rest)
        while low < high:
            middle = (low + high + 1) // 2
            if self.room(self.evaluate(after(middle))) < 0:
                high = middle - 1
            else:
                low = middle
        return after(low)

    def settle(self, at: IntArray, price: Price) -> Plan:
        """The plan, with what room is left given back to single Dims, in finer steps if need be.

        Args:
            price: keys of the steps of a planner, as `fewest` takes them.
        """
        at = self._fill(at, price(self))
        if self.room(self.evaluate(at)) <= NEAR:
            return self.plan(at)
        if self.limits.multiple is None:
            fine = self._finer()
            places = zip(self.open.values(), at.tolist(), strict=True)
            levels = [allowed[place] for allowed, place in places]
            finer = zip(fine.open.values(), levels, strict=True)
            return fine.settle(np.array([a.index(v) for a, v in finer], np.int64), price)
        at = self._best_of_all(at)
        return self.plan(at, self._coarse(at))

    def _fill(self, at: IntArray, keys: FloatArray) -> IntArray:
        """Steps back up, the dearest first, while every target still holds."""
        room, first = self.room(self.evaluate(at)), np.cumsum([0, *self.top])[:-1]
        stuck = at == self.top
        for _ in range(TRIES):
            if room <= CLOSE or stuck.all():
                break
            below = np.flatnonzero(~stuck)
            index = below[np.argmax(keys[first[below] + self.top[below] - at[below] - 1])]
            wider = at.copy()
            wider[index] += 1
            left = self.room(self.evaluate(wider))
            if left >= 0:
                at, room = wider, left
            stuck[index] = left < 0 or at[index] == self.top[index]
        return at

    def _best_of_all(self, at: IntArray) -> IntArray:
        """The closest of all plans, where there are few."""
        if prod(n + 1 for n in self.top.tolist()) > TRIES * 4:
            return at
        best, room = at, self.room(self.evaluate(at))
        for places in product(*(range(n + 1) for n in self.top.tolist())):
            other = np.array(places, np.int64)
            left = self.room(self.evaluate(other))
            if 0 <= left < room - SLACK:
                best, room = other, left
        return best

    def _coarse(self, at: IntArray) -> str:
        """Which Dim's next step overshoots by least; empty where a target is met well enough."""
        now = self.evaluate(at)
        if self.room(now) <= NEAR:
            return ""
        found = []
        for index in np.flatnonzero(at < self.top)[:TRIES].tolist():
            wider = at.copy()
            wider[index] += 1
            cost = self.evaluate(wider)
            found.append((-self.room(cost), index, cost))
        if not found:
            return ""
        _, index, cost = min(found, key=lambda x: x[:2])
        name = min(
            self.limits.targets,
            key=lambda n: self.limits.targets[n] - cost.share(self.cost.whole)[n],
        )
        dim = self.dims.dims[int(self.indices[index])]
        widths = dim.levels.max(axis=1)[self.open[dim.index]]
        share = now.share(self.cost.whole)[name]
        return (
            f"the plan keeps {share:.1%} of {WORDS[name]}, the closest below "
            f"{self.limits.targets[name]:.0%}: with Dim `{dim.name}` at {widths[at[index] + 1]} "
            f"instead of {widths[at[index]]} of {dim.size} channels it would keep "
            f"{cost.share(self.cost.whole)[name]:.1%}"
        )
