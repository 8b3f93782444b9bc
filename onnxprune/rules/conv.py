"""Convolutions and pooling: channels on axis 1, everything behind it is spatial."""

from __future__ import annotations

from math import prod

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import ShapeOf, rules
from onnxprune.rules.wiring import Wiring
from onnxprune.shape.shapes import Shape


@rules.on("Conv")
def conv(flow: Flow, node: Node) -> None:
    """Rows of W make Y's channels; a sum runs over W's columns and X's channels, by group."""
    groups = int(node.attr("group", 1))
    x, w, y = (flow.shape(n) or () for n in (*node.inputs[:2], node.outputs[0]))
    spatial = _spatial(flow, node, w)
    view_x = (x[0], groups, x[1] // groups, *x[2:])
    view_w = (groups, w[0] // groups, *w[1:])
    kernel = (None,) * len(spatial)
    operands = [
        Operand(0, ("n", "g", "c", *spatial), view_x),
        Operand(1, ("g", "o", "c", *kernel), view_w, own=(("g", "o"),)),
        Operand(2, ("g", "o"), view_w[:2], own=(("g", "o"),)),
    ]
    combine(flow, operands, Result(("n", "g", "o", *spatial), (y[0], *view_w[:2], *y[2:])))


def _spatial(flow: Flow, node: Node, kernel: Shape) -> tuple[str | None, ...]:
    """Labels of spatial axes: one where channels live and the kernel looks at one position.

    Channels that lie on the axis that is summed as well get none: they go with all positions.
    """
    rank = len(kernel) - 2
    strides = node.attr("strides") or [1] * rank
    pads = node.attr("pads") or [0] * 2 * rank
    summed = flow.spans(node.inputs[1], 1)
    lived = {a for f in flow.fields(0) if not (summed and 1 in f.axes) for a in f.axes}
    return tuple(
        f"s{i}"
        if i + 2 in lived and (kernel[i + 2], strides[i], pads[i], pads[i + rank]) == (1, 1, 0, 0)
        else None
        for i in range(rank)
    )


@rules.macs("Conv", "ConvInteger", "DeformConv")
def conv_macs(node: Node, shape_of: ShapeOf) -> int:
    """Output elements times the weights of one filter."""
    return prod(shape_of(node.outputs[0])) * prod(shape_of(node.inputs[1])[1:])


@rules.on("ConvTranspose")
def conv_transpose(flow: Flow, node: Node) -> None:
    """Columns of W make Y's channels; a sum runs over W's rows and X's channels, by group."""
    groups = int(node.attr("group", 1))
    x, w, y = (flow.shape(n) or () for n in (*node.inputs[:2], node.outputs[0]))
    spatial = (None,) * (len(x) - 2)
    view_x = (x[0], groups, x[1] // groups, *x[2:])
    view_w = (groups, w[0] // groups, *w[1:])
    view_b = (groups, w[1])
    operands = [
        Operand(0, ("n", "g", "c", *spatial), view_x),
        Operand(1, ("g", "c", "o", *spatial), view_w, own=(("g", "o"),)),
        Operand(2, ("g", "o"), view_b, own=(("g", "o"),)),
    ]
    combine(flow, operands, Result(("n", "g", "o", *spatial), (y[0], *view_b, *y[2:])))


@rules.macs("ConvTranspose")
def conv_transpose_macs(node: Node, shape_of: ShapeOf) -> int:
    """Input elements times the weights each is multiplied by."""
    return prod(shape_of(node.inputs[0])) * prod(shape_of(node.inputs[1])[1:])


@rules.rewire("Conv", "ConvTranspose")
def regroup_conv(wiring: Wiring, node: Node) -> None:
    """Groups that lost all their channels are gone; a depthwise kernel has one per channel."""
    groups = int(node.attr("group", 1))
    if groups == 1:
        return
    old, new = wiring.before(node.inputs[1])[0], wiring.after(node.inputs[1])[0]
    channels = wiring.after(node.inputs[0])[0][1]
    rows_each = new[1] if node.op == "Conv" else 0
    wiring.set(node, group=channels // rows_each if rows_each else _groups(wiring, node, old))


def _groups(wiring: Wiring, node: Node, old: tuple[int, ...]) -> int:
    """Living groups of a ConvTranspose: those whose input channels are not all gone."""
    kept = wiring.kept(node.inputs[0], 1)
    groups = int(node.attr("group", 1))
    each = old[0] // groups
    return groups if kept is None else len({int(c) // each for c in kept})


@rules.on(
    "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"
)
def pool(flow: Flow, node: Node) -> None:
    """Batch and channel axes pass; spatial axes stay whole."""
    inner = range(2, len(flow.shape(node.inputs[0]) or ()))
    fields = flow.whole(flow.fields(0), inner, f"{flow.where()} over spatial positions")
    for output in range(len(node.outputs)):
        flow.put(output, fields)
