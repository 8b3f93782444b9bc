"""Score channels by the L2 norm of what makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores, Touches, finish


@dataclass(frozen=True)
class ScoreL2(Analysis):
    """Score each channel by the L2 norm of the filters that make it.

    Several producers add up, each relative to its mean.
    Source: the magnitude criterion of Li et al., ICLR 2017, with the Euclidean norm.
    """

    name: ClassVar[str] = "score-l2"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    def run(self, state: State) -> Scores:
        dims = state[Dims]
        return finish(dims, Touches(state.model, dims).magnitude(np.square, np.sqrt), self.name)
