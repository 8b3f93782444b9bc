"""Which channels stay, under budgets, floors and width multiples.

A plan gives each Dim one of its feasible levels; within a part the best-scored channels stay.
Allocators only choose levels. All of them search with the exact cost of `CostModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.cost import Cost, CostModel
from onnxprune.dims import BoolArray, Dim, Dims
from onnxprune.errors import BudgetError
from onnxprune.fields import IntArray
from onnxprune.scores import FloatArray

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
    """Width multiple; None chooses by width."""
    approximate: bool = False
    """Cut approximate Dims too."""
    fixed: Mapping[int, float] = field(default_factory=dict)
    """Dim index -> channels a row keeps (above 1) or share of them."""
    skip: frozenset[int] = frozenset()
    """Dims left alone."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The channels that stay."""

    alive: BoolArray
    """Shape (channels,)."""
    levels: Levels
    cost: Cost
    whole: Cost

    @property
    def ratios(self) -> dict[str, float]:
        return self.cost.share(self.whole)


def allowed_levels(dim: Dim, limits: Limits) -> list[int]:
    """Indices of the levels a Dim may take: floor and multiple respected; the last always."""
    last = len(dim.levels) - 1
    widths = dim.levels.max(axis=1)
    multiple = limits.multiple or auto_multiple(dim)
    if dim.size < 2 * multiple:
        multiple = 1
    floor = max(int(np.ceil(dim.size * FLOOR_SHARE)), multiple)
    found = [i for i in range(last) if widths[i] >= floor and widths[i] % multiple == 0]
    return [*found, last]


def auto_multiple(dim: Dim) -> int:
    """The multiple a kernel likes, where the Dim is wide enough to afford it."""
    if dim.rows > 1:
        return 1
    return next((m for width, m in AUTO_MULTIPLES if dim.size >= width), 1)


def select(dims: Dims, scores: FloatArray, levels: Levels) -> BoolArray:
    """The channels that stay: the best of each part, ties to the lower index."""
    alive = np.ones(dims.count, np.bool_)
    for index, level in levels.items():
        dim = dims.dims[index]
        for part, count in zip(dim.parts, dim.levels[level], strict=True):
            if count < len(part):
                order = np.argsort(-scores[part], kind="stable")
                alive[part[order[count:]]] = False
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


class Planner:
    """Finds levels that meet the limits; `choose` levels for a pressure between 0 and 1."""

    def __init__(self, dims: Dims, scores: FloatArray, cost: CostModel, limits: Limits) -> None:
        self.dims, self.scores, self.cost, self.limits = dims, scores, cost, limits
        self.fixed = {i: fixed_level(dims.dims[i], want) for i, want in limits.fixed.items()}
        self.open = {
            d.index: allowed_levels(d, limits)
            for d in dims.free
            if d.index not in limits.skip
            and d.index not in self.fixed
            and (d.is_exact or limits.approximate)
        }

    def plan(self, levels: Levels) -> Plan:
        """The plan for these levels."""
        alive = select(self.dims, self.scores, self.fixed | levels)
        return Plan(alive, self.fixed | levels, self.cost.evaluate(alive), self.cost.whole)

    def fits(self, plan: Plan) -> bool:
        """True where every target holds."""
        ratios = plan.ratios
        return all(ratios[name] <= share + 1e-12 for name, share in self.limits.targets.items())

    def search(self, choose: Callable[[float], Levels]) -> Plan:
        """The lightest pressure that meets all targets, then widened where room is left.

        Args:
            choose: levels for a pressure; 0 keeps all, 1 is the floor.
        Raises: BudgetError: the floor is above a target.
        """
        if not self.limits.targets:
            return self.plan(choose(0.0))
        least = self.plan(choose(1.0))
        if not self.fits(least):
            raise self._impossible(least)
        low, high, best = 0.0, 1.0, least
        for _ in range(24):
            middle = (low + high) / 2
            plan = self.plan(choose(middle))
            if self.fits(plan):
                high, best = middle, plan
            else:
                low = middle
        return self.widen(best)

    def widen(self, plan: Plan) -> Plan:
        """Give single Dims a step back while every target still holds."""
        if plan is None or self.close(plan):
            return plan
        order = sorted(self.open, key=lambda i: (self._share(plan, i), i))
        for index in order:
            allowed = self.open[index]
            at = allowed.index(plan.levels[index])
            for level in allowed[at + 1 :]:
                wider = self.plan(self._open_levels(plan) | {index: level})
                if not self.fits(wider):
                    break
                plan = wider
                if self.close(plan):
                    return plan
        return plan

    def close(self, plan: Plan) -> bool:
        """True where some target is met almost exactly."""
        ratios = plan.ratios
        return any(share - ratios[n] < 0.005 * share for n, share in self.limits.targets.items())

    def _open_levels(self, plan: Plan) -> Levels:
        return {i: v for i, v in plan.levels.items() if i in self.open}

    def _share(self, plan: Plan, index: int) -> float:
        dim = self.dims.dims[index]
        return float(dim.levels[plan.levels[index]].sum() / dim.levels[-1].sum())

    def _impossible(self, least: Plan) -> BudgetError:
        ratios = least.ratios
        name = max(self.limits.targets, key=lambda n: ratios[n] - self.limits.targets[n])
        held = [d for d in self.dims.dims if d.pinned and len(d.channels) > 1][:3]
        soft = [d for d in self.dims.free if not d.is_exact and not self.limits.approximate]
        why = "; ".join(f"`{d.name}`: {d.pinned}" for d in held)
        hint = f"raise the budget to {ratios[name]:.2f}"
        if soft:
            hint += f", or allow the {len(soft)} approximate Dims with --approximate"
        return BudgetError(
            f"cannot keep {self.limits.targets[name]:.0%} of {name}: the smallest plan keeps "
            f"{ratios[name]:.1%}",
            where=f"{len(self.dims.dims) - len(self.dims.free)} of {len(self.dims.dims)} Dims "
            f"cannot be cut" + (f" ({why})" if why else ""),
            hint=hint,
        )


def fixed_level(dim: Dim, want: float) -> int:
    """The level nearest below a wish: channels of a row, or a share of them up to 1."""
    widths = dim.levels.max(axis=1)
    goal = want * dim.size if want <= 1 else want
    below = np.flatnonzero(widths <= goal + 1e-9)
    return int(below[-1]) if len(below) else 0


def uniform(planner: Planner) -> Plan:
    """The same share of every Dim."""

    def choose(pressure: float) -> Levels:
        levels = {}
        for index, allowed in planner.open.items():
            dim = planner.dims.dims[index]
            sums = dim.levels[allowed].sum(axis=1)
            goal = (1 - pressure) * sums[-1] + pressure * sums[0]
            levels[index] = allowed[int(np.searchsorted(sums, goal + 1e-9, side="right")) - 1]
        return levels

    return planner.search(choose)


def global_ranking(planner: Planner) -> Plan:
    """One ranking over all Dims: the least score lost per MAC won goes first.

    Scores are divided by their mean over the Dim, so that they say which share of the Dim's
    function is lost; a step takes a Dim from one allowed level to the next below.
    """
    steps = _steps(planner)
    order = np.argsort([loss for loss, _, _ in steps], kind="stable")

    def choose(pressure: float) -> Levels:
        levels = {i: allowed[-1] for i, allowed in planner.open.items()}
        for at in order[: round(pressure * len(order))]:
            _, index, level = steps[at]
            levels[index] = min(levels[index], level)
        return levels

    return planner.search(choose)


def _steps(planner: Planner) -> list[tuple[float, int, int]]:
    """(loss per MAC won, Dim, level reached) of every step down; rising within a Dim."""
    full = np.ones(planner.dims.count, np.bool_)
    whole = planner.cost.whole.macs
    steps: list[tuple[float, int, int]] = []
    for index, allowed in planner.open.items():
        dim = planner.dims.dims[index]
        lost = _losses(dim, planner.scores, allowed)
        if len(allowed) < 2:
            continue
        half = planner.cost.evaluate(select(planner.dims, planner.scores, {index: allowed[0]}))
        won = max(whole - half.macs, 1) / max(1, len(dim.channels) - dim.levels[allowed[0]].sum())
        worst = 0.0
        for at in range(len(allowed) - 2, -1, -1):
            gone = dim.levels[allowed[at + 1]].sum() - dim.levels[allowed[at]].sum()
            worst = max(worst, (lost[at] - lost[at + 1]) / max(gone, 1) / won)
            steps.append((worst, index, allowed[at]))
    assert full.all()
    return steps


def _losses(dim: Dim, scores: FloatArray, allowed: Sequence[int]) -> FloatArray:
    """Normalised score lost at each allowed level."""
    total = np.zeros(len(allowed))
    mean = max(float(scores[dim.channels].mean()), 1e-30)
    for number, part in enumerate(dim.parts):
        rising = np.concatenate([[0.0], np.cumsum(np.sort(scores[part]))])
        gone: IntArray = len(part) - dim.levels[list(allowed), number]
        total += rising[gone] / mean
    return total


ALLOCATORS: dict[str, Callable[[Planner], Plan]] = {
    "uniform": uniform,
    "global": global_ranking,
}
