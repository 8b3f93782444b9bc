"""Score channels by the scale of the batch normalisation they pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.identity.dims import Dims
from onnxprune.manager import Analysis, State
from onnxprune.planning.scores import Scores, Touches, finish


@dataclass(frozen=True)
class ScoreBnScale(Analysis):
    """Score each channel by |gamma| of the BatchNormalization it passes.

    Behind the norm a channel has gamma for its standard deviation. Several norms add up, each
    relative to its mean. A Dim without one (a folded norm, a LayerNormalization) is scored by the
    L2 norm of the filters that make it, with a warning.
    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017, arXiv:1708.06519.
    """

    name: ClassVar[str] = "score-bn-scale"
    needs: ClassVar[tuple[type, ...]] = (Dims,)
    gives: ClassVar[type] = Scores

    def run(self, state: State) -> Scores:
        dims = state[Dims]
        touches = Touches(state.model, dims)
        found = touches.gather(np.abs, np.asarray, lambda t: touches.uses.is_norm_scale(t.slot))
        without = [d.name for d in dims.free if not found.seen[d.channels].any()]
        if without:
            named = ", ".join(f"`{name}`" for name in without[:3])
            state.warnings.append(
                f"{self.name}: {len(without)} of {len(dims.free)} Dims pass no "
                f"BatchNormalization and are scored by the L2 norm of their filters: {named}"
                + (", ..." if len(without) > 3 else "")
            )
        norms = touches.magnitude(np.square, np.sqrt)
        return finish(dims, np.where(found.seen, found.total, norms), self.name)
