"""Run the candidate at two sizes of every dynamic axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.feeds import Spec
from onnxprune.graph import Model
from onnxprune.manager import State, Subject, Verification
from onnxprune.shapes import Shape
from onnxprune.trials import (
    Pair,
    Trial,
    Unmeasured,
    chosen_shapes,
    data_trials,
    load_pair,
    plain,
    seeded_trial,
    sized,
)

Form = tuple[str, Shape]


@dataclass(frozen=True)
class VerifyRun(Verification):
    """Run both models in ONNX Runtime; outputs must have the original's types and shapes.

    Sizes at which the original itself does not run say nothing and are noted only.
    """

    name: ClassVar[str] = "verify-run"

    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> dict[str, Any]:
        try:
            pair = load_pair(state, custom_ops=self.custom_ops)
        except Unmeasured as found:
            return found.finding
        strict = strict_axes(sized(state))
        failures = [f"output `{name}` is gone" for name in pair.missing]
        notes: list[str] = []
        runs: list[dict[str, Any]] = []
        for trial in _trials(state, notes):
            shapes = {name: list(array.shape) for name, array in trial.feeds.items()}
            try:
                failures += _changes(pair, trial, strict)
            except Unmeasured as found:
                if not found.is_candidate:
                    notes.append(f"at {_listed(shapes)} {found.reason}")
                    continue
                failures.append(f"at {_listed(shapes)} {found.reason}")
            runs.append(shapes)
        if not runs:
            return {"skipped": notes[0] if notes else "there are no inputs to run on"}
        return plain({"passed": not failures, "failures": failures, "notes": notes, "runs": runs})


def _trials(state: State, notes: list[str]) -> Iterator[Trial]:
    """Seeded inputs at two sizes, and the first samples of the data."""
    subject = sized(state)
    try:
        for shapes in chosen_shapes(subject)[:2]:
            yield seeded_trial(subject.model, shapes, state.seed)
    except Unmeasured as found:
        notes.append(found.reason)
    if state.data is not None:
        yield next(data_trials(state.data, size=2))


def _listed(shapes: dict[str, list[int]]) -> str:
    return ", ".join(f"`{name}` {'x'.join(map(str, s)) or 'scalar'}" for name, s in shapes.items())


def _changes(pair: Pair, trial: Trial, strict: dict[str, frozenset[int] | None]) -> list[str]:
    """Outputs whose form is not the original's."""
    found = []
    for name, ours, theirs in zip(pair.names, *pair.run(trial), strict=True):
        before, after = form(ours), form(theirs)
        if not _is_same(before, after, strict.get(name)):
            found.append(f"output `{name}` was {_text(before)}, is now {_text(after)}")
    return found


def form(value: Any) -> Form:
    """Type and shape of an output; of a sequence its length."""
    if isinstance(value, list):
        return "sequence", (len(value),)
    array = np.asarray(value)
    return ("text" if array.dtype.kind in "OU" else array.dtype.name), array.shape


def _text(found: Form) -> str:
    return f"{found[0]} {list(found[1])}"


def _is_same(before: Form, after: Form, axes: frozenset[int] | None) -> bool:
    """Equal, or equal on some axes where the others depend on the data."""
    if before == after or axes is None:
        return before == after
    (kind, ours), (other, theirs) = before, after
    return (kind, len(ours)) == (other, len(theirs)) and all(
        ours[a] == theirs[a] for a in axes if a < len(ours)
    )


def strict_axes(subject: Subject) -> dict[str, frozenset[int] | None]:
    """Per output the axes that must be equal; None where all must.

    How many boxes a detector finds is no defect. So where shape inference cannot tell an
    output's shape from those of the inputs, only axes count that the interface fixes or names
    as it names an input's.
    """
    try:
        known = subject.shapes[0].shape
    except ModelError:
        known = {}
    return {
        name: None if name in known else _declared_axes(subject.model, name)
        for name in subject.model.output_names
    }


def _declared_axes(model: Model, name: str) -> frozenset[int]:
    given = {a for info in model.inputs for a in Spec.of(info).shape or () if isinstance(a, str)}
    shape = next(Spec.of(info).shape for info in model.outputs if info.name == name) or ()
    return frozenset(i for i, a in enumerate(shape) if isinstance(a, int) or a in given)
