"""Blocks on one vector a sample: products of every kind, tied weights, batched weights."""

from __future__ import annotations

from typing import Any

from tests.sketch import FLAT, GRID, TOKENS, Sketch, Tensor, block, bridge, divisors

WIDTHS = (4, 6, 8, 9, 12)


@block(FLAT)
def gemm(s: Sketch, x: Tensor) -> Tensor:
    """Either factor may be stored transposed; the bias may be a row, a number or missing."""
    width, more = s.pick(WIDTHS), dict[str, Any]()
    name = x.name
    if s.number(0, 3) == 3:
        name, more["transA"] = s.node("Transpose", name, perm=[1, 0]), 1
    turned = s.flag()
    weight = s.fan(*((width, x.width) if turned else (x.width, width)), fan=x.width)
    if turned:
        more["transB"] = 1
    bias = s.pick([None, (width,), (1, width), (1,), ()])
    if s.flag():
        more |= {"alpha": 0.7, "beta": 1.3}
    inputs = [name, weight] + ([] if bias is None else [s.weight(*bias)])
    return x.as_(s.node("Gemm", *inputs, **more), width=width)


@block(FLAT)
def linear(s: Sketch, x: Tensor) -> Tensor:
    """A product and a bias, and a function between two of them."""
    width = s.pick(WIDTHS)
    y = s.node("MatMul", x.name, s.matrix(x.width, width))
    y = s.node("Add", y, s.weight(*[1] * s.number(0, 1), width))
    return x.as_(s.node("Relu", y) if s.flag() else y, width=width)


@block(FLAT)
def from_the_left(s: Sketch, x: Tensor) -> Tensor:
    """The weight stands before the data."""
    width = s.pick(WIDTHS)
    y = s.node("Transpose", x.name, perm=[1, 0])
    y = s.node("MatMul", s.fan(width, x.width, fan=x.width), y)
    return x.as_(s.node("Transpose", y, perm=[1, 0]), width=width)


@block(FLAT)
def einsum(s: Sketch, x: Tensor) -> Tensor:
    """A product with letters."""
    width = s.pick(WIDTHS)
    turned = s.flag()
    weight = s.fan(*((width, x.width) if turned else (x.width, width)), fan=x.width)
    equation = s.pick(["ni,{w}->no", "n i, {w} -> n o"]).format(w="oi" if turned else "io")
    return x.as_(s.node("Einsum", x.name, weight, equation=equation), width=width)


@block(FLAT)
def tied(s: Sketch, x: Tensor) -> Tensor:
    """There and back by the same weight."""
    inner = s.pick(WIDTHS)
    weight = s.fan(x.width, inner, fan=x.width)
    y = s.node("Tanh", s.node("MatMul", x.name, weight))
    if s.flag():
        return x.as_(s.node("Gemm", y, weight, transB=1))
    return x.as_(s.node("MatMul", y, s.node("Transpose", weight, perm=[1, 0])))


@block(FLAT)
def same_twice(s: Sketch, x: Tensor) -> Tensor:
    """One square weight, applied twice; one bias, added twice."""
    weight, bias = s.fan(x.width, x.width, fan=x.width), s.weight(x.width)
    for _ in range(2):
        x = s.on(s.on(s.on(x, "MatMul", weight), "Add", bias), "Tanh")
    return x


@block(FLAT)
def vector_norm(s: Sketch, x: Tensor) -> Tensor:
    """BatchNormalization of vectors."""
    vectors = s.positive(x.width), s.weight(x.width), s.weight(x.width), s.positive(x.width)
    return s.on(x, "BatchNormalization", *vectors)


@block(FLAT, when=lambda x: x.width > 3)
def layer_norm(s: Sketch, x: Tensor) -> Tensor:
    """Mean and variance over the columns."""
    return s.on(x, "LayerNormalization", s.positive(x.width), s.weight(x.width), epsilon=0.1)


@block(FLAT, when=lambda x: len(divisors(x.width)) > 2)
def experts(s: Sketch, x: Tensor) -> Tensor:
    """Groups of columns, each with a matrix of its own out of one batched weight."""
    groups = s.pick(divisors(x.width)[1:-1])
    each, out = x.width // groups, s.number(2, 5)
    y = s.reshape(x.name, ["n", groups, each], x.shape)
    weight = s.fan(groups, each, out, fan=each)
    if s.flag():
        y = s.node("Einsum", y, weight, equation="nge,geo->ngo")
    else:
        y = s.node("MatMul", s.node("Transpose", y, perm=[1, 0, 2]), weight)
        if s.flag():
            y = s.node("Add", y, s.weight(groups, 1, out))
        y = s.node("Transpose", y, perm=[1, 0, 2])
    return x.as_(s.reshape(y, ["n", groups * out], ["n", groups, out]), width=groups * out)


@block(FLAT)
def mixture(s: Sketch, x: Tensor) -> Tensor:
    """Every expert is asked; a softmax weighs what they say."""
    count, out = 3, s.pick(WIDTHS)
    share = s.node("Softmax", s.node("MatMul", x.name, s.fan(x.width, count, fan=x.width)), axis=-1)
    bank = s.fan(count, x.width, out, fan=x.width)
    said = s.node("Einsum", x.name, bank, equation="ni,gio->ngo")
    said = s.node("Mul", said, s.node("Unsqueeze", share, s.ints(2)))
    return x.as_(s.reduce("ReduceSum", said, [1], keep=False), width=out)


@block(FLAT)
def bilinear(s: Sketch, x: Tensor) -> Tensor:
    """Each output is a form of two vectors."""
    a, b, out = s.project(x, s.number(2, 4)), s.project(x, s.number(2, 4)), s.pick(WIDTHS)
    cube = s.weight(out, a.width, b.width)
    y = s.node("Einsum", a.name, cube, b.name, equation="na,oab,nb->no")
    return x.as_(y, width=out)


@block(FLAT, when=lambda x: x.width > 2)
def scattered(s: Sketch, x: Tensor) -> Tensor:
    """Rows of a learned table, looked up by the data."""
    best = s.node("ArgMax", s.project(x, 3).name, axis=1, keepdims=0)
    rows = s.node("Gather", s.weight(3, x.width), best, axis=0)
    return s.on(x, "Add", rows)


@bridge(FLAT, when=lambda x: x.width % 4 == 0)
def to_image(s: Sketch, x: Tensor) -> Tensor:
    """Columns become channels of a small image."""
    width = x.width // 4
    y = s.reshape(x.name, ["n", width, 2, 2], x.shape)
    return Tensor(y, GRID, width, (2, 2))


@bridge(FLAT)
def to_pixel(s: Sketch, x: Tensor) -> Tensor:
    """An image of one pixel grows by a transposed convolution."""
    y = s.node("Unsqueeze", x.name, s.ints(2, 3))
    width = s.pick(WIDTHS)
    weight = s.fan(x.width, width, 3, 3, fan=x.width)
    return Tensor(s.node("ConvTranspose", y, weight), GRID, width, (3, 3))


@bridge(FLAT, when=lambda x: len(divisors(x.width)) > 2)
def to_rows(s: Sketch, x: Tensor) -> Tensor:
    """Columns become a few tokens."""
    count = s.pick(divisors(x.width)[1:-1])
    y = s.reshape(x.name, ["n", count, x.width // count], x.shape)
    return Tensor(y, TOKENS, x.width // count, (count,))
