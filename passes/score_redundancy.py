"""Score channels by what the other filters cannot make up for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.errors import UsageError, did_you_mean
from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import FloatArray, Scores, Touches, finish, grams

# Keeps the inverse of the inner products finite where there are more filters than weights in one.
RIDGE = 1e-4
# Filters of wide parts go so many at a time; which is best among them is still exact.
ROUNDS = 256
CANDIDATES = 4


@dataclass(frozen=True)
class ScoreRedundancy(Analysis):
    """Score each channel by what is lost of its filter when it goes and others take over.

    Filters go one by one, the most redundant first, and a score counts only what is still there
    then: of two equal filters one is worth nothing, the other all. A Dim whose channels no filter
    makes is scored by the L2 norm of what it touches.
    Source: cosine: Ayinde and Zurada, "Building Efficient ConvNets using Redundant Feature
    Pruning", ICLR workshop 2018, arXiv:1802.07653; fit: the optimal brain surgeon of Hassibi and
    Stork, NIPS 1992, with the filters' own inner products for the Hessian.
    """

    name: ClassVar[str] = "score-redundancy"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    by: str = "fit"
    """What redundancy is: fit (what a least-squares fit by the others leaves) or cosine."""

    def run(self, state: State) -> Scores:
        if self.by not in MEASURES:
            raise UsageError(
                f"`{self.name}`: no measure is named `{self.by}`",
                hint=did_you_mean(self.by, MEASURES),
            )
        dims = state[Dims]
        touches = Touches(state.model, dims)
        scores = touches.magnitude(np.square, np.sqrt)
        for part, gram in grams(touches):
            scores[part] = MEASURES[self.by](gram)
        return finish(dims, scores, self.name)


def by_cosine(gram: FloatArray) -> FloatArray:
    """1 - the largest |cosine| to a filter that is still there; of a pair the shorter goes."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    unit = np.where(norms > 0, norms, 1.0)
    cosine = np.abs(gram / unit[:, None] / unit[None, :])
    np.fill_diagonal(cosine, -1.0)
    scores, worst = np.ones(len(gram)), 0.0
    for index in np.flatnonzero(norms == 0):
        scores[index] = 0.0
        cosine[index] = cosine[:, index] = -1.0
    nearest = cosine.max(axis=1)
    for _ in range(int((norms > 0).sum()) - 1):
        a = int(nearest.argmax())
        b = int(cosine[a].argmax())
        gone = a if (norms[a], -a) < (norms[b], -b) else b
        worst = max(worst, 1.0 - min(float(cosine[a, b]), 1.0))
        scores[gone] = worst
        cosine[gone] = cosine[:, gone] = -1.0
        stale = (nearest > -1) & (cosine.max(axis=1) < nearest)
        nearest[stale] = cosine[stale].max(axis=1)
        nearest[gone] = -1.0
    return scores


def by_fit(gram: FloatArray) -> FloatArray:
    """The energy of each filter that a fit by those still there leaves, in order of leaving."""
    count = len(gram)
    inverse = np.linalg.inv(gram + RIDGE * max(np.trace(gram) / count, 1e-30) * np.eye(count))
    each = -(-count // ROUNDS)
    left, scores, worst = np.arange(count), np.zeros(count), 0.0
    while len(left):
        near = np.argsort(-np.diag(inverse), kind="stable")[: CANDIDATES * each]
        gone, costs = _eliminate(inverse[np.ix_(near, near)], min(each, len(left)))
        worst = max(worst, costs[0])
        for at, cost in zip(near[gone], costs, strict=True):
            worst = max(worst, cost)
            scores[left[at]] = worst
        chosen = near[gone]
        solved = np.linalg.solve(inverse[np.ix_(chosen, chosen)], inverse[chosen])
        inverse = inverse - inverse[:, chosen] @ solved
        rest = np.setdiff1d(np.arange(len(left)), chosen)
        inverse, left = inverse[np.ix_(rest, rest)], left[rest]
    return scores


def _eliminate(inverse: FloatArray, count: int) -> tuple[list[int], list[float]]:
    """The next `count` to go, in order, and what each leaves."""
    gone: list[int] = []
    costs: list[float] = []
    for _ in range(count):
        diagonal = np.diag(inverse).copy()
        diagonal[gone] = -np.inf
        at = int(diagonal.argmax())
        gone.append(at)
        costs.append(1.0 / max(float(diagonal[at]), 1e-30))
        inverse = inverse - np.outer(inverse[:, at], inverse[at]) / max(inverse[at, at], 1e-30)
    return gone, costs


MEASURES = {"fit": by_fit, "cosine": by_cosine}
