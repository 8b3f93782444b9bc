"""Random scores."""

from __future__ import annotations

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.passes.score_random import ScoreRandom
from onnxprune.planning.scores import Scores
from tests.nets import run, two_layers

NET = two_layers(np.ones((2, 5)), np.ones((5, 2)))


def test_the_seed_decides() -> None:
    """The same seed gives the same scores, another one others."""
    first, again, other = (run(NET, ScoreRandom(), seed=s)[Scores].of for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_channel_is_worth_nothing() -> None:
    """Random is a baseline for the order of channels, not for emptying a Dim."""
    state = run(NET, ScoreRandom())
    assert state[Scores].of.shape == (state[Dims].count,)
    assert state[Scores].of.min() > 0
