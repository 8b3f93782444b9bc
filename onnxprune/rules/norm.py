"""Normalisations. Those over channels are approximate: their mean and variance change."""

from __future__ import annotations

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import rules
from onnxprune.rules.wiring import Wiring


def _labels(rank: int) -> tuple[str, ...]:
    return tuple(str(a) for a in range(rank))


def _rank(flow: Flow, node: Node) -> int:
    return len(flow.shape(node.inputs[0]) or ())


def _approximate_over(flow: Flow, axes: range) -> None:
    over = [f for f in flow.fields(0) if set(f.axes) & set(axes)]
    flow.approximate(over, f"{flow.where()} over channels")


@rules.on("BatchNormalization")
def batch_norm(flow: Flow, node: Node) -> None:
    """Each channel has its scale, bias, mean and variance."""
    labels = _labels(_rank(flow, node))
    vectors = [Operand(i, ("1",)) for i in range(1, 5)]
    combine(flow, [Operand(0, labels), *vectors], Result(labels))


@rules.on("InstanceNormalization")
def instance_norm(flow: Flow, node: Node) -> None:
    """Each channel has its scale and bias; what lives on the axes behind is approximate."""
    rank = _rank(flow, node)
    _approximate_over(flow, range(2, rank))
    labels = _labels(rank)
    combine(flow, [Operand(0, labels), Operand(1, ("1",)), Operand(2, ("1",))], Result(labels))


@rules.on("LayerNormalization", "RMSNormalization")
@rules.on("SimplifiedLayerNormalization")
def layer_norm(flow: Flow, node: Node) -> None:
    """Scale and bias follow the normalised axes; approximate over them."""
    rank = _rank(flow, node)
    axis = int(node.attr("axis", -1)) % rank
    _approximate_over(flow, range(axis, rank))
    labels = _labels(rank)
    operands = [Operand(0, labels)]
    for slot in (1, 2):
        if node.input(slot):
            own = len(flow.shape(node.inputs[slot]) or ())
            operands.append(Operand(slot, labels[rank - own :]))
    combine(flow, operands, Result(labels))


@rules.on("GroupNormalization")
def group_norm(flow: Flow, node: Node) -> None:
    """Channels of a group are normalised together: groups thin alike; approximate."""
    x = flow.shape(node.inputs[0]) or ()
    groups = int(node.attr("num_groups"))
    _approximate_over(flow, range(1, len(x)))
    view = (x[0], groups, x[1] // groups, *x[2:])
    labels = ("n", "g", "c", *(f"s{i}" for i in range(len(x) - 2)))
    scale = flow.shape(node.inputs[1]) or ()
    per_group = scale[0] == groups and groups != x[1]
    operands = [Operand(0, labels, view)] + [
        Operand(i, ("g",) if per_group else ("g", "c"), None if per_group else view[1:3])
        for i in (1, 2)
    ]
    combine(flow, operands, Result(labels, view))


@rules.rewire("GroupNormalization")
def regroup_norm(wiring: Wiring, node: Node) -> None:
    """Groups that lost all their channels are gone."""
    kept = wiring.kept(node.inputs[0], 1)
    if kept is not None:
        each = wiring.before(node.inputs[0])[0][1] // int(node.attr("num_groups"))
        wiring.set(node, num_groups=len({int(c) // each for c in kept}))


@rules.on("LRN")
def lrn(flow: Flow, node: Node) -> None:
    """Neighbouring channels are summed: approximate."""
    _approximate_over(flow, range(1, 2))
    flow.put(0, flow.fields(0))


@rules.on("LpNormalization")
def lp_norm(flow: Flow, node: Node) -> None:
    """A norm over channels: what is zero does not count, so a cut is exact."""
    axis = int(node.attr("axis", -1)) % _rank(flow, node)
    for one in flow.fields(0):
        if axis in one.axes:
            flow.contract(0, one)
    flow.put(0, flow.fields(0))


@rules.on("MeanVarianceNormalization")
def mean_variance(flow: Flow, node: Node) -> None:
    """Mean and variance over axes: approximate where channels live on them."""
    axes = [int(a) for a in node.attr("axes", [0, 2, 3])]
    over = [f for f in flow.fields(0) if set(f.axes) & set(axes)]
    flow.approximate(over, f"{flow.where()} over channels")
    flow.put(0, flow.fields(0))
