"""Make a plan in rounds: cut a part, repair, measure again what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxprune.cutting.cut import Cut
from onnxprune.damage.curves import Study
from onnxprune.errors import ProgressError, PruneError
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.manager import State
from onnxprune.model.graph import Model
from onnxprune.passes.make_plan import AUTO, MakePlan
from onnxprune.planning.damage import Damage
from onnxprune.planning.plan import Plan, select
from onnxprune.planning.rounds import Round, RoundLog
from onnxprune.planning.scores import Scores
from onnxprune.readers.find import find_cut_views, find_views
from onnxprune.readers.folds import folds
from onnxprune.readers.view import View
from onnxprune.records.curvefile import CurveFile
from onnxprune.repair.choose import Trials
from onnxprune.repair.copies import uncoupled

# Plans are compared where that takes about a minute: MACs of the model times samples. A part of
# the samples would not do: on 128 of 257 a plan won that lost 1.3 points more than the best.
MOST_MACS = 1e11
# Plans are not tried whose widths do so many times the damage of the curves' own: uniform widths
# that won did 1.2 times (tests/bench/research.md).
HOPELESS = 2.0


@dataclass(frozen=True)
class RefinePlan(MakePlan):
    """Choose the channels that stay in rounds: after each the model is cut and repaired, and what
    more removal costs is measured on it."""

    name: ClassVar[str] = "refine-plan"
    needs: ClassVar[tuple[type, ...]] = (Dims, Scores, Damage)
    gives: ClassVar[type] = Plan

    rounds: int = 1
    """After each but the last the model is cut, repaired and measured again."""
    candidates: bool = True
    """Try plans of other allocators and orders too, and take what costs the outputs least."""
    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""
    copies: bool = False
    """Plans are tried with copies of small shared weights, as `repair-readers` would make them."""

    def run(self, state: State) -> Plan:
        damage = state[Damage]
        first = scores = damage.scores(state[Dims], state[Scores])
        log, plan = state.past_or_none(RoundLog) or RoundLog(), None
        rounds = self.rounds if damage.curves else 1
        last = log.known if log.known is None else _checked(log.known, state[Dims], rounds)
        for number in range(1 if last is None else last.number + 1, rounds + 1):
            if last is not None:
                scores, damage = self._again(state, last)
            plan = self.planned(state, scores, damage, last, number / rounds)
            last = Round(number, plan.alive, plan.levels, scores.of)
            if number < rounds:
                log.after_each(last)
        assert plan is not None, "the last round is never known"
        if damage.curves and rounds == 1 and self._may_choose(state):
            plan = self._chosen(state, first, damage, plan)
        if plan.coarse:
            state.warnings.append(plan.coarse)
        return plan

    def _may_choose(self, state: State) -> bool:
        """True where nobody asked for an allocator; a plan from saved curves is taken as it is."""
        is_free = self.candidates and self.allocate == AUTO and bool(self.targets)
        if not is_free or state.calibration is None or state.past_or_none(CurveFile) is not None:
            return False
        samples = min(sum(part.n for part in state.calibration), self.samples)
        return bool(state.subject.cost.macs * samples <= MOST_MACS)

    def _chosen(self, state: State, scores: Scores, damage: Damage, plan: Plan) -> Plan:
        """The best of several plans, by what the outputs lose on samples held out."""
        base = state[Scores]
        plans: dict[str, Plan | None] = {
            "curves": plan,
            "curves ranked by the score": self._ranked(state, base, plan),
            "curves by the next readers": self._ahead(state, base),
            "global": replace(self, allocate="global").planned(state, base, None),
            "uniform": replace(self, allocate="uniform").planned(state, scores, None),
        }
        alive = {name: one.alive for name, one in plans.items() if one is not None}
        totals = {name: damage.total(state[Dims], own) for name, own in alive.items()}
        likely = {n: own for n, own in alive.items() if totals[n] <= HOPELESS * totals["curves"]}
        try:
            best, errors = self._trials(state).best(likely)
        except PruneError as error:
            state.warnings.append(f"plans were not compared: {error.what}")
            return plan
        return replace(plans[best] or plan, tried=errors, taken=best)

    def _trials(self, state: State) -> Trials:
        fit, decide = state.calibration
        parts = folds(fit, decide, self.samples)
        return Trials(state.subject, state[Dims], parts, state.seed, self.custom_ops, self.copies)

    def _ranked(self, state: State, scores: Scores, plan: Plan) -> Plan | None:
        """The widths of a plan with other channels; None where heads that go make it too dear."""
        planner = self.planner(state, scores, None)
        alive = select(state[Dims], scores.of, plan.levels)
        cost = planner.cost.evaluate(alive)
        return replace(plan, alive=alive, cost=cost) if planner.room(cost) >= 0 else None

    def _ahead(self, state: State, scores: Scores) -> Plan:
        """A plan by curves of errors as the next readers weigh them."""
        folds = self._trials(state).folds
        model = uncoupled(state.model) if self.copies else state.model
        study = Study(model, state.subject.shapes[0], state[Dims], folds, state.seed,
                      self.custom_ops, is_ahead=True, workers=state.workers)  # fmt: skip
        damage = Damage.of_each(study.run())
        return self.planned(state, damage.scores(state[Dims], scores), damage)

    def _again(self, state: State, plan: Round) -> tuple[Scores, Damage]:
        """Scores and damage in the model that a round leaves, repaired."""
        dims, trials = state[Dims], self._trials(state)
        made, live = trials.made(plan.alive)
        views = _known(state, dims, made, plan.alive[dims.of], live)
        study = Study(live, made.first, dims, trials.folds, state.seed, self.custom_ops, plan.alive,
                      views, workers=state.workers)  # fmt: skip
        damage = Damage.of_each(study.run())
        of = damage.scores(dims, Scores(plan.scores)).of
        of[~plan.alive] = -1.0
        return Scores(of), damage


def _checked(known: Round, dims: Dims, rounds: int) -> Round:
    """A round from a file.

    Raises: ProgressError: it is none of this model.
    """
    fits = len(known.alive) == dims.count and all(
        index < len(dims.dims) and level < len(dims.dims[index].levels)
        for index, level in known.levels.items()
    )
    if not fits or not 0 < known.number < rounds:
        raise ProgressError("the round that was found is none of this model",
                            hint="start anew, without --resume")  # fmt: skip
    return known


def _known(state: State, dims: Dims, made: Cut, alive: BoolArray, live: Model) -> dict[str, View]:
    """Views of a repaired cut whose inputs are known by their identities in the original."""
    origins = find_views(state.model, state.subject.shapes[0], dims.ties)
    sliced, views = (
        find_cut_views(model, made.first, dims.ties, origins, alive) for model in (made.model, live)
    )
    found = {}
    for key, view in views.items():
        if key not in sliced:
            continue
        origin = origins[key]
        rows = np.where(origin.rows >= 0, alive[origin.rows], True)
        columns = np.where(origin.columns >= 0, alive[origin.columns], True)
        expected = origin.weights[np.ix_(rows, columns)]
        if expected.shape == sliced[key].weights.shape and np.array_equal(
            expected, sliced[key].weights
        ):
            found[key] = replace(view, rows=origin.rows[rows], columns=origin.columns[columns])
    return found
