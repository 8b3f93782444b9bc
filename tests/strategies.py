"""Hypothesis strategies: small ONNX graphs that mix the rules, block after block.

The structure is drawn, the weights are random, so that a wrong channel shows. The batch is
dynamic; the length of a sequence or signal may be.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from onnx import ModelProto, TensorProto

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
WIDTHS = (4, 6, 8)
WORDS = 10
SPACES: dict[str, list[tuple[int | str, ...]]] = {
    FLAT: [()],
    TOKENS: [(4,), (5,), ("t",)],
    GRID: [(4, 4), (8,), (6, 6), ("t",), ("h", "w")],
}


@st.composite
def graphs(draw: DrawFn, kinds: tuple[str, ...] = (FLAT, TOKENS, GRID)) -> ModelProto:
    """A model from one input to one output, through one to three layouts."""
    s = Sketch(draw, draw(st.integers(0, 2**16)), draw(st.sampled_from(OPSETS)))
    kind = s.pick(kinds)
    if kind == TOKENS and s.number(0, 3) == 3:
        return _words(s)
    x = first = Tensor("x", kind, INPUT, s.pick(SPACES[kind]))
    x = _middle(s, s.project(x, s.pick(WIDTHS)))
    x = s.project(x, CLASSES)
    return s.model({"x": first.shape}, {x.name: x.shape}, opset=s.opset)


def _words(s: Sketch) -> ModelProto:
    """Indices are looked up in a table, which may be the last product's weight as well."""
    width = s.pick(WIDTHS)
    table = s.fan(WORDS, width, fan=width)
    space = s.pick(SPACES[TOKENS])
    x = Tensor(s.node("Gather", table, "x", axis=0), TOKENS, width, space)
    x = _middle(s, x)
    if x.kind != GRID and s.flag():
        turned = s.node("Transpose", table, perm=[1, 0])
        x = x.as_(s.node("MatMul", s.project(x, width).name, turned), width=WORDS)
    else:
        x = s.project(x, CLASSES)
    types = {"x": int(TensorProto.INT64)}
    return s.model({"x": ["n", *space]}, {x.name: x.shape}, opset=s.opset, types=types)


def _middle(s: Sketch, x: Tensor) -> Tensor:
    """Blocks, and on to other layouts where they fit."""
    x = s.chain(x, 4)
    for _ in range(s.number(0, 2)):
        x = s.pick([made for made, fits in BRIDGES[x.kind] if fits(x)])(s, x)
        x = s.chain(x, 3)
    return x
