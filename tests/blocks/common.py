"""Blocks that fit every layout: elementwise work, joins and splits of channels, gates."""

from __future__ import annotations

from tests.sketch import FLAT, GRID, TOKENS, Sketch, Tensor, block, divisors

ALL = (GRID, TOKENS, FLAT)
SMOOTH = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Softplus", "Erf", "Abs", "Identity")


@block(*ALL)
def activation(s: Sketch, x: Tensor) -> Tensor:
    """One function of each position, or a gate by a function of it."""
    y = s.on(x, s.pick(SMOOTH))
    return s.on(y, "Mul", x.name) if s.flag() else y


@block(*ALL)
def clip(s: Sketch, x: Tensor) -> Tensor:
    """Bounds are numbers of their own."""
    return s.on(x, "Clip", s.add(-1.0), s.add(2.0))


@block(*ALL)
def prelu(s: Sketch, x: Tensor) -> Tensor:
    """A slope for each channel, or one for all."""
    shape = [1] * (x.rank - x.axis)
    shape[0] = x.width if s.flag() else 1
    return s.on(x, "PRelu", s.weight(*shape))


@block(*ALL)
def affine(s: Sketch, x: Tensor) -> Tensor:
    """A number for each channel is added or multiplied, on either side."""
    op, vector = s.pick(["Mul", "Add", "Sub", "Max"]), s.per_channel(x)
    return x.as_(s.node(op, vector, x.name)) if s.flag() else s.on(x, op, vector)


@block(*ALL)
def scalar(s: Sketch, x: Tensor) -> Tensor:
    """One number for all."""
    shape = s.pick([(), (1,), (1, 1)])
    return s.on(x, s.pick(["Mul", "Add", "Div"]), s.add(s.rng.uniform(0.5, 2, shape)))


@block(*ALL, when=lambda x: x.is_static and bool(x.space))
def positions(s: Sketch, x: Tensor) -> Tensor:
    """A number for each position, with or without channels of its own."""
    lengths = [n for n in x.space if isinstance(n, int)]
    width = s.pick([x.width, 1])
    shape = [*lengths, width] if x.kind == TOKENS else [width, *lengths]
    return s.on(x, s.pick(["Add", "Mul"]), s.weight(*[1] * s.number(0, 1), *shape))


@block(*ALL)
def self_gate(s: Sketch, x: Tensor) -> Tensor:
    """Each channel times itself behind a product."""
    gate = s.project(x, x.width)
    return s.on(s.on(gate, "Sigmoid"), "Mul", x.name)


@block(*ALL)
def position_gate(s: Sketch, x: Tensor) -> Tensor:
    """One number for each position and sample, over all channels."""
    gate = s.on(s.project(x, 1), "Sigmoid")
    return x.as_(s.node("Mul", *([x.name, gate.name] if s.flag() else [gate.name, x.name])))


@block(*ALL)
def residual(s: Sketch, x: Tensor) -> Tensor:
    """What a branch makes is added to what it read."""
    y = s.like(s.branch(x, 3), x.width, x.space)
    if y.name == x.name:
        y = s.project(x, x.width)
    return x.as_(s.node("Add", *([x.name, y.name] if s.flag() else [y.name, x.name])))


@block(*ALL)
def widened(s: Sketch, x: Tensor) -> Tensor:
    """A residual block that widens: zeros are put behind the channels of its input."""
    more, before = s.number(1, 4), s.number(0, 2)
    pads = [0] * (2 * x.rank)
    pads[x.axis], pads[x.rank + x.axis] = before, more
    name = s.node("Pad", x.name, s.ints(*pads), mode="constant")
    padded = x.as_(name, width=x.width + more + before)
    y = s.project(s.branch(x), padded.width)
    return s.on(padded, "Add", y.name)


@block(*ALL)
def branches(s: Sketch, x: Tensor) -> Tensor:
    """Branches beside each other."""
    parts = [s.branch(x) for _ in range(s.number(2, 3))]
    name = s.node("Concat", *(p.name for p in parts), axis=s.pick([x.axis, x.axis - x.rank]))
    return x.as_(name, width=sum(p.width for p in parts))


def cut_in_two(s: Sketch, x: Tensor, first: int) -> list[str]:
    """Channels up to a place, and those behind it: by Split, or by two Slices."""
    if s.flag():
        return s.several("Split", x.name, 2, s.ints(first, x.width - first), axis=x.axis)
    axis, end = s.ints(x.axis), s.ints(s.pick([x.width, 2**31 - 1, 2**63 - 1]))
    return [
        s.node("Slice", x.name, s.ints(0), s.ints(first), axis),
        s.node("Slice", x.name, s.ints(s.pick([first, first - x.width])), end, axis),
    ]


@block(*ALL, when=lambda x: x.width > 3)
def parts(s: Sketch, x: Tensor) -> Tensor:
    """Channels part, go ways of their own, and meet again."""
    first = s.number(1, x.width - 1)
    names = cut_in_two(s, x, first)
    both = [x.as_(names[0], width=first), x.as_(names[1], width=x.width - first)]
    if s.flag():
        both[0] = s.branch(both[0])
    if s.flag():
        both.reverse()
    name = s.node("Concat", *(p.name for p in both), axis=x.axis)
    return x.as_(name, width=both[0].width + both[1].width)


@block(*ALL, when=lambda x: x.width % 2 == 0 and x.width > 2)
def glu(s: Sketch, x: Tensor) -> Tensor:
    """One half gates the other."""
    half = x.width // 2
    a, b = cut_in_two(s, x, half)
    gate = s.node(s.pick(["Sigmoid", "Tanh", "Relu"]), b)
    return x.as_(s.node("Mul", a, gate), width=half)


@block(*ALL, when=lambda x: x.width % 2 == 0 and x.width > 2)
def even_split(s: Sketch, x: Tensor) -> Tensor:
    """Equal parts, told by their number alone; the largest stays (maxout)."""
    more = {"num_outputs": 2} if s.opset >= 18 else {}
    both = s.several("Split", x.name, 2, axis=x.axis, **more)
    return x.as_(s.node(s.pick(["Max", "Add", "Min"]), *both), width=x.width // 2)


@block(*ALL, when=lambda x: x.width > 2)
def picked(s: Sketch, x: Tensor) -> Tensor:
    """Some channels, in another order, perhaps more than once."""
    order = s.rng.permutation(x.width)
    order = order[: s.number(2, x.width)] if s.flag() else s.rng.integers(0, x.width, x.width)
    name = s.node("Gather", x.name, s.ints(*(int(i) for i in order)), axis=x.axis)
    return x.as_(name, width=len(order))


@block(*ALL, when=lambda x: x.width > 5)
def strided(s: Sketch, x: Tensor) -> Tensor:
    """Every second channel, or all of them backwards."""
    if s.flag():
        bounds = s.ints(-1), s.ints(-(2**31)), s.ints(x.axis), s.ints(-1)
        return s.on(x, "Slice", *bounds)
    start = s.number(0, 1)
    name = s.node("Slice", x.name, s.ints(start), s.ints(x.width), s.ints(x.axis), s.ints(2))
    return x.as_(name, width=len(range(start, x.width, 2)))


@block(*ALL, when=lambda x: x.is_static and len(divisors(x.width)) > 2)
def shuffle(s: Sketch, x: Tensor) -> Tensor:
    """Channels change places by groups."""
    groups = s.pick(divisors(x.width)[1:-1])
    each = x.width // groups
    at = x.axis
    shape = x.shape
    target = [*shape[:at], groups, each, *shape[at + 1 :]]
    y = s.reshape(x.name, target, shape)
    perm = list(range(x.rank + 1))
    perm[at], perm[at + 1] = at + 1, at
    y = s.node("Transpose", y, perm=perm)
    turned: list[int | str] = [*shape[:at], each, groups, *shape[at + 1 :]]
    return x.as_(s.reshape(y, shape, turned))


@block(*ALL)
def masked(s: Sketch, x: Tensor) -> Tensor:
    """Where: some positions are replaced, by a number or by another tensor."""
    zero = s.add(0.0) if s.flag() else s.node("Neg", x.name)
    sign = s.node(s.pick(["Greater", "Less"]), s.project(x, s.pick([1, x.width])).name, s.add(0.1))
    return x.as_(s.node("Where", sign, x.name, zero))


@block(*ALL, when=lambda x: bool(x.space))
def squeeze_excite(s: Sketch, x: Tensor) -> Tensor:
    """Channels are weighed by what two products make of their mean."""
    inner = s.number(2, 5)
    axes = list(range(2, x.rank)) if x.kind == GRID else [1]
    keep = x.kind == TOKENS or s.flag()
    mean = s.reduce("ReduceMean", x.name, axes, keep)
    if x.kind == GRID and keep:
        small = Tensor(mean, GRID, x.width, tuple(1 for _ in x.space))
        gate = s.project(s.on(s.project(small, inner), "Relu"), x.width).name
    else:
        down, up = s.matrix(x.width, inner), s.matrix(inner, x.width)
        gate = s.node("MatMul", s.node("Relu", s.node("MatMul", mean, down)), up)
        if x.kind == GRID:
            gate = s.node("Unsqueeze", gate, s.ints(*axes))
    return s.on(x, "Mul", s.node(s.pick(["Sigmoid", "HardSigmoid"]), gate))


@block(*ALL, when=lambda x: x.width > 2)
def channel_softmax(s: Sketch, x: Tensor) -> Tensor:
    """A distribution over channels, made apart and multiplied in: nothing of it may go."""
    share = s.project(x, s.number(2, 3))
    share = s.on(share, "Softmax", axis=share.axis)
    return s.on(x, "Add", s.project(share, x.width).name)


@block(*ALL)
def norm_over_channels(s: Sketch, x: Tensor) -> Tensor:
    """Divided by the root of the sum of squares: exact, whatever is gone."""
    if s.flag() and s.opset < 22:
        return s.on(x, "LpNormalization", axis=x.axis, p=2)
    norm = s.reduce(s.pick(["ReduceL2", "ReduceL1"]), x.name, [x.axis], keep=True)
    return s.on(x, "Div", s.node("Add", norm, s.add(0.1)))


@block(*ALL, when=lambda x: x.width > 2)
def padded_constant(s: Sketch, x: Tensor) -> Tensor:
    """Zeros or a learned row, grown to the batch, stand in for channels that are added."""
    more = s.number(1, 3)
    if not x.is_static:
        return x
    shape = [1, *([*x.space, more] if x.kind == TOKENS else [more, *x.space])]
    target = s.node("Concat", s.length(x.name, 0), s.ints(*(int(n) for n in shape[1:])), axis=0)
    if s.flag():
        made = s.node("ConstantOfShape", target)
    else:
        made = s.node("Expand", s.weight(*(int(n) for n in shape)), target)
    both = [x.name, made] if s.flag() else [made, x.name]
    y = x.as_(s.node("Concat", *both, axis=x.axis), width=x.width + more)
    return s.on(y, "Add", s.project(x, y.width).name)


@block(*ALL, when=lambda x: x.width < 9)
def repeated(s: Sketch, x: Tensor) -> Tensor:
    """All channels twice."""
    repeats = [1] * x.rank
    repeats[x.axis] = 2
    return x.as_(s.node("Tile", x.name, s.ints(*repeats)), width=2 * x.width)


@block(*ALL, when=lambda x: x.is_static)
def grouped_means(s: Sketch, x: Tensor) -> Tensor:
    """Neighbours are added up: channels by pairs."""
    each = s.pick(divisors(x.width))
    at = x.axis
    shape: list[int | str] = [*x.shape[:at], x.width // each, each, *x.shape[at + 1 :]]
    y = s.reduce("ReduceSum", s.reshape(x.name, shape, x.shape), [at + 1], keep=False)
    return x.as_(y, width=x.width // each)

