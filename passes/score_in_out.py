"""Score channels by what makes them times what reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores, Touches, finish, in_out


@dataclass(frozen=True)
class ScoreInOut(Analysis):
    """Score each channel by the L2 norm of its producers times that of its readers.

    A channel that nobody reads with weight is worth nothing however large its filter is, and the
    product does not change when a layer is scaled up and the next one down.
    Source: the cross-layer magnitude of Park et al., "Lookahead", ICLR 2020, arXiv:2002.04809,
    eq. (4), for structured units.
    """

    name: ClassVar[str] = "score-in-out"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    def run(self, state: State) -> Scores:
        dims = state[Dims]
        return finish(dims, in_out(Touches(state.model, dims)), self.name)
