"""Measure what each Dim's removal costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.curves import Study
from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.damage import Damage
from onnxprune.planning.scores import Scores
from onnxprune.readers.folds import folds


@dataclass(frozen=True)
class MeasureDamage(Analysis):
    """Measure, on held-out calibration samples and after repair, what each width costs."""

    name: ClassVar[str] = "measure-damage"
    needs: ClassVar[tuple[type, ...]] = (Dims, Scores)
    gives: ClassVar[type] = Damage

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()

    def run(self, state: State) -> Damage:
        dims = state[Dims]
        assert state.calibration is not None
        fit, decide = state.calibration
        study = Study(
            state.model,
            state.subject.shapes[0],
            dims,
            folds(fit, decide, self.samples),
            state.seed,
            self.custom_ops,
        )
        found = study.run()
        scores = state[Scores].of.copy()
        for index, made in found.items():
            scores[dims.dims[index].channels] = 1 + made.order
        state.facts[Scores] = Scores(scores)
        return Damage({index: made.curve for index, made in found.items()})
