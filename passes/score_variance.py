"""Score channels by how much they vary on data, times what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import Reading, ReadingScore, fluctuations
from onnxprune.readers.stats import FloatArray, IntArray


@dataclass(frozen=True)
class ScoreVariance(ReadingScore):
    """Score each channel by the variance of its input times the squared length of what reads it.

    A channel that is constant is worth nothing: a bias stands in for it. Several readers add up,
    each relative to its mean.
    Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models"
    (FLAP), AAAI 2024, arXiv:2312.11983, eq. (5).
    """

    name: ClassVar[str] = "score-variance"

    def measure(self, reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
        return fluctuations(reading, channels)
