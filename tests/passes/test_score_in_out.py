"""Norms of what makes a channel times norms of what reads it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.passes.score_in_out import ScoreInOut
from tests.builder import Builder
from tests.nets import score, two_layers

FIRST = np.array([[3.0, 0.0, 1.0], [4.0, 3.0, 0.0]])
SECOND = np.array([[0.0, 1.0], [2.0, 0.0], [3.0, 4.0]])


def test_scores_are_products_of_lengths() -> None:
    """By hand: 5 x 1, 3 x 2 and 1 x 5, relative to their mean."""
    [scores] = score(two_layers(FIRST, SECOND), ScoreInOut())
    assert scores == pytest.approx(np.array([5, 6, 5]) * 3 / 16)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_a_layer_scaled_up_and_the_next_one_down_changes_nothing(scale: float) -> None:
    """As a whole, or channel by channel."""
    plain = score(two_layers(FIRST, SECOND), ScoreInOut())[0]
    whole = score(two_layers(FIRST * scale, SECOND / scale), ScoreInOut())[0]
    each = np.array([scale, 1.0, 2.0])
    single = score(two_layers(FIRST * each, SECOND / each[:, None]), ScoreInOut())[0]
    assert whole == pytest.approx(plain)
    assert single == pytest.approx(plain)


def test_a_channel_that_nobody_reads_is_worth_nothing() -> None:
    """However long its filter."""
    second = SECOND.copy()
    second[0] = 0
    [scores] = score(two_layers(FIRST * 100, second), ScoreInOut())
    assert scores[0] == 0
    assert scores[1:].min() > 0


def test_heads_are_scored_by_their_rows() -> None:
    """The head whose values are weak and little read scores below the other."""
    rng = np.random.default_rng(0)
    b = Builder(0)
    parts = [rng.standard_normal((6, 8)) for _ in range(3)]
    parts[2][:, :4] *= 0.01
    def split(w: str) -> str:
        by_head = b.node("Reshape", b.node("MatMul", "x", w), b.ints(0, -1, 2, 4))
        return b.node("Transpose", by_head, perm=[0, 2, 1, 3])
    q, k, v = (split(b.add(w)) for w in parts)
    weights = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])))
    mixed = b.node("Transpose", b.node("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = b.node("MatMul", b.node("Reshape", mixed, b.ints(0, -1, 8)), b.weight(8, 6))
    scores = score(b.model({"x": ["n", 5, 6]}, {y: ["n", 5, 6]}), ScoreInOut())
    [heads] = [s for s in scores if len(s) == 2]
    assert heads[0] < heads[1]
    assert heads.mean() == pytest.approx(1.0)
