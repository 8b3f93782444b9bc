"""Score channels by how much they vary on data, times what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import fluctuations, score
from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores


@dataclass(frozen=True)
class ScoreVariance(Analysis):
    """Score each channel by the variance of its input times the squared length of what reads it.

    A channel that is constant is worth nothing: a bias stands in for it. Several readers add up,
    each relative to its mean.
    Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models"
    (FLAP), AAAI 2024, arXiv:2312.11983, eq. (5).
    """

    name: ClassVar[str] = "score-variance"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> Scores:
        return score(
            state, self.name, fluctuations, samples=self.samples, custom_ops=self.custom_ops
        )
