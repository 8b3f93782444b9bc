"""Score channels by their weights times what meets them on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import magnitudes, score
from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores


@dataclass(frozen=True)
class ScoreActivation(Analysis):
    """Score each channel by the lengths of its readers' weights times the length of its input.

    A weight that is large but meets nothing is worth nothing. Several readers add up, each relative
    to its mean.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda),
    ICLR 2024, arXiv:2306.11695, summed over outputs, with the Euclidean norm over taps.
    """

    name: ClassVar[str] = "score-activation"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> Scores:
        return score(
            state, self.name, magnitudes, samples=self.samples, custom_ops=self.custom_ops
        )
