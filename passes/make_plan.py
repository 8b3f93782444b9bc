"""Choose which channels stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from onnxprune.errors import UsageError, did_you_mean
from onnxprune.identity.dims import Dims
from onnxprune.identity.occurrences import names_of
from onnxprune.manager import Analysis, State
from onnxprune.planning.allocate import ALLOCATORS
from onnxprune.planning.cost import CostModel
from onnxprune.planning.damage import Damage
from onnxprune.planning.plan import Limits, Plan
from onnxprune.planning.planner import Planner
from onnxprune.planning.rounds import Round
from onnxprune.planning.scores import Scores
from onnxprune.rules import load_rules

AUTO = "auto"
Names = dict[int, frozenset[str]]
"""What a pattern may call each Dim, by Dim index."""


@dataclass(frozen=True)
class Planning(Analysis):
    """What passes share that search a plan: the options, and the planner they make."""

    needs: ClassVar[tuple[type, ...]] = (Dims, Scores)

    targets: tuple[tuple[str, float], ...] = ()
    """Cost to keep at most: (macs, params or bytes; share of the original's)."""
    allocate: str = "global"
    """How widths are shared out: uniform, global, curves, or auto: by curves where they are."""
    multiple: int = 0
    """Width multiple; 0 chooses by width."""
    approximate: bool = False
    """Cut Dims under normalisations over channels too."""
    skip: tuple[str, ...] = ()
    """Patterns of Dims, nodes or weights to leave alone."""
    only: tuple[str, ...] = ()
    """Patterns of the only Dims, nodes or weights to cut."""
    keep: tuple[tuple[str, float], ...] = ()
    """(pattern, channels or share to keep)."""

    def planner(
        self,
        state: State,
        scores: Scores,
        damage: Damage | None,
        before: Round | None = None,
        power: float = 1.0,
    ) -> Planner:
        """What searches that plan.

        Raises: UsageError: an option names what is not there.
        """
        dims = state[Dims]
        if self.allocate not in (AUTO, *ALLOCATORS):
            raise UsageError(
                f"no allocator is named `{self.allocate}`",
                hint=did_you_mean(self.allocate, (AUTO, *ALLOCATORS)),
            )
        # Targets are shares of the original, before clean-ups.
        whole = state.start.cost if state.history else None
        shapes, first = state.subject.at_cost, state.subject.shapes[0]
        cost = CostModel(state.model, dims, shapes, first, load_rules(), whole)
        limits = self._limits(state, dims)
        targets = {name: share**power for name, share in limits.targets.items()}
        most = {} if before is None else before.levels
        limits = replace(limits, targets=targets, most=most)
        return Planner(dims, scores.of, cost, limits, damage)

    def _limits(self, state: State, dims: Dims) -> Limits:
        asked = self.skip or self.only or self.keep
        names = names_of(dims, state.model) if asked else {}
        made = names_of(dims, state.model, made=True) if asked else {}
        skip = set(_matching(names, self.skip))
        if self.only:
            meant = {i for pattern in self.only for i in _meant(dims, names, made, pattern)}
            skip |= set(names) - meant
        return Limits(
            targets=dict(self.targets),
            multiple=self.multiple or None,
            approximate=self.approximate,
            fixed=self._fixed(dims, names, made),
            skip=frozenset(skip),
        )

    def _fixed(self, dims: Dims, names: Names, made: Names) -> dict[int, float]:
        """What --keep asks for, by Dim.

        Raises: UsageError: a pattern names Dims that cannot be cut, or asks for nothing.
        """
        fixed: dict[int, float] = {}
        for pattern, want in self.keep:
            hits = _meant(dims, names, made, pattern)
            free = [i for i in hits if dims.dims[i].is_free]
            if not free or want <= 0:
                first = dims.dims[hits[0]]
                raise UsageError(
                    f"`--keep {pattern}={want:g}`: "
                    + ("nothing would be kept" if free else f"Dim `{first.name}` cannot be cut"),
                    where="" if free else first.pinned or "it has one channel, or one width only",
                )
            widest = max(dims.dims[i].size for i in free)
            if want > widest or (want > 1 and want != int(want)):
                raise UsageError(
                    f"`--keep {pattern}={want:g}`: a row has {widest} channels",
                    hint="give a whole number of channels a row, or a share up to 1",
                )
            fixed |= dict.fromkeys(free, want)
        return fixed


@dataclass(frozen=True)
class MakePlan(Planning):
    """Choose the channels that stay, under targets, floors and multiples."""

    name: ClassVar[str] = "make-plan"
    gives: ClassVar[type] = Plan

    def run(self, state: State) -> Plan:
        plan = self.planned(state, state[Scores], state.get(Damage))
        if plan.coarse:
            state.warnings.append(plan.coarse)
        return plan

    def planned(
        self,
        state: State,
        scores: Scores,
        damage: Damage | None,
        before: Round | None = None,
        power: float = 1.0,
    ) -> Plan:
        """The plan for targets raised to a power, within what a round before it keeps."""
        planner = self.planner(state, scores, damage, before, power)
        auto = "curves" if planner.damage.curves else "global"
        return ALLOCATORS[auto if self.allocate == AUTO else self.allocate](planner)


def _meant(dims: Dims, names: Names, made: Names, pattern: str) -> list[int]:
    """Dims of this name; else those that a weight or node of it makes; else that it passes.

    Raises: UsageError: a pattern that names nothing.
    """
    hits = _matching(names, [pattern])
    named = [i for i in hits if fnmatchcase(dims.dims[i].name, pattern)]
    makes = [i for i in hits if any(fnmatchcase(n, pattern) for n in made[i])]
    return named or makes or hits


def _matching(names: Names, patterns: Iterable[str]) -> list[int]:
    """Dims that a pattern names.

    Raises: UsageError: a pattern that names nothing.
    """
    found: list[int] = []
    for pattern in patterns:
        hits = [i for i, own in names.items() if any(fnmatchcase(n, pattern) for n in own)]
        if not hits:
            known = {n for own in names.values() for n in own}
            raise UsageError(
                f"`{pattern}` names no Dim, node or weight",
                hint=did_you_mean(pattern, known) if len(known) < 40 or _near(pattern, known)
                else "`onnxprune inspect MODEL` lists the names",
            )  # fmt: skip
        found += hits
    return found


def _near(pattern: str, known: set[str]) -> bool:
    import difflib

    return bool(difflib.get_close_matches(pattern, known, n=1))
