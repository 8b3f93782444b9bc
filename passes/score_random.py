"""Random scores: the baseline every other score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores


@dataclass(frozen=True)
class ScoreRandom(Analysis):
    """Score channels at random, by the run's seed."""

    name: ClassVar[str] = "score-random"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    def run(self, state: State) -> Scores:
        generator = np.random.default_rng(state.seed)
        return Scores(generator.uniform(0.5, 1.5, state[Dims].count))
