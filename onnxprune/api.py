"""The functions behind the command line: prune, sensitivity, inspect, verify, apply, normalize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto

from onnxprune import opening
from onnxprune.errors import UsageError
from onnxprune.identity.dims import Dims
from onnxprune.manager import PassManager, Subject
from onnxprune.model.graph import Model
from onnxprune.model.storage import check_target, load, save
from onnxprune.model.surgeon import to_graph
from onnxprune.opening import ModelSource, Progress, Shapes, blames_the_model
from onnxprune.passes.cut_channels import CutChannels
from onnxprune.passes.find_dims import FindDims
from onnxprune.passes.rank_features import RankFeatures
from onnxprune.planning.plan import Plan
from onnxprune.pruning import begin, verified
from onnxprune.recipe import (
    CLEAN_UPS,
    VerifyOptions,
    check_comparison,
    clean_ups,
    sensitivity_passes,
    verify_passes,
)
from onnxprune.records import curvefile, planfile
from onnxprune.records.checkpoint import apply_to_file
from onnxprune.report import document, text
from onnxprune.rules import load_rules
from onnxprune.samples.data import ImageOptions, Source
from onnxprune.verification.gates import evaluate_gates


@dataclass(frozen=True, eq=False)
class Result:
    """What a command found and made."""

    content: dict[str, Any]
    """The JSON document."""
    made: Model | None = field(default=None, repr=False)
    plan: dict[str, Any] | None = field(default=None, repr=False)
    """The plan document."""
    curves: dict[str, Any] | None = field(default=None, repr=False)
    """The document with damage curves."""

    @property
    def model(self) -> ModelProto | None:
        """The model that was made, with its weights inside."""
        return None if self.made is None else self.made.complete()

    @property
    def graph(self) -> Any:
        """The same as an `onnx_graphsurgeon.Graph`, to edit further."""
        return None if self.made is None else to_graph(self.made.complete())

    @property
    def cost(self) -> dict[str, Any]:
        """MACs, parameters and bytes, before and after."""
        found: dict[str, Any] = self.content.get("cost", {})
        return found

    @property
    def verify(self) -> dict[str, Any]:
        """Findings by level."""
        found: dict[str, Any] = self.content.get("verify", {})
        return found

    @property
    def failed_gates(self) -> list[str]:
        """Gates that were not met, and levels of `verify` that failed."""
        failed = [g["name"] for g in self.content.get("gates", []) if not g["passed"]]
        levels = self.verify.items() if "gates" in self.content else ()
        return failed + [name for name, found in levels if found.get("passed") is False]

    def json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return self.content

    def report(self) -> str:
        """The same as text for people."""
        return text.render(self.content)


@blames_the_model
def prune(
    model: ModelSource,
    out: str | Path | None = None,
    *,
    data: Source | None = None,
    evaluation: Source | None = None,
    limit: int | None = None,
    images: ImageOptions | None = None,
    shape: Shapes | None = None,
    curves: str | Path | Mapping[str, Any] | None = None,
    plan_path: str | Path | None = None,
    dry_run: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Remove channels from a model, prove the result, and write it.

    Args:
        model: a path or a ModelProto, which is not changed.
        out: where to write; None keeps the result in memory (`Result.model`).
        data: samples, labelled or not: a fifth, drawn by the seed, is for the figures, unless
            `evaluation` is; the others to repair on. Without, seeded inputs may stand in.
        limit: take so many samples, drawn by the seed.
        shape: input shapes that cost is counted at.
        curves: what `sensitivity` wrote for this model, instead of measuring; or that document.
        plan_path: where to write the plan; beside `out` by default.
        resume: go on where a run with --max-drop or --rounds was interrupted.
        dry_run: choose and cost the plan only.
        options: fields of `recipe.PruneOptions` and `recipe.VerifyOptions`.

    Raises:
        PruneError: of a kind that says what is wrong with the input, the options or the budget.
        ToolDefect: the result would be wrong; nothing is written.
    """
    known = None if curves is None else curvefile.read(curves)
    run = begin(options, plan_path=plan_path, curves=curves, has_data=data is not None,
                dry_run=dry_run, resume=resume)  # fmt: skip
    sources = opening.paths(model, data, evaluation, curves)
    targets = [] if dry_run else opening.targets(out, plan_path, sources, overwrite)
    state = opening.start(model, shape, run.chosen.seed, progress, run.chosen.workers)
    opening.read_parts(state, data, evaluation, limit, images, splits=not run.chosen.exact_only)
    opening.give_curves(state, known, judged_apart=evaluation is not None)
    run.stand_in(state)
    run = run.kept(state, targets, resume=resume, overwrite=overwrite)
    plan = run.carry_out(state)
    findings = {} if dry_run else verified(state, run.comparison)
    with opening.timed(state, "save"):
        if targets:
            beside = {targets[1]: planfile.writer(plan)} if plan is not None else {}
            save(state.model, targets[0], overwrite=overwrite, beside=beside)
    run.done()
    content = document.prune_document(state, findings) | {
        "model": opening.shown(model),
        "output": opening.shown(targets[0]) if targets else None,
        "plan": opening.shown(targets[1]) if targets and plan is not None else None,
    }
    made = None if dry_run else state.model
    return Result(content, made, planfile.document(plan) if plan else None)


@blames_the_model
def sensitivity(
    model: ModelSource,
    out: str | Path | None = None,
    *,
    data: Source | None = None,
    limit: int | None = None,
    images: ImageOptions | None = None,
    shape: Shapes | None = None,
    custom_ops: Sequence[str] = (),
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Measure once what each Dim's removal costs, for `prune(curves=...)` at any budget.

    Args:
        out: where to write the curves; None keeps them in memory (`Result.curves`).
        workers: threads that measure Dims side by side; 0: as many as cores, at most 4.
        data: samples; the seed draws those that `prune` would not show figures of.

    Raises: PruneError: of a kind that says what is wrong with the input or the options.
    """
    if data is None:
        raise UsageError("damage is measured on data, and there is none", hint="give --data")
    if workers < 0:
        raise UsageError("`workers` is negative", hint="give a number of at least 0")
    if out is not None:
        check_target(out, opening.paths(model, data), overwrite)
    state = opening.start(model, shape, seed, progress, workers)
    opening.read_parts(state, data, None, limit, images, splits=True)
    opening.require_parts(state)
    PassManager(sensitivity_passes(tuple(custom_ops))).run(state)
    written = opening.curves_of(state)
    if out is not None:
        curvefile.write(written, out, overwrite=overwrite)
    content = document.sensitivity_document(state) | {"output": opening.shown(out)}
    return Result(content, curves=curvefile.document(written))


@blames_the_model
def inspect(
    model: ModelSource,
    *,
    data: Source | None = None,
    limit: int | None = None,
    images: ImageOptions | None = None,
    shape: Shapes | None = None,
    features: bool = False,
    custom_ops: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """What could be cut, what not, and why; `data` gives the sizes that cost is counted at.

    Args:
        features: rank the inputs' columns and channels by how far the outputs move on `data`
            when one of them is shuffled; this runs the model.

    Raises: UsageError: features are to be ranked, and there is no data.
    """
    if features and data is None:
        raise UsageError("features are ranked on data, and there is none", hint="give --data")
    state = opening.start(model, shape, seed, progress)
    opening.read_data(state, data, limit, images)
    ranking = [RankFeatures(custom_ops=tuple(custom_ops))] if features else []
    PassManager([FindDims(), *ranking]).run(state)
    return Result(document.inspect_document(state))


def verify(
    reference: ModelSource,
    candidate: ModelSource,
    *,
    data: Source | None = None,
    limit: int | None = None,
    images: ImageOptions | None = None,
    shape: Shapes | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    max_error: float | None = None,
    min_speedup: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Compare two models: structure, runs, outputs, metric, latency; then the gates.

    Args:
        options: fields of `recipe.VerifyOptions`.
    """
    (comparison,) = opening.split(options, VerifyOptions)
    check_comparison(comparison)
    state = opening.start(reference, shape, comparison.seed, progress)
    state.subject = Subject(load(candidate), state.subject.given)
    opening.read_data(state, data, limit, images)
    findings = PassManager(verify_passes(comparison)).run(state).by_level
    limits = {
        "max-drop": max_drop,
        "min-agreement": min_agreement,
        "max-error": max_error,
        "min-speedup": min_speedup,
    }
    gates = evaluate_gates({k: v for k, v in limits.items() if v is not None}, findings)
    return Result(document.verify_document(state, findings, gates))


def apply(
    model: ModelSource,
    plan: str | Path | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Cut a model as a plan says: the same bytes as the prune that wrote the plan.

    Args:
        weights: cut this checkpoint instead; `model` is then the plan, or, where `plan` is given
            too, the model whose weights tell which tensor of the checkpoint is which.
    """
    paths = opening.paths(model, plan, weights)
    if out is not None:
        check_target(out, paths, overwrite)
    if weights is not None:
        return _apply_weights(model, plan, weights, out, overwrite)
    if plan is None:
        raise UsageError("the plan is missing", hint="onnxprune apply MODEL PLAN -o OUT")
    written = planfile.read(plan)
    state = opening.start(model, written.sizes, written.seed, progress)
    planfile.expect(written, "original", state.original.model)
    PassManager(clean_ups(n for n in written.recipe if n in CLEAN_UPS)).run(state)
    planfile.expect(written, "normalised", state.model)
    state.facts[Plan] = planfile.restore(written, state[Dims])
    PassManager([CutChannels()], given=state.facts).run(state)
    if out is not None:
        save(state.model, out, overwrite=overwrite)
    content = document.apply_document(state) | {"output": opening.shown(out)}
    return Result(content, state.model, planfile.document(written))


@blames_the_model
def normalize(
    model: ModelSource,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """The form of a model that plans refer to: same interface, same outputs to 1e-6."""
    if out is not None:
        check_target(out, opening.paths(model), overwrite)
    state = opening.start(model, None, 0, progress)
    if out is not None:
        save(state.model, out, overwrite=overwrite)
    return Result(document.normalize_document(state, opening.shown(out)), state.model)


def list_passes() -> Result:
    """Every installed pass with its options."""
    return Result(document.passes_document())


def list_ops() -> Result:
    """Every operator that has a rule."""
    return Result(document.ops_document(load_rules()))


def _apply_weights(
    model: ModelSource,
    plan: str | Path | Mapping[str, Any] | None,
    weights: str | Path,
    out: str | Path | None,
    overwrite: bool,
) -> Result:
    """Cut a checkpoint; the only model given may be the plan itself."""
    if out is None:
        raise UsageError("nothing says where to write the weights", hint="give -o OUT")
    if plan is None and isinstance(model, ModelProto):
        raise UsageError("the plan is missing")
    path = plan if plan is not None else model
    assert not isinstance(path, ModelProto), "checked above"
    known = None if plan is None else load(model)
    made = apply_to_file(planfile.read(path), weights, out, model=known, overwrite=overwrite)
    content = document.recut_document(made.cut, made.missing)
    return Result(content | {"output": opening.shown(out)})
