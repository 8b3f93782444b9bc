"""Choose which channels stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from onnxprune.cost import CostModel
from onnxprune.dims import Dims
from onnxprune.errors import UsageError, did_you_mean
from onnxprune.manager import Analysis, State
from onnxprune.occurrences import names_of
from onnxprune.plan import ALLOCATORS, Limits, Plan, Planner
from onnxprune.rules import load_rules
from onnxprune.scores import Scores


@dataclass(frozen=True)
class MakePlan(Analysis):
    """Choose the channels that stay, under targets, floors and multiples."""

    name: ClassVar[str] = "make-plan"
    needs: ClassVar[tuple[type, ...]] = (Dims, Scores)
    gives: ClassVar[type] = Plan

    targets: tuple[tuple[str, float], ...] = ()
    """Cost to keep at most: (macs, params or bytes; share of the original's)."""
    allocate: str = "uniform"
    """How widths are shared out: uniform or global."""
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

    def run(self, state: State) -> Plan:
        dims = state[Dims]
        if self.allocate not in ALLOCATORS:
            raise UsageError(
                f"no allocator is named `{self.allocate}`",
                hint=did_you_mean(self.allocate, ALLOCATORS),
            )
        cost = CostModel(
            state.model, dims, state.subject.at_cost, state.subject.shapes[0], load_rules()
        )
        planner = Planner(dims, state[Scores].of, cost, self._limits(state, dims))
        return ALLOCATORS[self.allocate](planner)

    def _limits(self, state: State, dims: Dims) -> Limits:
        names = names_of(dims, state.model)
        skip = set(_matching(names, self.skip))
        if self.only:
            skip |= set(names) - set(_matching(names, self.only))
        fixed = {}
        for pattern, want in self.keep:
            for index in _matching(names, [pattern]):
                if not dims.dims[index].is_free:
                    raise UsageError(
                        f"`--keep {pattern}={want:g}`: Dim `{dims.dims[index].name}` cannot be cut",
                        where=dims.dims[index].pinned,
                    )
                fixed[index] = want
        return Limits(
            targets=dict(self.targets),
            multiple=self.multiple or None,
            approximate=self.approximate,
            fixed=fixed,
            skip=frozenset(skip),
        )


def _matching(names: dict[int, frozenset[str]], patterns: Iterable[str]) -> list[int]:
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
