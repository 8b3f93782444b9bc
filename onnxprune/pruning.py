"""What a prune is made of: its options, its passes, its record and its check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune import opening
from onnxprune.cutting.cut import Cut
from onnxprune.errors import BudgetError, ToolDefect, UsageError
from onnxprune.identity.dims import Dims
from onnxprune.manager import AnyPass, PassManager, State, spec
from onnxprune.normal.normalize import Normalized
from onnxprune.passes.make_plan import MakePlan
from onnxprune.planning.damage import Damage
from onnxprune.planning.plan import Plan
from onnxprune.planning.rounds import RoundLog
from onnxprune.progress import Store, key_of
from onnxprune.recipe import (
    PruneOptions,
    VerifyOptions,
    check_comparison,
    check_measures,
    check_options,
    plan_passes,
    prune_passes,
    verify_passes,
)
from onnxprune.records import planfile
from onnxprune.records.curvefile import CurveFile
from onnxprune.records.planfile import PlanFile
from onnxprune.search import Search


@dataclass(frozen=True)
class Run:
    """A prune, apart from the state it works on."""

    chosen: PruneOptions
    comparison: VerifyOptions
    has_data: bool
    dry_run: bool
    store: Store | None = None
    """Where it goes on from when it is interrupted."""

    def stand_in(self, state: State) -> None:
        """Seeded inputs, where there is no data and what is left is to be repaired.

        Curves from a file have chosen the widths on data; nothing is repaired beside them.
        """
        is_wanted = self.chosen.repair and not self.chosen.exact_only
        if is_wanted and not self.has_data and state.past_or_none(CurveFile) is None:
            with opening.timed(state, "draw"):
                opening.stand_in(state, self.chosen.custom_ops)

    def kept(
        self, state: State, targets: Sequence[Path], *, resume: bool, overwrite: bool
    ) -> Run:
        """The same, with a folder where it writes a file and takes long.

        Args:
            targets: where the model goes, and where its plan goes; none keep them in memory.
        Raises: PruneError: a folder stands there, or is of another run.
        """
        if not targets and resume:
            what = "progress lies beside the output, and there is none"
            raise UsageError(what, hint="give -o OUT")
        if not targets or not is_long(self.chosen):
            return self
        key = key_of(state, self.chosen, self.comparison)
        return replace(self, store=Store.open(targets[0], key, resume=resume, overwrite=overwrite))

    def carry_out(self, state: State) -> PlanFile | None:
        """Run what the options stand for; curves, if there are any, lie in the state.

        Returns: the plan, where something was cut by one.
        """
        steps = self._passes(state)
        return None if self.chosen.exact_only or self.dry_run else recorded(state, steps)

    def _passes(self, state: State) -> list[AnyPass]:
        measures = check_measures(
            self.chosen,
            has_samples=state.calibration is not None,
            has_curves=state.past_or_none(CurveFile) is not None,
        )
        if self.store is not None and self.store.saved.curves is not None:
            state.before[CurveFile] = self.store.saved.curves
        if self.chosen.max_drop is not None:
            return self._search(state, measures)
        steps = self._steps(measures, has_samples=state.calibration is not None)
        at = next((i for i, one in enumerate(steps) if isinstance(one, MakePlan)), len(steps))
        PassManager(steps[:at]).run(state)
        self._keep_curves(state)
        if self.store is not None:
            state.before[RoundLog] = RoundLog(self.store.saved.round, self.store.put_round)
        PassManager(steps[at:], given=state.facts).run(state)
        return steps

    def _steps(self, measures: bool, *, has_samples: bool) -> list[AnyPass]:
        has_data = self.has_data
        if self.dry_run:
            return plan_passes(self.chosen, has_data=has_data, measures=measures)
        return prune_passes(
            self.chosen, has_data=has_data, measures=measures, has_samples=has_samples
        )

    def _search(self, state: State, measures: bool) -> list[AnyPass]:
        opening.require_parts(state)
        search = Search(state, self.chosen, self.comparison, self.has_data, measures)
        if self.store is not None:
            search.known = self.store.saved.path
            search.after_each = self.store.put_path
            search.after_head = self._keep_curves
        try:
            return search.run()
        except BudgetError:  # an answer, too: there is nothing to go on with
            self.done()
            raise

    def _keep_curves(self, state: State) -> None:
        damage = state.get(Damage)
        is_new = state.past_or_none(CurveFile) is None
        if self.store is not None and is_new and damage is not None and damage.curves:
            self.store.put_curves(opening.curves_of(state))

    def done(self) -> None:
        """Forget what an interrupted run would go on from."""
        if self.store is not None:
            self.store.remove()


def begin(
    options: Mapping[str, Any],
    *,
    plan_path: str | Path | None,
    curves: Any,
    has_data: bool,
    dry_run: bool,
    resume: bool,
) -> Run:
    """A run of the options of `prune`, checked before anything is loaded.

    Raises: UsageError: they exclude each other, or cannot be meant.
    """
    chosen, comparison = opening.split(options, PruneOptions, VerifyOptions)
    check_options(chosen)
    if chosen.exact_only and (plan_path is not None or curves is not None):
        raise UsageError("`--exact-only` makes no plan", hint="leave out --plan and --curves")
    if chosen.max_drop is not None and (dry_run or not has_data):
        what = "measures, and does not run dry" if dry_run else "measures on data"
        raise UsageError(f"`--max-drop` {what}", hint="leave out --dry-run, and give --data")
    if resume and (dry_run or not is_long(chosen)):
        raise UsageError(
            "there is nothing to resume", hint="--resume is for --max-drop and for --rounds"
        )
    check_comparison(comparison)
    return Run(chosen, comparison, has_data, dry_run)


def is_long(chosen: PruneOptions) -> bool:
    """True for a run that may be resumed."""
    return chosen.max_drop is not None or chosen.rounds > 1


def recorded(state: State, steps: Sequence[AnyPass]) -> PlanFile:
    """The plan of a cut, with what is needed to repeat it."""
    subject, normal = state.replaced_by(state[Cut].model), state.past(Normalized)
    with opening.timed(state, "record"):
        return planfile.record(
            state.past(Plan),
            state.past(Dims),
            state[Cut],
            original=state.original.model,
            normalised=subject.model,
            origins=normal.origins,
            sizes=subject.sizes.cost,
            recipe=[spec(one) for one in steps],
            seed=state.seed,
        )


def verified(state: State, comparison: VerifyOptions) -> dict[str, Any]:
    """Findings about what was made.

    Raises: ToolDefect: it is no valid model, or does not run; nothing is handed out then.
    """
    findings = PassManager(verify_passes(comparison)).run(state).by_level
    for level in ("structure", "run"):
        if not findings[level].get("passed", True):
            raise ToolDefect(
                f"the pruned model fails its own check: {level}",
                where="; ".join(map(str, findings[level].get("failures", []))),
            )
    return findings
