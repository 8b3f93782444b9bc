"""What moving data, pooling and padding leave of what is known (see `known`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.cleanup.knowledge import LIMIT, Knowledge, on
from onnxprune.cleanup.known import Array, Known, fresh
from onnxprune.identity.fields import regroup, regroup_bounds
from onnxprune.model.graph import Node
from onnxprune.shape.kernels import axes_argument, slice_arguments


@on("Transpose")
def _transpose(k: Knowledge, node: Node) -> Sequence[Known | None]:
    x = k.of(node.inputs[0])
    if x is None:
        return [None]
    perm = node.attr("perm", list(range(x.kind.ndim))[::-1])
    return [Known(x.kind.transpose(perm), x.factor.transpose(perm)).salted(node.key)]


@on("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(k: Knowledge, node: Node) -> Sequence[Known | None]:
    x, name = k.of(node.inputs[0]), node.outputs[0]
    if x is None:
        return [None]
    pairs = [(s.shape[node.inputs[0]], s.shape[name]) for s in k.shapes]
    before, after = pairs[0]
    if before == after:
        return [x]
    blocks = regroup_bounds(pairs)
    full = list(x.kind.shape)
    for i0, i1, _, _ in blocks:
        if any(n > 1 for n in x.kind.shape[i0:i1]):
            full[i0:i1] = before[i0:i1]
    if np.prod(full) > LIMIT:
        return [None]
    for axis, length in enumerate(full):
        x = x.spread(axis, length)
    varies = [a for a, n in enumerate(x.kind.shape) if n > 1]
    factor = np.broadcast_to(x.factor, x.kind.shape)
    index = regroup(np.arange(x.kind.size).reshape(x.kind.shape), before, after, blocks, varies)
    return [Known(x.kind.ravel()[index], factor.ravel()[index]).salted(node.key)]


@on("Concat")
def _concat(k: Knowledge, node: Node) -> Sequence[Known | None]:
    found = [k.of(n) for n in node.inputs]
    kept = [x for x in found if x is not None]
    if len(kept) < len(found):
        return [None]
    rank = kept[0].kind.ndim
    axis = int(node.attr("axis", 1)) % rank
    shapes = [k.shape(n) for n in node.inputs]
    for other in range(rank):
        longest = max(x.kind.shape[other] for x in kept)
        if other != axis and longest > 1:
            kept = [x.spread(other, longest) for x in kept]
    kept = [x.spread(axis, s[axis]) for x, s in zip(kept, shapes, strict=True)]
    factors = [np.broadcast_to(x.factor, x.kind.shape) for x in kept]
    kind = np.concatenate([x.kind for x in kept], axis)
    return [Known(kind, np.concatenate(factors, axis))]


@on("Split")
def _split(k: Knowledge, node: Node) -> Sequence[Known | None]:
    x = k.of(node.inputs[0])
    if x is None or not all(node.outputs):
        return [None]
    axis = int(node.attr("axis", 0)) % x.kind.ndim
    sizes = [k.shape(n)[axis] for n in node.outputs]
    starts = np.cumsum([0, *sizes])
    ranges = zip(starts, sizes, node.outputs, strict=False)
    return [_taken(x, axis, np.arange(s, s + n), name) for s, n, name in ranges]


def _taken(x: Known, axis: int, index: Array, salt: str) -> Known:
    if x.kind.shape[axis] == 1:
        return x.salted(salt)  # other positions of what varies freely
    factor = np.broadcast_to(x.factor, x.kind.shape)
    return Known(x.kind.take(index, axis), factor.take(index, axis))


@on("Slice")
def _slice(k: Knowledge, node: Node) -> Sequence[Known | None]:
    x, shape = k.of(node.inputs[0]), k.shape(node.inputs[0])
    operands = [None, *(k.number_of(node, i) for i in range(1, 5))]
    if x is None or any(v is None and node.input(i) for i, v in enumerate(operands) if i):
        return [None]
    for axis, start, end, step in slice_arguments(node, operands, len(shape)):
        stop = None if step < 0 and end < -shape[axis] else end
        index = np.arange(shape[axis])[slice(start, stop, step)]
        x = _taken(x, axis, index, f"{node.key} {axis}")
    return [x]


@on("Gather")
def _gather(k: Knowledge, node: Node) -> Sequence[Known | None]:
    x, index = k.of(node.inputs[0]), k.number_of(node, 1)
    if x is None or index is None or index.ndim != 1 or node.inputs[0] in k.model.initializers:
        return [None]
    axis = int(node.attr("axis", 0)) % x.kind.ndim
    return [_taken(x, axis, index % k.shape(node.inputs[0])[axis], node.key)]


# --- over space -----------------------------------------------------------------------------------


def _local(k: Knowledge, node: Node, *, keeps: bool, axes: Sequence[int]) -> Known | None:
    """A positively homogeneous operator over some axes.

    Args:
        keeps: equal numbers give that number; else zeros give zero.
    """
    x = k.of(node.inputs[0])
    if x is None or any(x.kind.shape[a] > 1 for a in axes):
        return None
    made = x.salted(node.key)
    lost = (x.kind == 0) & (x.factor != 0) & (not keeps)
    alone = fresh(node.outputs[0], made.kind.shape)
    return Known(np.where(lost, alone.kind, made.kind), np.where(lost, 1.0, made.factor))


@on("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample")
def _pool(k: Knowledge, node: Node) -> Sequence[Known | None]:
    rank = len(k.shape(node.inputs[0]))
    counted = node.op == "AveragePool" and bool(node.attr("count_include_pad", 0))
    beyond = node.attr("coordinate_transformation_mode") == b"tf_crop_and_resize"
    same = k.shape(node.inputs[0])[:2] == k.shape(node.outputs[0])[:2]
    keeps = not counted and not beyond and node.attr("mode") != b"cubic"
    return [_local(k, node, keeps=keeps, axes=range(2, rank)) if same else None]


@on("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")
def _reduce(k: Knowledge, node: Node) -> Sequence[Known | None]:
    given = k.number_of(node, 1) if node.input(1) else None
    rank = len(k.shape(node.inputs[0]))
    axes = [a % rank for a in axes_argument(node, [None, given], 1)]
    if not axes:
        return [None]
    made = _local(k, node, keeps=node.op != "ReduceSum", axes=axes)
    if made is None or node.attr("keepdims", 1):
        return [made]
    factor = np.broadcast_to(made.factor, made.kind.shape)
    return [Known(made.kind.squeeze(tuple(axes)), factor.squeeze(tuple(axes)))]


@on("Pad")
def _pad(k: Knowledge, node: Node) -> Sequence[Known | None]:
    """Zeros around zeros are zeros; other numbers are known no longer."""
    before, after = k.shape(node.inputs[0]), k.shape(node.outputs[0])
    fill = k.number_of(node, 2) if node.input(2) else np.asarray(node.attr("value", 0.0))
    zeros = node.attr("mode", b"constant") == b"constant" and fill is not None and not fill.any()
    grown = [a for a, (n, m) in enumerate(zip(before, after, strict=True)) if n != m]
    return [_local(k, node, keeps=False, axes=grown) if zeros else None]
