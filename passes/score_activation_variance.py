"""Score channels by how much they vary on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import score, variances
from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores


@dataclass(frozen=True)
class ScoreActivationVariance(Analysis):
    """Score each channel by its variance where it is read, whatever the weights.

    What weights say of a channel is left out on purpose: the baseline that tells what they add.
    """

    name: ClassVar[str] = "score-activation-variance"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    samples: int = 640
    """Calibration samples that are looked at, at most."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> Scores:
        return score(
            state, self.name, variances, samples=self.samples, custom_ops=self.custom_ops
        )
