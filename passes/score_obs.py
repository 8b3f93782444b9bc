"""Score channels by what the others cannot make up for on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.damage.activations import DataScore, calibration, completed
from onnxprune.damage.curves import Study
from onnxprune.identity.dims import Dims
from onnxprune.manager import State
from onnxprune.planning.scores import Scores
from onnxprune.readers.folds import folds


@dataclass(frozen=True)
class ScoreObs(DataScore):
    """Score each channel by when it goes, if the one that all readers miss least goes first.

    After each round the readers' other weights are moved to make up for what went: of two channels
    that tell the same one goes early, the other late. Scores are ranks within a Dim.
    Source: the optimal brain surgeon of Hassibi and Stork, NIPS 1992, structured as in Frantar and
    Alistarh, "Optimal Brain Compression", NeurIPS 2022, arXiv:2208.11580, over all readers at once.
    """

    name: ClassVar[str] = "score-obs"

    def run(self, state: State) -> Scores:
        dims, (fit, decide) = state[Dims], calibration(state, self.name)
        study = Study(
            state.model,
            state.subject.shapes[0],
            dims,
            folds(fit, decide, self.samples),
            state.seed,
            self.custom_ops,
        )
        total, seen = np.zeros(dims.count), np.zeros(dims.count, np.bool_)
        for index, order in study.orders().items():
            own = dims.dims[index].channels
            ranks = np.unique(order, return_inverse=True)[1]
            total[own], seen[own] = 1.0 + ranks, True
        return completed(state, self.name, total, seen)
