"""Run the candidate at two sizes of every dynamic axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxprune.backend.feeds import Spec
from onnxprune.errors import ModelError
from onnxprune.manager import State, Subject, Verification
from onnxprune.model.graph import Model
from onnxprune.shape.shapes import Shape
from onnxprune.verification.outputs import seeded_runs
from onnxprune.verification.trials import Unmeasured, plain, sized

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
            found = seeded_runs(state, self.custom_ops)
        except Unmeasured as reason:
            return reason.finding
        strict = strict_axes(sized(state))
        failures = [f"output `{name}` is gone" for name in found.missing]
        notes = list(found.notes)
        runs: list[dict[str, Any]] = []
        for run in found.runs:
            shapes = {name: list(array.shape) for name, array in run.trial.feeds.items()}
            if shapes in runs:
                continue
            if isinstance(run.before, Unmeasured):
                notes.append(f"at {_listed(shapes)} {run.before.reason}")
                continue
            failures += _changes(run.before, run.after, shapes, strict)
            runs.append(shapes)
        if not runs:
            return {"skipped": notes[0] if notes else "there are no inputs to run on"}
        return plain({"passed": not failures, "failures": failures, "notes": notes, "runs": runs})


def _listed(shapes: dict[str, list[int]]) -> str:
    return ", ".join(f"`{name}` {'x'.join(map(str, s)) or 'scalar'}" for name, s in shapes.items())


def _changes(
    before: dict[str, Any],
    after: dict[str, Any] | Unmeasured,
    shapes: dict[str, Any],
    strict: dict[str, frozenset[int] | None],
) -> list[str]:
    """Outputs whose form is not the original's."""
    if isinstance(after, Unmeasured):
        return [f"at {_listed(shapes)} {after.reason}"]
    found = []
    for name, theirs in after.items():
        was, now = form(before[name]), form(theirs)
        if not _is_same(was, now, strict.get(name)):
            found.append(f"output `{name}` was {_text(was)}, is now {_text(now)}")
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
