"""Score channels by the L1 norm of what makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores, Touches, finish


@dataclass(frozen=True)
class ScoreL1(Analysis):
    """Score each channel by the L1 norm of the filters that make it.

    A Dim with several producers (a residual stream) adds them up, each relative to its mean, so
    that producers of unlike scale compare.
    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710.
    """

    name: ClassVar[str] = "score-l1"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    def run(self, state: State) -> Scores:
        dims = state[Dims]
        return finish(dims, Touches(state.model, dims).magnitude(np.abs), self.name)
