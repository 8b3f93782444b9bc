"""How every command begins: options taken apart, model and data brought into a state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from onnx import ModelProto

from onnxprune.blame import blaming, refuse_crashes
from onnxprune.errors import DataError, PruneError, UsageError, did_you_mean
from onnxprune.identity.dims import Dims
from onnxprune.manager import State, Subject
from onnxprune.model.storage import check_target, data_file, load
from onnxprune.model.surgeon import is_graph, to_proto
from onnxprune.normal.normalize import Normalized, normalize_with_origins
from onnxprune.planning.damage import Damage
from onnxprune.records.curvefile import CurveFile, record
from onnxprune.samples import data as datasets
from onnxprune.samples import standins
from onnxprune.samples.data import ImageOptions, Source
from onnxprune.samples.dataset import LEAST_SAMPLES, fingerprint
from onnxprune.shape.shapes import Shape

ModelSource = str | Path | ModelProto | Any
"""A path, a ModelProto or an `onnx_graphsurgeon.Graph`."""
Progress = Callable[[str], None]
Shapes = Mapping[str, Shape]
Command = TypeVar("Command", bound=Callable[..., Any])
TOO_FEW = "{n} samples are too few to fit to, to decide on and to measure"


def blames_the_model(function: Command) -> Command:
    """Make what a broken model causes an error about the model; it is the first argument."""

    @wraps(function)
    def guarded(model: Any, *args: Any, **given: Any) -> Any:
        model = to_proto(model) if is_graph(model) else model
        with blaming(model, given.get("custom_ops", ())):
            return function(model, *args, **given)

    return cast(Command, guarded)


def _silent(_: str) -> None:
    """No progress."""


@contextmanager
def timed(state: State, name: str) -> Iterator[None]:
    state.progress(name)
    begin = time.perf_counter()
    yield
    state.seconds[name] = time.perf_counter() - begin


def split(options: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Instances of option classes; an option may belong to several.

    Raises: UsageError: an option belongs to none.
    """
    known = {f.name for kind in kinds for f in fields(kind)}
    for name in options:
        if name not in known:
            raise UsageError(f"no option is named `{name}`", hint=did_you_mean(name, known))
    return [
        kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options})
        for kind in kinds
    ]


def targets(
    out: str | Path | None,
    plan_path: str | Path | None,
    sources: Sequence[str | Path],
    overwrite: bool,
) -> list[Path]:
    """Where the model goes, and where its plan goes; nowhere where it stays in memory.

    Raises: UsageError: both would be one file, or something stands there.
    """
    if out is None:
        return []
    out = Path(out)
    plan = Path(plan_path) if plan_path else out.with_suffix(".plan.json")
    if plan.resolve() in (out.resolve(), data_file(out).resolve()):
        raise UsageError(
            "model and plan would be the same file", where=str(plan), hint="name another --plan"
        )
    for target in (out, plan):
        check_target(target, sources, overwrite)
    return [out, plan]


def paths(*sources: Any) -> list[str | Path]:
    """Those sources that are files."""
    return [s for s in sources if isinstance(s, (str, Path)) and Path(s).is_file()]


def shown(path: Any) -> str | None:
    """A path as text; None for what lies in memory."""
    return str(path) if isinstance(path, (str, Path)) else None


def start(
    model: ModelSource,
    shape: Shapes | None,
    seed: int,
    progress: Progress | None,
    workers: int = 0,
) -> State:
    """The state that a recipe begins with: the model as loaded, and its normalised form."""
    report = progress or _silent
    if not isinstance(model, (str, Path, ModelProto)):
        raise UsageError(
            f"a {type(model).__name__} is no model",
            hint="give a path, a ModelProto, or an onnx_graphsurgeon.Graph",
        )
    report("load")
    begin = time.perf_counter()
    loaded = load(model)
    refuse_crashes(loaded, model)
    loaded_at = time.perf_counter()
    report("normalize")
    found = normalize_with_origins(loaded)
    subject = Subject(found.model, dict(shape or {}))
    seconds = {"load": loaded_at - begin, "normalize": time.perf_counter() - loaded_at}
    before: dict[type, Any] = {Normalized: found}
    return State(
        Subject(loaded),
        subject,
        seed,
        workers=workers,
        progress=report,
        seconds=seconds,
        before=before,
        normal=subject,
    )


def read_data(
    state: State, source: Source | None, limit: int | None, images: ImageOptions | None
) -> None:
    """Samples into the state; their shapes stand in where the user names none."""
    if source is None:
        if limit is not None or images is not None:
            raise UsageError("there is no data that --limit or image options could be for")
        return
    state.data = datasets.load(
        source, state.original.model.inputs, limit=limit, seed=state.seed, image_options=images
    )
    state.warnings += state.data.warnings
    given = state.data.shapes() | state.subject.given
    is_normal = state.subject is state.normal
    state.normal = Subject(state.start.model, given)
    state.subject = state.normal if is_normal else Subject(state.model, given)


def read_parts(
    state: State,
    source: Source | None,
    evaluation: Source | None,
    limit: int | None,
    images: ImageOptions | None,
    *,
    splits: bool,
) -> None:
    """Samples to repair on, and others for the figures."""
    shown_on = evaluation if evaluation is not None else source
    if source is None or not splits:
        return read_data(state, shown_on, limit, images)
    read_data(state, source, limit, images)
    whole = state.data
    least = LEAST_SAMPLES * (whole.batch or 1)
    if evaluation is not None:
        read_data(state, evaluation, limit, images)
    if whole.n < least:
        state.warnings.append(
            f"nothing is repaired: {TOO_FEW.format(n=whole.n)}; give at least {least}, better "
            "some hundred"
        )
        return None
    fit, decide, report = whole.split(state.seed)
    if evaluation is None:
        state.data = report
    else:
        fit = fit.with_rows_of(report)
    state.calibration = fit, decide
    return None


def stand_in(state: State, custom_ops: Sequence[str]) -> None:
    """Seeded inputs to plan and repair on, where such will do; else a warning says why.

    They are for no figure: `state.data` stays what it is.
    """
    subject = state.subject
    reason = standins.unfit(subject.model, subject.at_cost)
    if not reason:
        try:
            cost = subject.cost
            meets = cost.macs / max(cost.params, 1)
            drawn = standins.drawn(subject.model, subject.sizes.cost, state.seed, meets)
            standins.check_run(subject.model, drawn, custom_ops)
            fit, decide, report = drawn.split(state.seed)
            state.calibration = fit.with_rows_of(report), decide
            return
        except PruneError as error:
            reason = error.what
    state.warnings.append(
        "nothing is repaired: there is no data, and seeded inputs cannot stand in for it: "
        f"{reason}; give --data with some hundred samples"
    )


def require_parts(state: State) -> None:
    """Refuse to go on without samples to fit on and to decide on.

    Raises: DataError: there are too few.
    """
    if state.calibration is None:
        least = LEAST_SAMPLES * (state.data.batch or 1)
        raise DataError(TOO_FEW.format(n=state.data.n),
                        hint=f"give at least {least}, better some hundred")  # fmt: skip


def give_curves(state: State, written: CurveFile | None, *, judged_apart: bool) -> None:
    """Curves from a file, if any, into the state, to be taken instead of measuring.

    Args:
        judged_apart: the figures come from other data than what is repaired on.
    """
    if written is None:
        return
    state.before[CurveFile] = written
    known = state.calibration
    if known is None or judged_apart or written.sha256["samples"] == fingerprint(known):
        return
    state.warnings.append(
        "the curves were measured on other samples than those to repair on: some of the samples "
        "that the figures are from may have chosen the widths"
    )


def curves_of(state: State) -> CurveFile:
    """What was measured of the model, for a file."""
    return record(
        state[Damage],
        state[Dims],
        model=state.model,
        samples=fingerprint(state.calibration),
        seed=state.seed,
        sizes=state.subject.sizes.cost,
    )
