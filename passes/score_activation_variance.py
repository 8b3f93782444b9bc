"""Score channels by how much they vary on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import Reading, ReadingScore, variances
from onnxprune.readers.stats import FloatArray, IntArray


@dataclass(frozen=True)
class ScoreActivationVariance(ReadingScore):
    """Score each channel by its variance where it is read, whatever the weights.

    What weights say of a channel is left out on purpose: the baseline that tells what they add.
    """

    name: ClassVar[str] = "score-activation-variance"

    def measure(self, reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
        return variances(reading, channels)
