"""Finished runs as plain values, ready for JSON; what others build on (schemas beside it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from onnxprune.cutting.cut import Cut
from onnxprune.identity.dims import Dim, Dims
from onnxprune.manager import State, installed
from onnxprune.model.graph import Model
from onnxprune.planning.cost import Cost
from onnxprune.planning.damage import Curve, Damage
from onnxprune.planning.plan import Plan
from onnxprune.repair.sweep import Repaired
from onnxprune.report.shares import prunable_params, shares
from onnxprune.rules import load_rules
from onnxprune.rules.registry import Rules
from onnxprune.search import Descent
from onnxprune.shape.shapes import Shape
from onnxprune.verification.sensitivity import Ranking
from onnxprune.verification.trials import plain

SCHEMA = "onnxprune/{command}/1"
SEEDED = "seeded inputs"


def schema_name(command: str) -> str:
    """The name of a document's schema."""
    return SCHEMA.format(command=command)


def cost_document(before: Cost, after: Cost) -> dict[str, dict[str, float]]:
    """Each cost before and after, and the ratio."""
    ratios = after.share(before)
    return {
        name: {"before": getattr(before, name), "after": getattr(after, name), "ratio": ratio}
        for name, ratio in ratios.items()
    }


def dims_counts(dims: Dims, plan: Plan | None) -> dict[str, int]:
    """How many Dims there are, and what became of them."""
    cut = 0
    if plan is not None:
        cut = sum(not plan.alive[d.channels].all() for d in dims.dims)
    return {
        "total": len(dims.dims),
        "cut": cut,
        "pinned": sum(not d.is_free for d in dims.dims),
        "approximate": sum(d.is_free and not d.is_exact for d in dims.dims),
    }


def plan_rows(dims: Dims, plan: Plan) -> list[dict[str, Any]]:
    """Free Dims with their width before and after."""
    return [
        {
            "name": d.name,
            "size": d.size,
            "rows": d.rows,
            "exact": d.is_exact,
            "kept": int(plan.alive[d.channels].sum()),
            "of": len(d.channels),
        }
        for d in dims.free
    ]


def prune_document(state: State, findings: dict[str, Any]) -> dict[str, Any]:
    """What was cut, what it won, and what verification found."""
    dims, plan = state.past(Dims), state.past_or_none(Plan)
    subject = state.subject if state.get(Dims) is dims else state.replaced_by(state[Cut].model)
    repaired = state.get(Repaired)
    is_as_planned = plan is not None and repaired is None
    after = plan.cost if plan is not None and is_as_planned else state.subject.cost
    return {
        "schema": schema_name("prune"),
        "cost": cost_document(state.start.cost, after),
        "shapes": shapes_document(state.start.sizes.cost),
        "dims": dims_counts(dims, plan),
        "widths": plan_rows(dims, plan) if plan is not None else [],
        "prunable_params": prunable_params(subject.model, dims),
        "repaired": None if repaired is None else repaired.kinds,
        "calibration": calibration_document(state),
        "plans": dict(plan.tried) or None if plan is not None else None,
        "plan_taken": plan.taken or None if plan is not None else None,
        **path_document(state.get(Descent)),
        "verify": findings,
        "seconds": rounded(state.seconds),
        "warnings": list(dict.fromkeys(state.warnings)),
    }


def calibration_document(state: State) -> dict[str, Any] | None:
    """How many samples repair could look at, and where they came from; None without any."""
    if state.calibration is None:
        return None
    is_seeded = any(part.is_seeded for part in state.calibration)
    return {
        "samples": sum(part.n for part in state.calibration),
        "source": SEEDED if is_seeded else "data",
    }


def path_document(found: Descent | None) -> dict[str, Any]:
    """The budgets that were tried under --max-drop, and what they were judged by."""
    if found is None:
        return {"path": None, "path_on": None}
    rows = [
        {"cost": dict(t.cost), "metric": t.value, "drop": t.drop, "holds": t.holds,
         "chosen": t is found.best}
        for t in found.path
    ]  # fmt: skip
    about = {
        "metric": found.metric,
        "before": found.before,
        "max_drop": found.max_drop,
        "samples": found.samples,
    }
    return {"path": rows, "path_on": about}


# Widths that the table shows the damage at.
SHOWN_WIDTHS = (0.75, 0.5, 0.25)


def sensitivity_document(state: State) -> dict[str, Any]:
    """What each Dim's removal costs, the cheapest for the MACs it has to do with first."""
    dims, damage, subject = state[Dims], state[Damage], state.subject
    found = shares(state.model, dims, subject.at_cost, load_rules())
    rows = [
        _curve_row(dims.dims[index], curve, found.macs.get(index, 0.0))
        for index, curve in damage.curves.items()
    ]
    return {
        "schema": schema_name("sensitivity"),
        "cost": asdict(subject.cost),
        "shapes": shapes_document(subject.sizes.cost),
        "dims": sorted(rows, key=lambda row: row["damage_per_macs"]),
        "unmeasured": [d.name for d in dims.free if d.index not in damage.curves],
        "seconds": rounded(state.seconds),
        "warnings": list(dict.fromkeys(state.warnings)),
    }


def _curve_row(dim: Dim, curve: Curve, macs: float) -> dict[str, Any]:
    at = curve.at(np.array(SHOWN_WIDTHS)).tolist()
    half = at[SHOWN_WIDTHS.index(0.5)]
    return {
        "name": dim.name,
        "size": dim.size,
        "rows": dim.rows,
        "exact": dim.is_exact,
        "macs_share": round(macs, 6),
        "damage": [{"width": w, "damage": d} for w, d in zip(SHOWN_WIDTHS, at, strict=True)],
        "damage_per_macs": half / max(macs, 1e-9),
    }


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage to the millisecond."""
    return {name: round(spent, 3) for name, spent in seconds.items()}


def verify_document(
    state: State, findings: dict[str, Any], gates: list[dict[str, Any]]
) -> dict[str, Any]:
    """Findings about two models, and which gates they pass."""
    return {
        "schema": schema_name("verify"),
        "verify": findings,
        "gates": gates,
        "seconds": rounded(state.seconds),
        "warnings": list(dict.fromkeys(state.warnings)),
    }


def normalize_document(state: State, output: str | None) -> dict[str, Any]:
    """How normalising changed a model."""
    counts = {"before": len(state.original.model.nodes), "after": len(state.model.nodes)}
    return {"schema": schema_name("normalize"), "nodes": counts, "output": output}


def apply_document(state: State) -> dict[str, Any]:
    """What a plan cut."""
    plan = state.past(Plan)
    return {
        "schema": schema_name("apply"),
        "cost": cost_document(plan.whole, plan.cost),
        "seconds": rounded(state.seconds),
        "warnings": list(dict.fromkeys(state.warnings)),
    }


def recut_document(cut: Sequence[str], missing: Sequence[str]) -> dict[str, Any]:
    """Which tensors of a checkpoint a plan cut, and which it did not find there."""
    gone = f"{len(missing)} cut vectors are not in the checkpoint: {', '.join(missing[:5])}"
    return {
        "schema": schema_name("apply"),
        "tensors": list(cut),
        "missing": list(missing),
        "warnings": [gone] if missing else [],
    }


def passes_document() -> dict[str, Any]:
    """Every installed pass: name, kind, what it does, its options."""
    rows = []
    for name, entry in sorted(installed().items()):
        kind = entry.load()
        bases = {b.__name__.lower() for b in kind.__mro__}
        rows.append(
            {
                "name": name,
                "kind": next(k for k in ("analysis", "rewrite", "verification") if k in bases),
                "what": (kind.__doc__ or "").strip().splitlines()[0],
                "package": entry.dist.name if entry.dist else "",
                "options": [
                    {"name": f.name.replace("_", "-"), "default": f.default}
                    for f in fields(kind)
                ],
            }
        )
    return {"schema": schema_name("passes"), "passes": rows}


def ops_document(rules: Rules) -> dict[str, Any]:
    """Every operator with a flow rule."""
    rows = [
        {
            "name": one.op,
            "domain": one.domain,
            "since": one.since,
            "family": one.family,
            "what": one.note,
            "counted": one.macs is not None,
        }
        for one in rules
        if one.flow is not None
    ]
    return {"schema": schema_name("ops"), "operators": rows}


def inspect_document(state: State) -> dict[str, Any]:
    """What could be cut, what not, and why."""
    model, dims, subject = state.model, state[Dims], state.subject
    found = shares(model, dims, subject.at_cost, load_rules())
    rows = [
        _dim_row(d)
        | {
            "macs_share": round(found.macs.get(d.index, 0.0), 6),
            "params_share": round(found.params.get(d.index, 0.0), 6),
            "tensors": found.tensors.get(d.index, []),
        }
        for d in dims.dims
    ]
    return {
        "schema": schema_name("inspect"),
        "cost": asdict(subject.cost),
        "shapes": shapes_document(subject.sizes.cost),
        "prunable_params": prunable_params(model, dims),
        "dims": rows,
        "unknown_operators": unknown_operators(model, dims),
        "refused": refusal(model, dims),
        **features_document(state.get(Ranking)),
        "warnings": list(dict.fromkeys(state.warnings)),
    }


def features_document(found: Ranking | None) -> dict[str, Any]:
    """Features of the inputs, the most important first, and what they were measured on."""
    if found is None:
        return {"features": None, "features_on": None}
    rows = [
        plain(
            {
                "input": row.feature.input,
                "feature": row.feature.index,
                "importance": row.importance,
                "se": row.se,
                "share": found.share(row),
                "changes": row.changes,
                "varies": row.varies,
            }
            | ({"drop": row.drop, "drop_se": row.drop_se} if found.metric else {})
        )
        for row in found.rows
    ]
    measured = {
        "samples": found.samples,
        "permutations": found.permutations,
        "metric": found.metric,
        "before": found.before,
    }
    return {"features": rows, "features_on": measured}


def _dim_row(dim: Dim) -> dict[str, Any]:
    pinned = dim.pinned or (None if dim.is_free else "its width has no smaller step")
    return {
        "name": dim.name,
        "size": dim.size,
        "rows": dim.rows,
        "exact": dim.is_exact,
        "approximate": dim.approximate or None,
        "pinned": pinned,
    }


def shapes_document(shapes: Mapping[str, Shape]) -> dict[str, list[int]]:
    """Input shapes as lists."""
    return {name: list(shape) for name, shape in shapes.items()}


def unknown_operators(model: Model, dims: Dims) -> dict[str, int]:
    """Operators without a rule, and how many nodes there are of each."""
    missing = set(dims.ties.unknown)
    found: dict[str, int] = {}
    for node in model.nodes:
        if node.key in missing:
            name = f"{node.domain}.{node.op}" if node.domain else node.op
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def refusal(model: Model, dims: Dims) -> str | None:
    """Why nothing at all can be cut; None where something can."""
    if dims.free:
        return None
    wide = [d for d in dims.dims if d.pinned and d.size > 1]
    if wide:
        listed = "; ".join(f"`{d.name}`: {d.pinned}" for d in wide[:3])
        return f"all {len(dims.dims)} Dims are pinned: {listed}"
    ops = sorted({node.op for node in model.nodes})
    listed = ", ".join(ops[:6]) + (", ..." if len(ops) > 6 else "")
    return f"no weight of this model has channels that onnxprune can follow (operators: {listed})"
