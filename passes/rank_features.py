"""Rank the features of a model's inputs by what its outputs owe them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.errors import ModelError, UsageError
from onnxprune.manager import Analysis, State
from onnxprune.verification.sensitivity import Ranking, rank_features
from onnxprune.verification.trials import Unmeasured


@dataclass(frozen=True)
class RankFeatures(Analysis):
    """Shuffle each feature of the inputs among the samples, and see how far the outputs move.

    A feature is a column of a table or a channel of an image. Nothing is cut by this. What
    several features tell alike is shared among them: each may seem to matter little alone.
    Source: Breiman, 2001; Fisher, Rudin, Dominici, 2019 (see `verification/sensitivity`).
    """

    name: ClassVar[str] = "rank-features"
    gives: ClassVar[type] = Ranking

    permutations: int = 5
    """How often each feature is shuffled."""
    samples: int = 512
    """Samples that are looked at, at most; fewer where runs are dear."""
    custom_ops: tuple[str, ...] = ()
    """Libraries of custom operators that the model needs to run."""

    def run(self, state: State) -> Ranking:
        if state.data is None:
            raise UsageError("features are ranked on data, and there is none", hint="give --data")
        if self.permutations < 2 or self.samples < 2:
            raise UsageError("`rank-features` needs at least 2 permutations and 2 samples")
        try:
            return rank_features(
                state,
                permutations=self.permutations,
                samples=self.samples,
                custom_ops=self.custom_ops,
            )
        except Unmeasured as error:
            raise ModelError(error.reason) from error
