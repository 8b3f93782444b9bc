"""Score channels by their weights times what meets them on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.damage.activations import Reading, ReadingScore, magnitudes
from onnxprune.readers.stats import FloatArray, IntArray


@dataclass(frozen=True)
class ScoreActivation(ReadingScore):
    """Score each channel by the lengths of its readers' weights times the length of its input.

    A weight that is large but meets nothing is worth nothing. Several readers add up, each relative
    to its mean.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda),
    ICLR 2024, arXiv:2306.11695, summed over outputs, with the Euclidean norm over taps.
    """

    name: ClassVar[str] = "score-activation"

    def measure(self, reading: Reading, channels: Sequence[IntArray]) -> FloatArray:
        return magnitudes(reading, channels)
