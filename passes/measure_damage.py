"""Measure what each Dim's removal costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.curves import Measured, Study
from onnxprune.errors import PruneError
from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.damage import Damage, Measurement
from onnxprune.planning.scores import Scores
from onnxprune.readers.folds import folds
from onnxprune.records.curvefile import CurveFile, restore
from onnxprune.repair.copies import uncoupled


@dataclass(frozen=True)
class MeasureDamage(Analysis):
    """Measure, on held-out calibration samples and after repair, what each width costs.

    Where the state holds curves from a file, these are taken.
    """

    name: ClassVar[str] = "measure-damage"
    needs: ClassVar[tuple[type, ...]] = (Dims, Scores)
    gives: ClassVar[type] = Damage

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""
    copies: bool = False
    """Each node that shares a small weight is taken to get one of its own, as `repair-readers`
    would give it."""
    required: bool = False
    """Fail where the model does not run on the data; else scores stand in, with a warning."""

    def run(self, state: State) -> Damage:
        dims, written = state[Dims], state.past_or_none(CurveFile)
        found: Mapping[int, Measurement] = (
            self._measured(state) if written is None else restore(written, state.model, dims)
        )
        return Damage.of_each(found)

    def _measured(self, state: State) -> dict[int, Measured]:
        assert state.calibration is not None, "there is data to measure on"
        fit, decide = state.calibration
        study = Study(
            uncoupled(state.model) if self.copies else state.model,
            state.subject.shapes[0],
            state[Dims],
            folds(fit, decide, self.samples),
            state.seed,
            self.custom_ops,
            workers=state.workers,
        )
        try:
            return study.run()
        except PruneError as error:
            if self.required:
                raise
            state.warnings.append(f"`{self.name}` left out: {error.what}")
            return {}
