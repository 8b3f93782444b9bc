"""Score channels by how far their filters are from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import FloatArray, Scores, Touches, finish, grams


@dataclass(frozen=True)
class ScoreFpgm(Analysis):
    """Score each channel by the sum of distances from its filter to the others of its part.

    A filter near the geometric median of all is what the others can make up for. A Dim whose
    channels no filter makes is scored by the L2 norm of what it touches.
    Source: He et al., "Filter Pruning via Geometric Median", CVPR 2019, arXiv:1811.00250, eq. (7).
    """

    name: ClassVar[str] = "score-fpgm"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    def run(self, state: State) -> Scores:
        dims = state[Dims]
        touches = Touches(state.model, dims)
        scores = touches.magnitude(np.square, np.sqrt)
        for part, gram in grams(touches):
            scores[part] = distances(gram).sum(axis=1)
        return finish(dims, scores, self.name)


def distances(gram: FloatArray) -> FloatArray:
    """Distances between vectors from their inner products; shape (vectors, vectors)."""
    energy = np.diag(gram)
    found: FloatArray = np.sqrt(np.maximum(energy[:, None] + energy[None, :] - 2 * gram, 0.0))
    np.fill_diagonal(found, 0.0)
    return found
