"""Blocks on images and signals: convolutions, norms, pools, pixel shuffles."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sketch import FLAT, GRID, TOKENS, Sketch, Tensor, block, bridge, divisors

WIDTHS = (4, 6, 8, 9, 12)


def is_image(x: Tensor) -> bool:
    """Two axes of space."""
    return len(x.space) == 2


def is_known(x: Tensor) -> bool:
    """Lengths are known and even, so that halving is exact."""
    return x.is_static and all(isinstance(n, int) and n % 2 == 0 and n > 2 for n in x.space)


@block(GRID)
def conv(s: Sketch, x: Tensor) -> Tensor:
    """Dense, grouped or depthwise, with or without bias."""
    width = s.pick(WIDTHS)
    groups = s.pick(divisors(x.width, width))
    return _conv(s, x, width, groups)


@block(GRID)
def depthwise(s: Sketch, x: Tensor) -> Tensor:
    """One or two filters a channel."""
    return _conv(s, x, x.width * s.pick([1, 1, 2]), x.width)


def _conv(s: Sketch, x: Tensor, width: int, groups: int) -> Tensor:
    kernel = s.pick([1, 3])
    weight = s.fan(width, x.width // groups, *[kernel] * len(x.space),
                   fan=x.width // groups * kernel ** len(x.space))  # fmt: skip
    bias = [s.weight(width)] if s.flag() else []
    more: dict[str, Any] = {"group": groups} if groups > 1 else {}
    if s.flag():
        more["kernel_shape"] = [kernel] * len(x.space)
    if kernel > 1:
        more["pads"] = [1] * (2 * len(x.space))
    space = x.space
    if is_known(x) and s.number(0, 3) == 3:
        more["strides"] = [2] * len(x.space)
        space = tuple(int(n) // 2 for n in x.space)
    return x.as_(s.node("Conv", x.name, weight, *bias, **more), width=width, space=space)


@block(GRID, when=lambda x: x.is_static and x.area <= 36)
def transposed_conv(s: Sketch, x: Tensor) -> Tensor:
    """Twice the size, in groups at times."""
    width = s.pick(WIDTHS)
    groups = s.pick(divisors(x.width, width))
    rank = len(x.space)
    weight = s.fan(x.width, width // groups, *[2] * rank, fan=x.width // groups)
    bias = [s.weight(width)] if s.flag() else []
    more: dict[str, Any] = {"group": groups} if groups > 1 else {}
    name = s.node("ConvTranspose", x.name, weight, *bias, strides=[2] * rank, **more)
    return x.as_(name, width=width, space=tuple(int(n) * 2 for n in x.space))


@block(GRID)
def tied_conv(s: Sketch, x: Tensor) -> Tensor:
    """One weight, read twice."""
    weight = s.fan(x.width, x.width, *[1] * len(x.space), fan=x.width)
    y = s.on(s.on(x, "Conv", weight), "Relu")
    return s.on(y, "Conv", weight)


@block(GRID)
def standardised(s: Sketch, x: Tensor) -> Tensor:
    """A weight less its mean over the kernel, times a gain for each filter."""
    width, rank = s.pick(WIDTHS), len(x.space)
    weight = s.fan(width, x.width, *[3] * rank, fan=x.width * 3**rank)
    axes = list(range(2, rank + 2))
    centred = s.node("Sub", weight, s.reduce("ReduceMean", weight, axes, keep=True))
    made = s.node("Mul", centred, s.positive(width, *[1] * (rank + 1)))
    return x.as_(s.node("Conv", x.name, made, pads=[1] * 2 * rank), width=width)


@block(GRID)
def batch_norm(s: Sketch, x: Tensor) -> Tensor:
    """Four vectors; at times one of them is used twice."""
    scale, bias, mean, variance = (
        s.positive(x.width), s.weight(x.width), s.weight(x.width), s.positive(x.width))  # fmt: skip
    shared = s.number(0, 4) == 4
    return s.on(x, "BatchNormalization", scale, bias, bias if shared else mean, variance)


@block(GRID, when=lambda x: x.area > 3)
def instance_norm(s: Sketch, x: Tensor) -> Tensor:
    """Each channel of each sample on its own: exact."""
    return s.on(x, "InstanceNormalization", s.positive(x.width), s.weight(x.width), epsilon=0.1)


@block(GRID, when=lambda x: x.area > 1 and x.width > 3)
def group_norm(s: Sketch, x: Tensor) -> Tensor:
    """By the operator, or written out as exporters do."""
    groups = s.pick(divisors(x.width)[:-1])
    if s.opset >= 21 and s.flag():
        vectors = s.positive(x.width), s.weight(x.width)
        return s.on(x, "GroupNormalization", *vectors, num_groups=groups, epsilon=0.1)
    y = s.node("Reshape", x.name, s.ints(0, groups, -1))
    ones, zeros = s.add(np.ones(groups)), s.add(np.zeros(groups))
    y = s.node("InstanceNormalization", y, ones, zeros, epsilon=0.1)
    y = s.node("Reshape", y, s.node("Shape", x.name))
    shape = (x.width, *[1] * len(x.space))
    return x.as_(s.node("Add", s.node("Mul", y, s.positive(*shape)), s.weight(*shape)))


@block(GRID, when=is_image)
def local_response(s: Sketch, x: Tensor) -> Tensor:
    """Neighbouring channels are summed."""
    return s.on(x, "LRN", size=3, alpha=0.1)


@block(GRID, when=is_known)
def pool(s: Sketch, x: Tensor) -> Tensor:
    """Half the size."""
    rank = len(x.space)
    op = s.pick(["MaxPool", "AveragePool"])
    name = s.node(op, x.name, kernel_shape=[2] * rank, strides=[2] * rank)
    return x.as_(name, space=tuple(int(n) // 2 for n in x.space))


@block(GRID)
def smoothing(s: Sketch, x: Tensor) -> Tensor:
    """A pool that keeps the size."""
    rank = len(x.space)
    return s.on(x, s.pick(["MaxPool", "AveragePool"]), kernel_shape=[3] * rank, pads=[1] * 2 * rank)


@block(GRID, when=lambda x: is_image(x) and x.is_static and x.area <= 36)
def resize(s: Sketch, x: Tensor) -> Tensor:
    """Twice the size, by scales or by sizes."""
    space = tuple(2 * int(n) for n in x.space)
    if s.flag():
        name = s.node("Resize", x.name, "", s.add([1, 1, 2, 2]), mode="nearest")
    else:
        head = s.node("Slice", s.node("Shape", x.name), s.ints(0), s.ints(2), s.ints(0))
        sizes = s.node("Concat", head, s.ints(*space), axis=0)
        name = s.node("Resize", x.name, "", "", sizes, mode="linear")
    return x.as_(name, space=space)


@block(GRID, when=lambda x: is_image(x) and is_known(x) and x.width <= 6)
def space_to_depth(s: Sketch, x: Tensor) -> Tensor:
    """Pixels become channels."""
    space = tuple(int(n) // 2 for n in x.space)
    return x.as_(s.node("SpaceToDepth", x.name, blocksize=2), width=4 * x.width, space=space)


@block(GRID, when=lambda x: is_image(x) and x.is_static and x.area <= 36 and x.width % 4 == 0)
def depth_to_space(s: Sketch, x: Tensor) -> Tensor:
    """Channels become pixels, in both orders."""
    name = s.node("DepthToSpace", x.name, blocksize=2, mode=s.pick(["DCR", "CRD"]))
    return x.as_(name, width=x.width // 4, space=tuple(2 * int(n) for n in x.space))


@block(GRID, when=is_image)
def channels_last(s: Sketch, x: Tensor) -> Tensor:
    """A norm and two products on the last axis, and back."""
    y = s.node("Transpose", x.name, perm=[0, 2, 3, 1])
    if s.flag():
        y = s.node("LayerNormalization", y, s.positive(x.width), s.weight(x.width), epsilon=0.1)
    inner = s.pick(WIDTHS)
    y = s.node("Relu", s.node("MatMul", y, s.matrix(x.width, inner)))
    y = s.node("Mul", s.node("MatMul", y, s.matrix(inner, x.width)), s.weight(x.width))
    return s.on(x.as_(s.node("Transpose", y, perm=[0, 3, 1, 2])), "Add", x.name)


@block(GRID, when=is_image)
def pooled_gate(s: Sketch, x: Tensor) -> Tensor:
    """A gate for each pixel from mean and largest over channels."""
    both = [s.reduce(op, x.name, [1], keep=True) for op in ("ReduceMean", "ReduceMax")]
    gate = s.node("Conv", s.node("Concat", *both, axis=1), s.fan(1, 2, 3, 3, fan=18), pads=[1] * 4)
    return s.on(x, "Mul", s.node("Sigmoid", gate))


@block(GRID)
def selected(s: Sketch, x: Tensor) -> Tensor:
    """Branches are weighed by a softmax over the branches, one weight a channel."""
    both = [s.on(s.project(x, x.width), "Relu") for _ in range(2)]
    stack = s.node("Concat", *(s.node("Unsqueeze", b.name, s.ints(1)) for b in both), axis=1)
    axes = list(range(2, x.rank))
    mean = s.reduce("ReduceMean", s.node("Add", *(b.name for b in both)), axes, keep=False)
    scores = s.node("MatMul", mean, s.fan(x.width, 2 * x.width, fan=x.width))
    width = x.width if s.flag() else -1
    scores = s.node("Reshape", scores, s.ints(0, 2, width, *[1] * len(axes)))
    share = s.node("Softmax", scores, axis=1)
    return x.as_(s.reduce("ReduceSum", s.node("Mul", stack, share), [1], keep=False))


@block(GRID, when=lambda x: 1 < x.area <= 64)
def channel_attention(s: Sketch, x: Tensor) -> Tensor:
    """Channels attend to channels: none may go on the way, those behind it may."""
    flat = s.node("Reshape", x.name, s.ints(0, 0, -1))
    scores = s.node("MatMul", flat, s.node("Transpose", flat, perm=[0, 2, 1]))
    scores = s.node("Softmax", s.node("Mul", scores, s.add(0.05)), axis=-1)
    y = s.node("Reshape", s.node("MatMul", scores, flat), s.node("Shape", x.name))
    return s.on(x, "Add", y)


@bridge(GRID)
def averaged(s: Sketch, x: Tensor) -> Tensor:
    """One number a channel, by a pool or a Reduce."""
    axes = list(range(2, x.rank))
    how = s.pick(["pool", "reduce", "sum", "kept"])
    if how == "reduce":
        return Tensor(s.reduce("ReduceMean", x.name, axes, keep=False), FLAT, x.width)
    if how == "sum":
        return Tensor(s.reduce("ReduceMax", x.name, [-a for a in range(1, len(axes) + 1)],
                               keep=False), FLAT, x.width)  # fmt: skip
    pooled = s.node(s.pick(["GlobalAveragePool", "GlobalMaxPool"]), x.name)
    if how == "pool":
        return Tensor(s.node("Flatten", pooled), FLAT, x.width)
    return Tensor(s.node("Squeeze", pooled, s.ints(*axes)), FLAT, x.width)


@bridge(GRID, when=lambda x: 0 < x.area <= 64)
def flattened(s: Sketch, x: Tensor) -> Tensor:
    """Every pixel of every channel becomes a column."""
    width = x.width * x.area
    if s.flag():
        return Tensor(s.node("Flatten", x.name), FLAT, width)
    return Tensor(s.reshape(x.name, ["n", width], x.shape), FLAT, width)


@bridge(GRID, when=lambda x: 1 < x.area <= 64)
def to_tokens(s: Sketch, x: Tensor) -> Tensor:
    """Pixels become tokens, perhaps behind a class token and with places."""
    flat = len(x.space) == 1
    y = x.name if flat else s.reshape(x.name, ["n", x.width, x.area], x.shape)
    y, count = s.node("Transpose", y, perm=[0, 2, 1]), x.area
    if s.flag():
        target = s.node("Concat", s.length(x.name, 0), s.ints(-1, -1), axis=0)
        target = s.node("Where", s.node("Equal", target, s.ints(-1)), s.ints(1), target)
        token = s.node("Expand", s.weight(1, 1, x.width), target)
        y, count = s.node("Concat", token, y, axis=1), count + 1
    if s.flag():
        y = s.node("Add", y, s.weight(1, count, x.width))
    return Tensor(y, TOKENS, x.width, (count,))
