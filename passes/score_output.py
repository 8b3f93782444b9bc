"""Score channels by what the model's outputs lose without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import DataScore, Reading, calibration, energies, score
from onnxprune.damage.outputs import factors
from onnxprune.identity.dims import Dims
from onnxprune.manager import State
from onnxprune.planning.scores import Scores
from onnxprune.readers.find import find_views
from onnxprune.readers.stats import FloatArray, IntArray


@dataclass(frozen=True)
class ScoreOutput(DataScore):
    """Score each channel by what it adds to its readers, times what errors there cost the outputs.

    What a reader's error costs is measured, without gradients: noise is added to what it gives, and
    the rest of the model is run again. A channel's part is its mean square relative to the variance
    of what the reader gives. A reader that cannot be measured counts as the average one. Noise is
    tried on a few of the samples.
    """

    name: ClassVar[str] = "score-output"

    def run(self, state: State) -> Scores:
        _, decide = calibration(state, self.name)
        shapes = state.subject.shapes[0]
        views = [*find_views(state.model, shapes, state[Dims].ties).values()]
        costs = factors(state.model, shapes, views, decide, state.seed, self.custom_ops)
        average = sum(costs.values()) / len(costs) if costs else 1.0

        def measure(reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
            return costs.get(reading.view.key, average) * energies(reading, channels)

        return score(
            state,
            self.name,
            measure,
            samples=self.samples,
            custom_ops=self.custom_ops,
            by_mean=False,
        )
