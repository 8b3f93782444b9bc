"""Operators of ONNX Runtime's optimizer that do the work of several."""

from __future__ import annotations

from math import prod

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.conv import conv_macs
from onnxprune.rules.linear import gemm, gemm_macs, product_labels
from onnxprune.rules.registry import ShapeOf, rules
from onnxprune.rules.wiring import Wiring
from onnxprune.shape.shapes import Shape

CONTRIB = "com.microsoft"

rules.on("FusedGemm", domain=CONTRIB)(gemm)
rules.macs("FusedGemm", domain=CONTRIB)(gemm_macs)
rules.macs("FusedConv", domain=CONTRIB)(conv_macs)


def _shape(flow: Flow, node: Node, slot: int) -> Shape:
    shape = flow.shape(node.inputs[slot])
    assert shape is not None, "the walk only visits nodes whose shapes are known"
    return shape


@rules.on("FusedConv", domain=CONTRIB)
def fused_conv(flow: Flow, node: Node) -> None:
    """A convolution, plus a tensor of the result's shape, then an activation."""
    groups = int(node.attr("group", 1))
    x, w = _shape(flow, node, 0), _shape(flow, node, 1)
    y = flow.shape(node.outputs[0]) or ()
    spatial = (None,) * (len(x) - 2)
    view_w = (groups, w[0] // groups, *w[1:])
    view_y = (y[0], *view_w[:2], *y[2:])
    own = (("g", "o"),)
    operands = [
        Operand(0, ("n", "g", "c", *spatial), (x[0], groups, x[1] // groups, *x[2:])),
        Operand(1, ("g", "o", "c", *spatial), view_w, own),
        Operand(2, ("g", "o"), view_w[:2], own),
        Operand(3, ("n", "g", "o", *spatial), view_y),
    ]
    combine(flow, operands, Result(("n", "g", "o", *spatial), view_y))


@rules.rewire("FusedConv", domain=CONTRIB)
def regroup_conv(wiring: Wiring, node: Node) -> None:
    """Groups that lost all their channels are gone."""
    if int(node.attr("group", 1)) > 1:
        columns = wiring.after(node.inputs[1])[0][1]
        wiring.set(node, group=wiring.after(node.inputs[0])[0][1] // columns)


@rules.on("FusedMatMul", domain=CONTRIB)
def fused_matmul(flow: Flow, node: Node) -> None:
    """A product of matrices, either of them transposed, times a number."""
    ranks = len(_shape(flow, node, 0)), len(_shape(flow, node, 1))
    left, right, out = product_labels(*ranks)
    if node.attr("transA", 0) and ranks[0] > 1:
        left = (*left[:-2], left[-1], left[-2])
    if node.attr("transB", 0) and ranks[1] > 1:
        right = (*right[:-2], right[-1], right[-2])
    combine(flow, [Operand(0, left), Operand(1, right)], Result(out))


@rules.macs("FusedMatMul", domain=CONTRIB)
def fused_matmul_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the length of the sum."""
    a = shape_of(node.inputs[0])
    return prod(shape_of(node.outputs[0])) * a[-2 if node.attr("transA", 0) and len(a) > 1 else -1]


@rules.on("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=CONTRIB)
def skip_norm(flow: Flow, node: Node) -> None:
    """A sum of two tensors and a bias, normalised over the last axis: approximate."""
    rank = len(_shape(flow, node, 0))
    labels = tuple(str(a) for a in range(rank))
    operands = []
    for slot, name in enumerate(node.inputs):
        own = len(_shape(flow, node, slot)) if name else 0
        if name:
            operands.append(Operand(slot, labels[rank - own :]))
    fields = combine(flow, operands, Result(labels))
    over = [f for f in fields if rank - 1 in f.axes]
    flow.approximate(over, f"{flow.where()} over channels")
    flow.put(3, fields)


@rules.on("EmbedLayerNormalization", domain=CONTRIB)
def embed(flow: Flow, node: Node) -> None:
    """Rows of tables picked by numbers and added, then normalised: approximate."""
    tables = [Operand(i, (None, "h")) for i in (2, 3, 4)]
    vectors = [Operand(i, ("h",)) for i in (5, 6)]
    fields = combine(flow, [*tables, *vectors], Result((None, None, "h")))
    flow.approximate(fields, f"{flow.where()} over channels")
    flow.put(2, fields)
