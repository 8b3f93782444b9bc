"""What a prune is made of: its options, its passes, its record and its check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune import opening
from onnxprune.cutting.cut import Cut
from onnxprune.errors import ToolDefect, UsageError
from onnxprune.identity.dims import Dims
from onnxprune.manager import AnyPass, PassManager, State, spec
from onnxprune.normal.normalize import Normalized
from onnxprune.planning.plan import Plan
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
from onnxprune.search import Search


def chosen_options(
    options: Mapping[str, Any],
    *,
    plan_path: str | Path | None,
    curves: Any,
    has_data: bool,
    dry_run: bool,
) -> tuple[PruneOptions, VerifyOptions]:
    """Options of `prune`, checked before anything is loaded."""
    chosen, comparison = opening.split(options, PruneOptions, VerifyOptions)
    check_options(chosen)
    if chosen.exact_only and (plan_path is not None or curves is not None):
        raise UsageError("`--exact-only` makes no plan", hint="leave out --plan and --curves")
    if chosen.max_drop is not None and (dry_run or not has_data):
        what = "measures, and does not run dry" if dry_run else "measures on data"
        raise UsageError(f"`--max-drop` {what}", hint="leave out --dry-run, and give --data")
    check_comparison(comparison)
    return chosen, comparison


def carried_out(
    state: State,
    chosen: PruneOptions,
    comparison: VerifyOptions,
    *,
    has_data: bool,
    dry_run: bool,
) -> list[AnyPass]:
    """Run what the options stand for; curves, if there are any, lie in the state.

    Returns: the passes of the result.
    """
    measures = check_measures(
        chosen,
        has_samples=state.calibration is not None,
        has_curves=state.past_or_none(CurveFile) is not None,
    )
    if chosen.max_drop is not None:
        opening.require_parts(state)
        return Search(state, chosen, comparison, has_data, measures).run()
    make = plan_passes if dry_run else prune_passes
    steps = make(chosen, has_data=has_data, measures=measures)
    PassManager(steps).run(state)
    return steps


def recorded(state: State, steps: Sequence[AnyPass]) -> planfile.PlanFile:
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
