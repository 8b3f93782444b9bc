"""Hypothesis strategies: small ONNX graphs that mix the rules, block after block.

The structure is drawn, the weights are random, so that a wrong channel shows. The batch is
dynamic; the length of a sequence or signal may be.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from onnx import ModelProto

import tests.blocks.attention
import tests.blocks.common
import tests.blocks.flat
import tests.blocks.grid
import tests.blocks.tokens  # noqa: F401  # each registers its blocks
from tests.sketch import BRIDGES, FLAT, GRID, TOKENS, Sketch, Tensor

CLASSES = 3
OPSETS = (17, 18, 21, 23)
INPUT = 3
"""Channels of the graph input: they are the caller's, so nothing of them may go."""


@st.composite
def graphs(draw: DrawFn, kinds: tuple[str, ...] = (FLAT, TOKENS, GRID)) -> ModelProto:
    """A model from one input to one output, through one to three layouts."""
    s = Sketch(draw, draw(st.integers(0, 2**16)), draw(st.sampled_from(OPSETS)))
    x = first = _start(s, s.pick(kinds))
    x = s.project(x, s.pick([4, 6, 8]))
    x = s.chain(x, 4)
    for _ in range(s.number(0, 2)):
        x = _cross(s, x)
        x = s.chain(x, 3)
    x = s.project(x, CLASSES)
    return s.model({"x": first.shape}, {x.name: x.shape}, opset=s.opset)


def _start(s: Sketch, kind: str) -> Tensor:
    spaces: dict[str, list[tuple[int | str, ...]]] = {
        FLAT: [()],
        TOKENS: [(4,), (5,), ("t",)],
        GRID: [(4, 4), (8,), (6, 6), ("t",), ("h", "w")],
    }
    return Tensor("x", kind, INPUT, s.pick(spaces[kind]))


def _cross(s: Sketch, x: Tensor) -> Tensor:
    """On to another layout, where one fits."""
    return s.pick([made for made, fits in BRIDGES[x.kind] if fits(x)])(s, x)
