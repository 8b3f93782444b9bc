"""Cut the planned channels out of the model, and prove the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.cutting.cut import Cut, cut
from onnxprune.cutting.oracle import Expected, expected
from onnxprune.cutting.proof import Kept, prove
from onnxprune.errors import ToolDefect
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.manager import Rewrite, Rewritten, State
from onnxprune.planning.plan import Plan, drop_rows
from onnxprune.rules import load_rules

# float32 sums reorder when channels go; a wrong channel is off by 1e-2 and more.
ORACLE_LIMIT = 1e-4
# Data of one channel may move past several others: each pass over the graph straightens what
# the one before it made visible.
REORDER_ROUNDS = 4


@dataclass(frozen=True)
class CutChannels(Rewrite):
    """Slice weights, rewire shapes, then prove the wiring and ask the mask oracle."""

    name: ClassVar[str] = "cut-channels"
    needs: ClassVar[tuple[type, ...]] = (Dims, Plan)
    gives: ClassVar[tuple[type, ...]] = (Cut,)

    oracle: bool = True
    """Compare the exact part of the cut with the silenced original on two seeded inputs."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> Rewritten:
        dims, plan = state[Dims], state[Plan]
        exact = exact_part(dims, plan.alive)
        goal = self._expected(state, dims, exact)
        if goal is not None and not np.array_equal(exact, plan.alive):
            self._compare(state, goal, proved_cut(state, dims, ~exact))
            goal = None
        made = proved_cut(state, dims, ~plan.alive)
        if goal is not None:
            self._compare(state, goal, made)
        return Rewritten(made.model, (made,))

    def _expected(self, state: State, dims: Dims, exact: BoolArray) -> Expected | None:
        if not self.oracle or exact.all():
            return None
        shapes = state.subject.sizes.first
        return expected(state.model, dims, ~exact, shapes, custom_ops=self.custom_ops)

    def _compare(self, state: State, goal: Expected, made: Cut) -> None:
        worst = goal.disagreement(made.model)
        if worst is None:
            state.warnings.append("mask oracle skipped: the model has no comparable outputs")
        elif worst > ORACLE_LIMIT:
            raise ToolDefect(
                f"the cut model is off by {worst:.1e} from the silenced original",
                hint="please report this with the model and the options used",
            )


def exact_part(dims: Dims, alive: BoolArray) -> BoolArray:
    """The plan with approximate Dims left whole."""
    kept = alive.copy()
    for dim in dims.dims:
        if not dim.is_exact:
            kept[dim.channels] = True
    return drop_rows(dims, kept)


def proved_cut(state: State, dims: Dims, removed: BoolArray) -> Cut:
    """A cut whose every tie holds, position by position.

    Raises: ToolDefect: one does not; nothing is handed out.
    """
    rules, shapes = load_rules(), state.subject.shapes
    kept = Kept(dims, shapes[0], ~removed[dims.of])
    for _ in range(REORDER_ROUNDS):
        orders = {s: [*kept.orders.get(s, []), *t] for s, t in kept.wanted.items()}
        kept = Kept(dims, shapes[0], kept.alive, {**kept.orders, **orders})
        made = cut(state.model, dims, state.subject.sizes, shapes, removed, rules, kept.orders)
        violations = prove(made.model, made.first, made.second, kept, rules.flow_rule)
        if not kept.wanted:
            break
    if violations or kept.wanted:
        first = violations[0] if violations else None
        raise ToolDefect(
            f"the proof refused the cut: {first.what if first else 'its order does not settle'}",
            where=first.where if first else "",
            hint="please report this with the model and the options used",
        )
    return made
