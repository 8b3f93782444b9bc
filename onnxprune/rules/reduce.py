"""Operators that sum, average, order or normalise over an axis."""

from __future__ import annotations

from onnxprune.identity.combine import Operand, Result, combine
from onnxprune.identity.fields import Field
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import rules
from onnxprune.shape.kernels import axes_argument

# Zeroing a channel leaves these sums as removing it does.
EXACT = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
APPROXIMATE = {"ReduceMean", "ReduceMax", "ReduceMin"}


@rules.on(
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
def reduce(flow: Flow, node: Node) -> None:
    """Sums are exact under a cut; means, maxima and minima approximate; the rest pins."""
    rank = len(flow.shape(node.inputs[0]) or ())
    axes = _axes(flow, node, rank)
    if axes is None:
        flow.pin(flow.fields(0), f"{flow.where()} sums over axes that are computed")
        return
    over = [f for f in flow.fields(0) if set(f.axes) & set(axes)]
    if node.op in APPROXIMATE:
        flow.approximate(over, f"{flow.where()} over channels")
    elif node.op not in EXACT:
        flow.pin(over, f"{flow.where()} over channels")
    keep = bool(node.attr("keepdims", 1))
    labels = tuple(str(a) for a in range(rank))
    out = [None if a in axes else labels[a] for a in range(rank) if keep or a not in axes]
    combine(flow, [Operand(0, labels)], Result(tuple(out)))


def _axes(flow: Flow, node: Node, rank: int) -> list[int] | None:
    given = flow.value(1) if node.input(1) else None
    if node.input(1) and given is None:
        return None
    axes = axes_argument(node, [None, given], 1)
    if not axes:
        return [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in axes]


@rules.on("Softmax", "LogSoftmax", "Hardmax")
def softmax(flow: Flow, node: Node) -> None:
    """Channels of the axis are held; the other axes pass."""
    rank = len(flow.shape(node.inputs[0]) or ())
    opset = flow.model.opset
    axis = int(node.attr("axis", -1 if opset >= 13 else 1)) % max(rank, 1)
    held = range(axis, rank) if opset < 13 else [axis]
    _hold(flow, flow.fields(0), list(held))


@rules.on("CumSum", "ArgMax", "ArgMin", "TopK")
def ordered(flow: Flow, node: Node) -> None:
    """The place in the axis has a meaning: its channels are held; the other axes pass."""
    rank = len(flow.shape(node.inputs[0]) or ())
    given = flow.value(1) if node.op == "CumSum" else node.attr("axis", -1 * (node.op == "TopK"))
    if given is None:
        flow.pin(flow.fields(0), f"{flow.where()} along an axis that is computed")
        return
    axis = int(given) % max(rank, 1)
    passed = _hold(flow, flow.fields(0), [axis], put=False)
    if node.op in {"ArgMax", "ArgMin"} and not node.attr("keepdims", 1):
        passed = [_without(f, axis) for f in passed]
    for output in range(len(node.outputs)):
        flow.put(output, passed)


def _hold(flow: Flow, fields: tuple[Field, ...], axes: list[int], put: bool = True) -> list[Field]:
    held = [f for f in fields if set(f.axes) & set(axes)]
    flow.pin(held, f"{flow.where()} over channels")
    passed = [f for f in fields if not set(f.axes) & set(axes)]
    if put:
        # Pinned identities go on too: what they meet later must know of them.
        flow.put(0, fields)
    return passed


def _without(field: Field, axis: int) -> Field:
    ids = field.ids.reshape(field.ids.shape[:axis] + field.ids.shape[axis + 1 :])
    return field.moved(ids, [a - (a > axis) for a in range(field.ids.ndim)])
