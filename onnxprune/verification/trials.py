"""What original and candidate are run on, and the sessions they run in, with equal settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, TensorProto

from onnxprune.backend.feeds import Array, Spec, model_inputs
from onnxprune.backend.runtime import Session, session
from onnxprune.errors import ModelError, PruneError
from onnxprune.manager import State, Subject
from onnxprune.model.graph import Model, tensors
from onnxprune.normal.floats import as_float32
from onnxprune.samples.dataset import batch_axes
from onnxprune.shape.shapes import Shape

# Samples of data that run together: enough for speed, few enough for maps of large images.
BATCH = 16

Load = Callable[[ModelProto], Session]


class Unmeasured(Exception):
    """A figure that could not be had.

    Args:
        reason: why, in the user's words.
        is_candidate: the candidate is to blame; the original does what is asked.
    """

    def __init__(self, reason: str, *, is_candidate: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_candidate = reason, is_candidate

    @property
    def finding(self) -> dict[str, Any]:
        """A failed check where the candidate is to blame, else a skipped one."""
        if self.is_candidate:
            return {"passed": False, "failures": [self.reason]}
        return {"skipped": self.reason}


@dataclass(frozen=True, eq=False)
class Trial:
    """Feeds of one run."""

    feeds: dict[str, Array]
    samples: int
    """How many samples they hold; 1 where no input has a batch axis."""
    is_spare: bool = False
    """Of use only where the original ran on nothing else."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Both models, loaded with equal settings."""

    reference: Session
    candidate: Session
    is_widened: bool = False
    """Float32 copies stand in for both."""

    @property
    def names(self) -> list[str]:
        """Outputs that both have, in the original's order."""
        return [n for n in self.reference.output_names if n in self.candidate.output_names]

    @property
    def missing(self) -> list[str]:
        """Outputs that the candidate lacks."""
        return [n for n in self.reference.output_names if n not in self.candidate.output_names]

    def run(self, trial: Trial) -> tuple[list[Any], list[Any]]:
        """The outputs that both have.

        Raises: Unmeasured: one of them does not run.
        """
        return self.run_reference(trial), self.run_candidate(trial)

    def run_reference(self, trial: Trial) -> list[Any]:
        """The original's part of `run`."""
        return run_trial(self.reference, self.names, trial, self.is_widened, is_candidate=False)

    def run_candidate(self, trial: Trial) -> list[Any]:
        """The candidate's part of `run`."""
        return run_trial(self.candidate, self.names, trial, self.is_widened, is_candidate=True)


def run_trial(
    run: Session, names: Sequence[str], trial: Trial, is_widened: bool, *, is_candidate: bool
) -> list[Any]:
    """Outputs of one model.

    Raises: Unmeasured: it does not run.
    """
    known = {n: a for n, a in trial.feeds.items() if n in run.input_names}
    if is_widened:
        types = {spec.name: spec.dtype for spec in run.inputs}
        known = {n: a.astype(types.get(n) or a.dtype) for n, a in known.items()}
    try:
        return list(run.run(known, names))
    except ModelError as error:
        raise _unmeasured("run", error, is_candidate=is_candidate) from error


def _unmeasured(verb: str, error: PruneError, *, is_candidate: bool) -> Unmeasured:
    who = "candidate" if is_candidate else "original"
    where = f" ({error.where})" if error.where else ""
    reason = f"the {who} does not {verb}: {error.what}{where}"
    return Unmeasured(reason, is_candidate=is_candidate)


def load_pair(
    state: State, *, threads: int = 0, provider: str = "cpu", custom_ops: Sequence[str] = ()
) -> Pair:
    """Sessions of both models.

    ONNX Runtime has hardly a kernel for bfloat16: where it refuses such an original, float32
    copies of both are loaded.

    Raises:
        Unmeasured: one of them does not load, or they have no output in common.
        UsageError: the provider or a library is not there.
    """

    def load(proto: ModelProto) -> Session:
        return session(proto, threads=threads, provider=provider, custom_ops=custom_ops)

    reference, is_widened = load_reference(state, load)
    pair = Pair(reference, load_candidate(state, load, is_widened), is_widened)
    shared_outputs(reference.output_names, pair.candidate)
    return pair


def shared_outputs(names: Sequence[str], candidate: Session) -> list[str]:
    """Those of the original's outputs that the candidate has.

    Raises: Unmeasured: none.
    """
    found = [n for n in names if n in candidate.output_names]
    if not found:
        listed = ", ".join(f"`{n}`" for n in names)
        raise Unmeasured(f"the candidate has none of the outputs {listed}", is_candidate=True)
    return found


def load_reference(state: State, load: Load) -> tuple[Session, bool]:
    """The original, and whether a float32 copy stands in for it.

    Raises: Unmeasured: it does not load.
    """
    proto = state.original.model.proto
    try:
        return load(proto), False
    except ModelError as error:
        if not _has_bfloat16(proto):
            raise _unmeasured("load", error, is_candidate=False) from error
        return _load_widened(load, proto, error), True


def load_candidate(state: State, load: Load, is_widened: bool) -> Session:
    """The candidate, in the form in which the original was loaded.

    Raises: Unmeasured: it does not load.
    """
    proto = state.model.proto
    try:
        return load(as_float32(proto) if is_widened else proto)
    except ModelError as error:
        raise _unmeasured("load", error, is_candidate=True) from error


def _load_widened(load: Any, proto: ModelProto, refusal: ModelError) -> Session:
    try:
        found: Session = load(as_float32(proto))
    except ModelError:
        raise _unmeasured("load", refusal, is_candidate=False) from refusal
    return found


def _has_bfloat16(proto: ModelProto) -> bool:
    infos = (*proto.graph.input, *proto.graph.output)
    return any(i.type.tensor_type.elem_type == TensorProto.BFLOAT16 for i in infos) or any(
        tensor.data_type == TensorProto.BFLOAT16 for _, tensor in tensors(proto)
    )


# --- feeds -------------------------------------------------------------------------------------


def sized(state: State) -> Subject:
    """The original in the form whose sizes are known, or can be chosen."""
    if state.normal or state.history:
        return state.start
    return Subject(state.original.model, state.subject.given)


def seeded_trial(model: Model, shapes: Mapping[str, Shape], seed: int) -> Trial:
    """Random feeds of these shapes.

    Raises: Unmeasured: an input takes no numbers.
    """
    try:
        feeds = model_inputs(model, shapes, seed)
    except ModelError as error:
        raise Unmeasured(f"no inputs can be drawn: {error.what} ({error.where})") from error
    return Trial(feeds, _count(model, feeds))


def _count(model: Model, feeds: Mapping[str, Array]) -> int:
    axes, _ = batch_axes([Spec.of(info) for info in model.inputs])
    sizes = [feeds[n].shape[a] for n, a in axes.items() if a is not None and feeds[n].ndim > a]
    return sizes[0] if sizes else 1


def data_trials(data: Any, size: int = BATCH) -> Iterator[Trial]:
    """Every sample of a `Dataset`, in order."""
    name = next(iter(data.axes), None)
    for feeds in data.batches(size):
        yield Trial(feeds, 1 if name is None else feeds[name].shape[data.axes[name]])


def running_trial(state: State, pair: Pair, shapes: Iterable[Mapping[str, Shape]]) -> Trial:
    """Seeded inputs at the first of these shapes at which the original runs.

    Raises: Unmeasured: it runs at none.
    """
    first: Unmeasured | None = None
    for one in shapes:
        try:
            trial = seeded_trial(sized(state).model, one, state.seed)
            pair.run_reference(trial)
            return trial
        except Unmeasured as error:
            first = first or error
    assert first is not None, "at least one choice of shapes"
    raise Unmeasured(f"{first.reason}; give data, or name other sizes with --shape")


def chosen_shapes(subject: Subject) -> list[dict[str, Shape]]:
    """Two sizes of every dynamic axis, then those that cost is counted at, as far as they differ.

    Raises: Unmeasured: none fit.
    """
    try:
        sizes = subject.sizes
    except ModelError as error:
        raise Unmeasured(f"no sizes of its inputs fit the original: {error.what}") from error
    found: list[dict[str, Shape]] = []
    for shapes in (sizes.first, sizes.second, sizes.cost):
        if shapes not in found:
            found.append(shapes)
    return found


# --- findings ----------------------------------------------------------------------------------


def plain(findings: dict[str, Any]) -> dict[str, Any]:
    """Findings ready for JSON: no tuples, and None for a number that is not finite."""
    return {name: _plain(value) for name, value in findings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
