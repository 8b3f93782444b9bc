"""Quantised operators: scales and zero points follow the channels they belong to."""

from __future__ import annotations

from math import prod

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.linear import product_labels
from onnxprune.rules.registry import ShapeOf, rules
from onnxprune.rules.wiring import Wiring
from onnxprune.shape.shapes import Shape

Axes = tuple[str | None, ...]
CONTRIB = "com.microsoft"

# The slot of the zero point of a weight that integers stand for.
ZERO_POINTS = {
    "ConvInteger": {1: 3},
    "MatMulInteger": {0: 2, 1: 3},
    "MatMulIntegerToFloat": {0: 4, 1: 5},
    "DynamicQuantizeMatMul": {1: 3},
    "QLinearConv": {0: 2, 3: 5},
    "QLinearMatMul": {0: 2, 3: 5},
    "QGemm": {0: 2, 3: 5},
}


def _shape(flow: Flow, node: Node, slot: int) -> Shape:
    shape = flow.shape(node.inputs[slot])
    assert shape is not None, "the walk only visits nodes whose shapes are known"
    return shape


def _vectors(
    flow: Flow, node: Node, slots: tuple[int, ...], labels: Axes, view: Shape
) -> list[Operand]:
    """Scales or zero points with an entry a channel; single ones belong to all."""
    found = [s for s in slots if node.input(s) and prod(_shape(flow, node, s)) > 1]
    return [Operand(s, labels, view) for s in found]


@rules.on("QuantizeLinear", "DequantizeLinear")
def quantize(flow: Flow, node: Node) -> None:
    """Scales and zero points follow their axis; an axis scaled in blocks is held."""
    x, scale = _shape(flow, node, 0), _shape(flow, node, 1)
    axis = int(node.attr("axis", 1)) % max(len(x), 1)
    labels: Axes = tuple(str(a) for a in range(len(x)))
    if len(scale) > 1 and prod(scale) > 1:
        labels = (*labels[:axis], None, *labels[axis + 1 :])
        vectors = _vectors(flow, node, (1, 2), labels, scale)
        combine(flow, [Operand(0, labels), *vectors], Result(labels))
        return
    view, groups = x, _groups(flow, node)
    along, lengths = labels[axis : axis + 1], x[axis : axis + 1]
    if groups:  # as `conv` sees it: rows of a group read channels of their own
        view = (groups, x[0] // groups, *x[1:])
        labels = ("g", "0", "1", *(None,) * (len(x) - 2))
        along, lengths = (labels[:2], view[:2]) if axis == 0 else (along, lengths)
    operand = Operand(0, labels, view, (("g", "0"), ("g", "1")))
    vectors = _vectors(flow, node, (1, 2), along, lengths)
    combine(flow, [operand, *vectors], Result(labels, view))


def _groups(flow: Flow, node: Node) -> int:
    """Groups of the convolutions that a stored weight is read by; 0 where something else is."""
    readers = flow.model.consumers.get(node.outputs[0], ())
    fits = all(n.op in {"Conv", "ConvTranspose"} and slot == 1 for n, slot in readers)
    found = {int(n.attr("group", 1)) for n, _ in readers}
    return found.pop() if flow.is_weight(0) and fits and len(found) == 1 else 0


@rules.on("DynamicQuantizeLinear")
def dynamic(flow: Flow, node: Node) -> None:
    """The range is taken over all channels: approximate."""
    flow.approximate(flow.fields(0), f"{flow.where()}: one range for all channels")
    flow.put(0, flow.fields(0))


@rules.on("QLinearConv")
def linear_conv(flow: Flow, node: Node) -> None:
    """A convolution; each filter may have its scale, zero point and bias."""
    _conv(flow, node, 3, (4, 5, 8))


@rules.on("ConvInteger")
def integer_conv(flow: Flow, node: Node) -> None:
    """A convolution of integers; each filter may have its zero point."""
    _conv(flow, node, 1, (3,))


def _conv(flow: Flow, node: Node, weight: int, vectors: tuple[int, ...]) -> None:
    groups = int(node.attr("group", 1))
    x, w = _shape(flow, node, 0), _shape(flow, node, weight)
    y = flow.shape(node.outputs[0]) or ()
    spatial = (None,) * (len(x) - 2)
    view_x = (x[0], groups, x[1] // groups, *x[2:])
    view_w = (groups, w[0] // groups, *w[1:])
    own = (("g", "o"),)
    operands = [
        Operand(0, ("n", "g", "c", *spatial), view_x),
        Operand(weight, ("g", "o", "c", *spatial), view_w, own),
        *_vectors(flow, node, vectors, ("g", "o"), view_w[:2]),
    ]
    combine(flow, operands, Result(("n", "g", "o", *spatial), (y[0], *view_w[:2], *y[2:])))


@rules.macs("QLinearConv")
def linear_conv_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the weights of one filter."""
    return prod(shape_of(node.outputs[0])) * prod(shape_of(node.inputs[3])[1:])


@rules.rewire("QLinearConv", "ConvInteger")
def regroup_conv(wiring: Wiring, node: Node) -> None:
    """Groups that lost all their channels are gone."""
    weight = node.inputs[3 if node.op == "QLinearConv" else 1]
    if int(node.attr("group", 1)) > 1:
        channels = wiring.after(node.inputs[0])[0][1]
        wiring.set(node, group=channels // wiring.after(weight)[0][1])


@rules.on("QLinearMatMul")
def linear_matmul(flow: Flow, node: Node) -> None:
    """A product; rows of A and columns of B may have scales and zero points."""
    _matmul(flow, node, 3, (1, 2), (4, 5))


@rules.on("MatMulInteger")
def integer_matmul(flow: Flow, node: Node) -> None:
    """A product of integers; rows of A and columns of B may have zero points."""
    _matmul(flow, node, 1, (2,), (3,))


@rules.on("MatMulIntegerToFloat", domain=CONTRIB)
def scaled_matmul(flow: Flow, node: Node) -> None:
    """A product of integers, scaled by column, and a bias."""
    _matmul(flow, node, 1, (2, 4), (3, 5), 6)


@rules.on("DynamicQuantizeMatMul", domain=CONTRIB)
def dynamic_matmul(flow: Flow, node: Node) -> None:
    """A product whose first factor is quantised on the way: its range makes it approximate."""
    flow.approximate(flow.fields(0), f"{flow.where()}: one range for all channels")
    _matmul(flow, node, 1, (), (2, 3), 4)


def _matmul(
    flow: Flow,
    node: Node,
    second: int,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    bias: int = -1,
) -> None:
    """A product with what belongs to rows of the first factor and columns of the second."""
    a, b = _shape(flow, node, 0), _shape(flow, node, second)
    left, right, out = product_labels(len(a), len(b))
    operands = [Operand(0, left), Operand(second, right)]
    for slots, labels, summed in ((rows, left, -1), (columns, right, -2)):
        for slot in slots:
            if node.input(slot) and prod(_shape(flow, node, slot)) > 1:
                operands.append(_beside(flow, node, slot, labels, summed))
    if bias >= 0 and node.input(bias):
        operands.append(Operand(bias, ("n",)))
    combine(flow, operands, Result(out))


def _beside(flow: Flow, node: Node, slot: int, labels: tuple[str, ...], summed: int) -> Operand:
    """A scale for each row (or column) of a factor; its summed axis has length 1."""
    rank = len(_shape(flow, node, slot))
    if rank == 1:
        return Operand(slot, (labels[-3 - summed],))
    own: list[str | None] = list(labels[-rank:])
    own[summed] = None
    return Operand(slot, tuple(own))


@rules.macs("QLinearMatMul", "MatMulInteger")
@rules.macs("MatMulIntegerToFloat", "DynamicQuantizeMatMul", domain=CONTRIB)
def matmul_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the length of the sum."""
    return prod(shape_of(node.outputs[0])) * shape_of(node.inputs[0])[-1]


@rules.on("QGemm", domain=CONTRIB)
def gemm(flow: Flow, node: Node) -> None:
    """Rows of the weight make channels; each may have its scale and zero point."""
    a = ("k", "m") if node.attr("transA", 0) else ("m", "k")
    b = ("n", "k") if node.attr("transB", 0) else ("k", "n")
    columns = _vectors(flow, node, (4, 5), ("n",), _shape(flow, node, 3)[b.index("n") :][:1])
    operands = [Operand(0, a), Operand(3, b), *columns]
    if node.input(6):
        bias = _shape(flow, node, 6)
        operands.append(Operand(6, ("m", "n")[2 - len(bias) :]))
    combine(flow, operands, Result(("m", "n")))


@rules.macs("QGemm", domain=CONTRIB)
def gemm_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the length of the sum."""
    a = shape_of(node.inputs[0])
    return prod(shape_of(node.outputs[0])) * a[0 if node.attr("transA", 0) else 1]


@rules.on("QLinearAdd", "QLinearMul", domain=CONTRIB)
def broadcast(flow: Flow, node: Node) -> None:
    """Positions that meet by broadcasting are the same channel; scales are single numbers."""
    rank = len(flow.shape(node.outputs[0]) or ())
    operands = []
    for slot in (0, 3):
        own = len(_shape(flow, node, slot))
        operands.append(Operand(slot, tuple(str(rank - own + a) for a in range(own))))
    combine(flow, operands, Result(tuple(str(a) for a in range(rank))))


@rules.on("QLinearSigmoid", "QLinearLeakyRelu", domain=CONTRIB)
def unary(flow: Flow, node: Node) -> None:
    """Each position stays what it was; scales are single numbers."""
    flow.put(0, flow.fields(0))


@rules.on("QLinearGlobalAveragePool", "QLinearAveragePool", domain=CONTRIB)
def pool(flow: Flow, node: Node) -> None:
    """Batch and channel axes pass; what lives on spatial axes is held."""
    channel = len(_shape(flow, node, 0)) - 1 if node.attr("channels_last", 0) else 1
    fields = flow.fields(0)
    inner = [f for f in fields if set(f.axes) - {0, channel}]
    flow.pin(inner, f"{flow.where()} over spatial positions")
    flow.put(0, [f for f in fields if not set(f.axes) - {0, channel}])
