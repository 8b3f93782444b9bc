"""Attention in the forms that exporters make of it, out of small choices that combine."""

from __future__ import annotations

import numpy as np

from tests.sketch import TOKENS, Sketch, Tensor, block

Heads = tuple[str, str, str]


def divided(s: Sketch, x: Tensor, y: str, heads: int, size: int) -> str:
    """[N, T, heads x size] as [N, heads, T, size]."""
    y = s.reshape(y, [*x.shape[:2], heads, size], [*x.shape[:2], heads * size])
    return s.node("Transpose", y, perm=[0, 2, 1, 3])


def made(s: Sketch, x: Tensor, width: int) -> str:
    """A product, with a bias at times."""
    y = s.node("MatMul", x.name, s.matrix(x.width, width))
    return s.node("Add", y, s.weight(width)) if s.flag() else y


def apart(s: Sketch, x: Tensor, heads: int, kv: int, size: int, value: int) -> Heads:
    """Queries, keys and values by products of their own."""
    q, k, v = ((heads, size), (kv, size), (kv, value))
    found = [divided(s, x, made(s, x, h * d), h, d) for h, d in (q, k, v)]
    return found[0], found[1], found[2]


def packed(s: Sketch, x: Tensor, heads: int, size: int) -> Heads:
    """One product makes all three; they are taken apart in one of four ways."""
    how = s.pick(["split", "stacked", "rows", "inside", "minor"])
    y = made(s, x, 3 * heads * size)
    lead = x.shape[:2]
    if how == "split":
        sizes = s.ints(*[heads * size] * 3)
        q, k, v = s.several("Split", y, 3, sizes, axis=2)
        return tuple(divided(s, x, one, heads, size) for one in (q, k, v))  # type: ignore[return-value]
    shapes = {"stacked": [3, heads, size], "rows": [heads, 3 * size], "inside": [heads, 3, size],
              "minor": [size, 3, heads]}  # fmt: skip
    y = s.reshape(y, [*lead, *shapes[how]], [*lead, 3 * heads * size])
    if how == "rows":
        y = s.node("Transpose", y, perm=[0, 2, 1, 3])
        q, k, v = s.several("Split", y, 3, s.ints(size, size, size), axis=3)
        return q, k, v
    perm = {"stacked": [2, 0, 3, 1, 4], "inside": [3, 0, 2, 1, 4], "minor": [3, 0, 4, 1, 2]}[how]
    y = s.node("Transpose", y, perm=perm)
    if s.flag():
        q, k, v = (s.node("Gather", y, s.add(i, np.int64), axis=0) for i in range(3))
        return q, k, v
    q, k, v = (s.node("Squeeze", one, s.ints(0)) for one in s.several("Split", y, 3,
               s.ints(1, 1, 1), axis=0))  # fmt: skip
    return q, k, v


def served(s: Sketch, x: Tensor, y: str, kv: int, each: int, size: int) -> str:
    """Keys or values of a few heads, for all heads of queries."""
    if each == 1:
        return y
    t = x.space[0]
    if s.flag() or not isinstance(t, int):
        y = s.node("Concat", *[s.node("Unsqueeze", y, s.ints(2))] * each, axis=2)
    elif s.flag():
        y = s.node("Tile", s.node("Unsqueeze", y, s.ints(2)), s.ints(1, 1, each, 1, 1))
    else:
        y = s.node("Expand", s.node("Unsqueeze", y, s.ints(2)), s.ints(1, 1, each, 1, 1))
    return s.reshape(y, ["n", kv * each, t, size], ["n", kv, each, t, size])


def scaled(s: Sketch, y: str, size: int) -> str:
    """Divided by the root of the size: a number, or computed from a shape."""
    if s.flag():
        return s.node("Mul", y, s.add(size**-0.5))
    n = s.node("Gather", s.node("Shape", y), s.add(3 if s.flag() else -1, np.int64), axis=0)
    return s.node("Div", y, s.node("Sqrt", s.node("Cast", n, to=1)))


def rotated(s: Sketch, x: Tensor, y: str, size: int) -> str:
    """Halves of each row turn by angles of the tokens."""
    t, half = x.area, size // 2
    angles = np.outer(np.arange(t), 1 / 10 ** (np.arange(half) / half))
    cos, sin = (f(np.concatenate([angles, angles], 1)) for f in (np.cos, np.sin))
    a = s.node("Slice", y, s.ints(0), s.ints(half), s.ints(3))
    b = s.node("Slice", y, s.ints(half), s.ints(2**63 - 1), s.ints(3))
    turned = s.node("Concat", s.node("Neg", b), a, axis=-1)
    left, right = s.node("Mul", y, s.add(cos)), s.node("Mul", turned, s.add(sin))
    return s.node("Add", left, right)


def biased(s: Sketch, x: Tensor, scores: str, heads: int) -> str:
    """Nothing, a causal mask, or a learned bias for each head."""
    how = s.pick(["none", "where", "add", "heads", "gate"]) if x.is_static else "none"
    t = x.area
    if how == "where":
        low = s.add(np.tril(np.ones((1, 1, t, t))), np.bool_)
        return s.node("Where", low, scores, s.add(-1e9))
    if how == "add":
        return s.node("Add", scores, s.add(np.triu(np.full((t, t), -1e9), 1)))
    if how == "heads":
        return s.node("Add", scores, s.weight(*[1] * s.number(0, 1), heads, t, t))
    if how == "gate":
        return s.node("Mul", scores, s.positive(heads, 1, 1))
    return scores


@block(TOKENS)
def attention(s: Sketch, x: Tensor) -> Tensor:
    """Heads that look at each other's tokens."""
    kv, each, size, value = s.pick([2, 3]), s.pick([1, 1, 2]), s.pick([4, 6]), s.pick([2, 4])
    heads = kv * each
    source = s.step_norm(x) if s.flag() else x
    if each == 1 and s.flag():
        value = size
        q, k, v = packed(s, source, heads, size)
    else:
        q, k, v = apart(s, source, heads, kv, size, value)
    if x.is_static and s.number(0, 3) == 3:
        q, k = rotated(s, x, q, size), rotated(s, x, k, size)
    if s.number(0, 3) == 3:
        norms = [s.positive(size), s.positive(size)]
        q, k = (s.node("LayerNormalization", y, w, epsilon=0.1)
                for y, w in zip((q, k), norms, strict=True))  # fmt: skip
    k, v = served(s, x, k, kv, each, size), served(s, x, v, kv, each, value)
    return joined(s, x, attend(s, x, (q, k, v), heads, size, value), heads, value)


def attend(s: Sketch, x: Tensor, qkv: Heads, heads: int, size: int, value: int) -> str:
    """[N, heads, T, value] from queries, keys and values of all heads."""
    q, k, v = qkv
    how = s.pick(["matmul", "einsum", "flat", "linear"] + ["operator"] * (s.opset >= 23))
    if how == "operator":
        return s.node("Attention", q, k, v, is_causal=int(s.flag()))
    if how == "linear":
        q, k = (s.node("Sigmoid", y) for y in (q, k))
        context = s.node("MatMul", s.node("Transpose", k, perm=[0, 1, 3, 2]), v)
        return s.node("MatMul", q, context)
    if how == "einsum":
        scores = scaled(s, s.node("Einsum", q, k, equation="bhqd,bhkd->bhqk"), size)
        scores = s.node("Softmax", biased(s, x, scores, heads), axis=-1)
        return s.node("Einsum", scores, v, equation="bhqk,bhkd->bhqd")
    if how == "flat" and x.is_static:
        return flat_attend(s, x, qkv, heads, size, value)
    scores = s.node("MatMul", scaled(s, q, size), s.node("Transpose", k, perm=[0, 1, 3, 2]))
    scores = s.node("Softmax", biased(s, x, scores, heads), axis=-1)
    return s.node("MatMul", scores, v)


def flat_attend(s: Sketch, x: Tensor, qkv: Heads, heads: int, size: int, value: int) -> str:
    """The same with batch and heads on one axis."""
    t = x.area
    batch = s.length(x.name, 0)
    lead = s.node("Mul", batch, s.ints(heads)) if s.flag() else s.ints(-1)
    q, k, v = (
        s.node("Reshape", y, s.node("Concat", lead, s.ints(t), s.ints(d), axis=0))
        for y, d in zip(qkv, (size, size, value), strict=True)
    )
    scores = s.node("MatMul", s.node("Mul", q, s.add(size**-0.5)),
                    s.node("Transpose", k, perm=[0, 2, 1]))  # fmt: skip
    y = s.node("MatMul", s.node("Softmax", scores, axis=-1), v)
    shape = s.node("Concat", s.length(x.name, 0), s.ints(heads), s.ints(t), s.ints(value), axis=0)
    return s.node("Reshape", y, shape)


def joined(s: Sketch, x: Tensor, y: str, heads: int, value: int) -> Tensor:
    """Heads beside each other again, the head as the major axis or as the minor one."""
    minor = s.number(0, 3) == 3
    order = [value, heads] if minor else [heads, value]
    y = s.node("Transpose", y, perm=[0, 2, 3, 1] if minor else [0, 2, 1, 3])
    y = s.reshape(y, [*x.shape[:2], heads * value], [*x.shape[:2], *order])
    weight = s.matrix(heads * value, x.width)
    return s.on(x, "Add", s.node("MatMul", y, weight))


@block(TOKENS, when=lambda x: x.is_static)
def cross(s: Sketch, x: Tensor) -> Tensor:
    """Learned queries gather what they need; their number is the new length."""
    count = s.number(2, 4)
    queries = s.weight(1, count, x.width)
    scores = s.node("MatMul", queries, s.node("Transpose", made(s, x, x.width), perm=[0, 2, 1]))
    y = s.node("MatMul", s.node("Softmax", scores, axis=-1), made(s, x, x.width))
    return x.as_(y, space=(count,))
