"""Blocks on sequences: products, norms, recurrent cells, convolutions, class tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sketch import FLAT, GRID, TOKENS, Sketch, Tensor, block, bridge, divisors

WIDTHS = (4, 6, 8, 9, 12)


@block(TOKENS)
def linear(s: Sketch, x: Tensor) -> Tensor:
    """A product with a bias, which may stand first."""
    width = s.pick(WIDTHS)
    y = s.node("MatMul", x.name, s.matrix(x.width, width))
    bias = s.weight(width)
    return x.as_(s.node("Add", *([y, bias] if s.flag() else [bias, y])), width=width)


@block(TOKENS)
def einsum(s: Sketch, x: Tensor) -> Tensor:
    """A product with letters, or with dots."""
    width = s.pick(WIDTHS)
    equation = s.pick(["ntd,de->nte", "...d,de->...e", "ntd,de"])
    weight = s.fan(x.width, width, fan=x.width)
    y = s.node("Einsum", x.name, weight, equation=equation)
    if equation == "ntd,de":
        y = s.node("Transpose", y, perm=[1, 2, 0])  # letters in order: e, n, t
    return x.as_(y, width=width)


@block(TOKENS)
def feed_forward(s: Sketch, x: Tensor) -> Tensor:
    """A norm, two products with a function between, and what was read is added."""
    inner = s.pick(WIDTHS)
    y = s.step_norm(x) if s.flag() else x
    y = y.as_(s.node("MatMul", y.name, s.matrix(x.width, inner)), width=inner)
    if s.flag():
        other = s.node("MatMul", x.name, s.matrix(x.width, inner))
        y = s.on(s.on(y, "Sigmoid"), "Mul", other)
    else:
        y = s.on(s.on(y, "Add", s.weight(inner)), "Relu")
    y = y.as_(s.node("MatMul", y.name, s.matrix(inner, x.width)), width=x.width)
    return s.on(x, "Add", y.name)


@block(TOKENS, when=lambda x: x.width > 3)
def norm(s: Sketch, x: Tensor) -> Tensor:
    """Over channels, by the operator or written out."""
    return s.step_norm(x)


@block(TOKENS, when=lambda x: len(divisors(x.width)) > 2)
def batched_weights(s: Sketch, x: Tensor) -> Tensor:
    """Heads, each with a matrix of its own."""
    heads = s.pick(divisors(x.width)[1:-1])
    each, out = x.width // heads, s.number(2, 5)
    y = s.reshape(x.name, [*x.shape[:2], heads, each], x.shape)
    y = s.node("Transpose", y, perm=[0, 2, 1, 3])
    weight = s.fan(*[1] * s.number(0, 1), heads, each, out, fan=each)
    y = s.node("MatMul", y, weight)
    if s.flag():
        y = s.node("Mul", y, s.weight(s.pick([heads, 1]), 1, s.pick([out, 1])))
    y = s.node("Transpose", y, perm=[0, 2, 1, 3])
    y = s.reshape(y, [*x.shape[:2], heads * out], [*x.shape[:2], heads, out])
    return x.as_(y, width=heads * out)


@block(TOKENS)
def convolved(s: Sketch, x: Tensor) -> Tensor:
    """A convolution along the tokens, depthwise or not."""
    width = s.pick([*WIDTHS, x.width])
    groups = s.pick(divisors(x.width, width))
    y = s.node("Transpose", x.name, perm=[0, 2, 1])
    weight = s.fan(width, x.width // groups, 3, fan=3 * x.width // groups)
    y = s.node("Conv", y, weight, s.weight(width), pads=[1, 1], group=groups)
    return x.as_(s.node("Transpose", y, perm=[0, 2, 1]), width=width)


@block(TOKENS, when=lambda x: x.is_static and x.area > 2)
def fewer_tokens(s: Sketch, x: Tensor) -> Tensor:
    """Some tokens are dropped: a range of them, or every second one."""
    step = s.number(1, 2)
    start, end = s.number(0, 1), s.pick([x.area, 2**31 - 1])
    y = s.node("Slice", x.name, s.ints(start), s.ints(end), s.ints(1), s.ints(step))
    return x.as_(y, space=(len(range(start, x.area, step)),))


@block(TOKENS, when=lambda x: x.is_static)
def token_mixer(s: Sketch, x: Tensor) -> Tensor:
    """A product over tokens: channels pass."""
    y = s.node("Transpose", x.name, perm=[0, 2, 1])
    inner = s.pick(WIDTHS)
    y = s.node("Relu", s.node("MatMul", y, s.fan(x.area, inner, fan=x.area)))
    y = s.node("MatMul", y, s.fan(inner, x.area, fan=inner))
    return s.on(x, "Add", s.node("Transpose", y, perm=[0, 2, 1]))


@block(TOKENS, when=lambda x: x.is_static and x.area > 2)
def scattered(s: Sketch, x: Tensor) -> Tensor:
    """Some tokens are replaced by what others become."""
    turned = s.node("Transpose", x.name, perm=[1, 0, 2])
    order = s.rng.permutation(x.area)
    count = s.number(1, x.area - 1)
    made = s.node("Gather", turned, s.ints(*(int(i) for i in order[:count])), axis=0)
    made = s.node("Tanh", s.node("MatMul", made, s.fan(x.width, x.width, fan=x.width)))
    at = s.add(np.sort(order)[-count:, None], np.int64)
    y = s.node("ScatterND", turned, at, made, **s.pick([{}, {"reduction": "add"}]))
    return x.as_(s.node("Transpose", y, perm=[1, 0, 2]))


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _cell(s: Sketch, x: Tensor, hidden: int) -> tuple[str, int, list[str]]:
    """A recurrent cell over the tokens; its directions and outputs."""
    op, both = s.pick(["LSTM", "GRU", "RNN"]), s.flag()
    directions, gates = 1 + both, GATES[op] * hidden
    turned = s.node("Transpose", x.name, perm=[1, 0, 2])
    operands = [
        s.fan(directions, gates, x.width, fan=x.width),
        s.fan(directions, gates, hidden, fan=hidden),
        s.weight(directions, 2 * gates) if s.flag() else "",
    ]
    if s.flag():
        shape = s.node("Concat", s.ints(directions), s.length(x.name, 0), s.ints(hidden), axis=0)
        start = s.node("ConstantOfShape", shape) if s.flag() else s.node(
            "Expand", s.weight(directions, 1, hidden), shape)  # fmt: skip
        operands += ["", start]
    more: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" and s.flag() else {}
    direction = "bidirectional" if both else s.pick(["forward", "reverse"])
    outputs = s.several(op, turned, 2, *operands, hidden_size=hidden, direction=direction, **more)
    return op, directions, outputs


@block(TOKENS)
def recurrent(s: Sketch, x: Tensor) -> Tensor:
    """All states of a cell, both directions beside each other or added."""
    hidden = s.pick([3, 4, 6])
    _, directions, (y, _) = _cell(s, x, hidden)
    if directions == 1 and s.flag():
        y = s.node("Transpose", s.node("Squeeze", y, s.ints(1)), perm=[1, 0, 2])
        return x.as_(y, width=hidden)
    if s.flag():
        y = s.reduce("ReduceSum", y, [1], keep=False)
        return x.as_(s.node("Transpose", y, perm=[1, 0, 2]), width=hidden)
    y = s.node("Transpose", y, perm=[2, 0, 1, 3])
    y = s.node("Reshape", y, s.ints(0, 0, s.pick([directions * hidden, -1])))
    return x.as_(y, width=directions * hidden)


@bridge(TOKENS)
def last_state(s: Sketch, x: Tensor) -> Tensor:
    """The last state of a cell, or of the last token."""
    hidden = s.pick([3, 4, 6])
    _, directions, (_, state) = _cell(s, x, hidden)
    if directions == 2 and s.flag():
        first, second = s.several("Split", state, 2, s.ints(1, 1), axis=0)
        both = [s.node("Squeeze", one, s.ints(0)) for one in (second, first)]
        return Tensor(s.node("Concat", *both, axis=-1), FLAT, 2 * hidden)
    y = s.node("Transpose", state, perm=[1, 0, 2])
    width = directions * hidden
    return Tensor(s.reshape(y, ["n", width], ["n", directions, hidden]), FLAT, width)


@bridge(TOKENS)
def pooled(s: Sketch, x: Tensor) -> Tensor:
    """Mean, sum or largest over tokens."""
    op = s.pick(["ReduceMean", "ReduceSum", "ReduceMax"])
    return Tensor(s.reduce(op, x.name, [1], keep=False), FLAT, x.width)


@bridge(TOKENS)
def one_token(s: Sketch, x: Tensor) -> Tensor:
    """The first or the last token."""
    at = s.pick([0, -1])
    if s.flag():
        return Tensor(s.node("Gather", x.name, s.add(at, np.int64), axis=1), FLAT, x.width)
    bounds = s.ints(at), s.ints(1 if at == 0 else 2**31 - 1), s.ints(1)
    return Tensor(s.node("Squeeze", s.node("Slice", x.name, *bounds), s.ints(1)), FLAT, x.width)


@bridge(TOKENS, when=lambda x: 0 < x.area <= 20)
def flattened(s: Sketch, x: Tensor) -> Tensor:
    """All tokens beside each other."""
    width = x.area * x.width
    if s.flag():
        return Tensor(s.node("Flatten", x.name), FLAT, width)
    return Tensor(s.reshape(x.name, ["n", width], x.shape), FLAT, width)


@bridge(TOKENS)
def attention_pool(s: Sketch, x: Tensor) -> Tensor:
    """A softmax over tokens weighs them."""
    scores = s.node("MatMul", x.name, s.fan(x.width, 1, fan=x.width))
    share = s.node("Softmax", scores, axis=1)
    y = s.node("Mul", x.name, share)
    return Tensor(s.reduce("ReduceSum", y, [1], keep=False), FLAT, x.width)


@bridge(TOKENS)
def to_signal(s: Sketch, x: Tensor) -> Tensor:
    """Tokens become positions of a signal."""
    return Tensor(s.node("Transpose", x.name, perm=[0, 2, 1]), GRID, x.width, x.space)


@bridge(TOKENS, when=lambda x: x.area in (4, 9, 16, 36))
def to_image(s: Sketch, x: Tensor) -> Tensor:
    """Tokens become pixels again."""
    side = round(x.area**0.5)
    y = s.node("Transpose", x.name, perm=[0, 2, 1])
    y = s.reshape(y, ["n", x.width, side, side], ["n", x.width, x.area])
    return Tensor(y, GRID, x.width, (side, side))
