"""Outputs of original and candidate, run by run, on the data or on seeded inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxprune.backend.feeds import Array
from onnxprune.backend.runtime import Session, session
from onnxprune.errors import DataError
from onnxprune.manager import State
from onnxprune.samples.metrics import Metric
from onnxprune.verification.compare import as_array
from onnxprune.verification.trials import (
    Load,
    Pair,
    Trial,
    Unmeasured,
    chosen_shapes,
    data_trials,
    load_candidate,
    load_pair,
    load_reference,
    run_trial,
    seeded_trial,
    shared_outputs,
    sized,
)

# More runs on seeded inputs, where there is no data: so many, within so many MACs.
SEEDED_RUNS = 6
SEEDED_MACS = 5 * 10**8
# Outputs up to this size are remembered from one pass to the next.
KEPT_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Batch:
    """Outputs of both models in one run, by name."""

    samples: int
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        """What they take in memory, as far as they are arrays."""
        values = (*self.before.values(), *self.after.values())
        return sum(int(getattr(value, "nbytes", 0)) for value in values)


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of both models, run by run; a fact about the candidate once all runs are done."""

    inputs: str
    """What they were run on: `data` or `seeded inputs`."""
    names: list[str]
    """Outputs of the original."""
    missing: list[str]
    """Those that the candidate lacks."""
    is_widened: bool
    batches: Iterable[Batch]
    """Raises Unmeasured where a model does not run."""


@dataclass(frozen=True, eq=False)
class SeededRun:
    """What both models gave on one set of feeds."""

    trial: Trial
    before: dict[str, Any] | Unmeasured
    after: dict[str, Any] | Unmeasured


@dataclass(frozen=True, eq=False)
class SeededRuns:
    """Runs on seeded inputs; a fact about the candidate."""

    runs: list[SeededRun]
    names: list[str]
    """Outputs of the original."""
    missing: list[str]
    is_widened: bool
    notes: list[str]
    """Why no inputs could be drawn."""


@dataclass(frozen=True, eq=False)
class ReferenceRuns:
    """The original's part of the runs: a fact that may be found before there is a candidate."""

    trials: list[Trial]
    before: list[dict[str, Any] | Unmeasured]
    names: list[str]
    is_widened: bool
    notes: list[str]


def reference_runs(state: State, custom_ops: Sequence[str]) -> ReferenceRuns:
    """Run the original at two sizes of every dynamic axis, and on some more seeds.

    Raises: Unmeasured: it does not load.
    """
    notes: list[str] = []
    reference, is_widened = load_reference(state, _loader(custom_ops))
    names = reference.output_names
    trials: list[Trial] = []
    before: list[dict[str, Any] | Unmeasured] = []
    for trial in _trials(state, notes):
        if trial.is_spare and any(not isinstance(one, Unmeasured) for one in before):
            continue
        trials.append(trial)
        before.append(_run(reference, trial, names, is_widened, is_candidate=False))
    return ReferenceRuns(trials, before, names, is_widened, notes)


def _loader(custom_ops: Sequence[str]) -> Load:
    return lambda proto: session(proto, optimize=False, custom_ops=custom_ops)


def seeded_runs(state: State, custom_ops: Sequence[str]) -> SeededRuns:
    """Run both models; the original is gone before the candidate is loaded.

    Raises: Unmeasured: a model does not load.
    """
    known = state.get(SeededRuns)
    if known is not None:
        return known
    found = state.past_or_none(ReferenceRuns) or reference_runs(state, custom_ops)
    candidate = load_candidate(state, _loader(custom_ops), found.is_widened)
    kept = shared_outputs(found.names, candidate)
    after = [_run(candidate, t, kept, found.is_widened, is_candidate=True) for t in found.trials]
    runs = [SeededRun(*one) for one in zip(found.trials, found.before, after, strict=True)]
    missing = [n for n in found.names if n not in kept]
    made = SeededRuns(runs, found.names, missing, found.is_widened, found.notes)
    state.facts[SeededRuns] = made
    return made


def _run(
    run: Session, trial: Trial, names: list[str], is_widened: bool, *, is_candidate: bool
) -> dict[str, Any] | Unmeasured:
    try:
        return dict(zip(names, run_trial(run, names, trial, is_widened, is_candidate=is_candidate),
                        strict=True))  # fmt: skip
    except Unmeasured as found:
        return found


def _trials(state: State, notes: list[str]) -> Iterator[Trial]:
    """Two sizes of every dynamic axis, more seeds while runs are cheap, the first of the data."""
    subject = sized(state)
    try:
        shapes = chosen_shapes(subject)
        for one in shapes[:2]:
            yield seeded_trial(subject.model, one, state.seed)
        more = 0 if state.data is not None else SEEDED_MACS // max(subject.cost.macs, 1)
        for seed in range(state.seed + 1, state.seed + 1 + min(more, SEEDED_RUNS)):
            yield seeded_trial(subject.model, shapes[0], seed)
        for one in shapes[2:]:
            yield replace(seeded_trial(subject.model, one, state.seed), is_spare=True)
    except Unmeasured as found:
        notes.append(found.reason)
    if state.data is not None:
        yield next(data_trials(state.data, size=2))


def outputs_of_both(state: State, custom_ops: Sequence[str]) -> Outputs:
    """Outputs on the data or, without any, on seeded inputs.

    Small outputs are remembered: a run of all samples takes longer than anything else here,
    and more than one pass reads them.

    Raises: Unmeasured: a model does not load, or the original runs on nothing that can be drawn.
    """
    known = state.get(Outputs)
    if known is not None:
        return known
    if state.data is None:
        return _of_seeded(seeded_runs(state, custom_ops))
    pair = load_pair(state, custom_ops=custom_ops)
    found = Outputs("data", pair.reference.output_names, pair.missing, pair.is_widened, ())
    batches = _batches(pair, data_trials(state.data))
    return replace(found, batches=_remembered(state, found, batches))


def _of_seeded(found: SeededRuns) -> Outputs:
    batches = []
    for run in found.runs:
        if isinstance(run.before, Unmeasured):
            continue
        if isinstance(run.after, Unmeasured):
            raise run.after
        batches.append(Batch(run.trial.samples, run.before, run.after))
    if not batches:
        failed = [run.before.reason for run in found.runs if isinstance(run.before, Unmeasured)]
        reason = next(iter([*failed, *found.notes]), "there are no inputs to run on")
        raise Unmeasured(f"{reason}; give data, or name other sizes with --shape")
    return Outputs("seeded inputs", found.names, found.missing, found.is_widened, batches)


def _batches(pair: Pair, runs: Iterable[Trial]) -> Iterator[Batch]:
    for trial in runs:
        before, after = (dict(zip(pair.names, o, strict=True)) for o in pair.run(trial))
        yield Batch(trial.samples, before, after)


def _remembered(state: State, found: Outputs, batches: Iterator[Batch]) -> Iterator[Batch]:
    kept: list[Batch] = []
    size = 0
    for batch in batches:
        size += batch.size_bytes
        if size <= KEPT_BYTES:
            kept.append(batch)
        else:
            kept.clear()
        yield batch
    if size <= KEPT_BYTES:
        state.facts[Outputs] = replace(found, batches=kept)


def by_sample(value: Any, samples: int) -> Array | None:
    """An output with samples on its first axis; as one sample where it has no such axis.

    None for what is no array (a sequence of tensors of unlike shapes).
    """
    try:
        array = as_array(value)
    except (ValueError, KeyError):
        return None
    return array if len(array) == samples else array[None]


def rows_of(name: str, value: Any, samples: int) -> Array:
    """An output with one row per sample.

    Raises: DataError: it has not.
    """
    rows = by_sample(value, samples)
    if rows is None or len(rows) != samples:
        raise DataError(f"the output `{name}` has not one row per sample")
    return rows


def fitting_output(
    outputs: Mapping[str, Any], samples: int, metric: Metric, labels: Array | None
) -> str:
    """The first output that the metric can read.

    Raises: DataError: there is none; says why the first is none.
    """
    first: DataError | None = None
    for name, value in outputs.items():
        try:
            rows = rows_of(name, value, samples)
            if rows.dtype.kind not in "biuf":
                raise DataError(f"the output `{name}` holds no numbers")
            metric.prepare(rows, labels if metric.needs_labels and labels is not None else rows)
            return name
        except DataError as error:
            first = first or error
    raise first or DataError("the model has no output")
