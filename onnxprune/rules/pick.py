"""Operators that pick positions of an axis: ranges, parts, indices."""

from __future__ import annotations

import numpy as np

from onnxprune.identity.fields import Field, IntArray
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.move import is_static, same_at_both, settle_all, shape_pairs, split_held
from onnxprune.rules.registry import rules
from onnxprune.shape.kernels import is_flat_order, slice_arguments


@rules.on("Slice")
def slice_(flow: Flow, node: Node) -> None:
    """A range of an axis stays."""
    shape = flow.shape(node.inputs[0]) or ()
    operands = [None, *(flow.value(i) for i in range(1, 5))]
    if any(v is None and node.input(i) for i, v in enumerate(operands) if i):
        split_held(flow, flow.fields(0), range(len(shape)), f"{flow.where()}: bounds are computed")
        return
    fixed = all(same_at_both(flow, i) for i in range(1, 5))
    fields = list(flow.fields(0))
    for axis, start, end, step in slice_arguments(node, operands, len(shape)):
        chosen = range(shape[axis])[_python_slice(start, end, step, shape[axis])]
        whole = len(chosen) == shape[axis] and step == 1
        if whole and all(n == m for n, m in zip(*_lengths(flow, node, axis), strict=True)):
            continue
        if not fixed or not is_static(flow, node.inputs[0], axis):
            fields = split_held(flow, fields, [axis], f"{flow.where()}: bounds are computed")
        fields = [_select(flow, f, axis, np.array(chosen, np.int64), step == 1) for f in fields]
    settle_all(flow, 0, [(f.ids, [f.thin]) for f in fields])


def _lengths(flow: Flow, node: Node, axis: int) -> tuple[tuple[int, int], tuple[int, int]]:
    (a, b), (c, d) = flow.shapes(node.inputs[0]), flow.shapes(node.outputs[0])
    return (a[axis], b[axis]), (c[axis], d[axis])


def _python_slice(start: int, end: int, step: int, length: int) -> slice:
    return slice(start, None if step < 0 and end < -length else end, step)


def _select(flow: Flow, field: Field, axis: int, chosen: IntArray, is_range: bool) -> Field:
    """Take positions of an axis; on a thinned axis rows must agree unless it is a range."""
    if axis not in field.axes:
        return field
    if not np.size(chosen) and axis == field.thin and len(field.axes) > 1:
        return _rows_alone(flow, field)
    hold_single(flow, field, axis, chosen)
    if axis == field.thin and len(field.axes) > 1 and not is_range:
        # Rows keep different positions: one index list cannot name them all.
        field = flow.tie_along(field, field.rows) or field
    if axis == field.thin and is_range and len(chosen):
        flow.sever(field, (int(chosen[0]), int(chosen[-1]) + 1))
    ids = field.ids.take(chosen, axis=axis)
    if len(set(np.ravel(chosen).tolist())) < field.ids.shape[axis]:
        flow.part(ids)
    return Field(ids, field.axes, field.thin)


def _rows_alone(flow: Flow, field: Field) -> Field:
    """Rows of a field of which no position was picked: they still go as the rows did."""

    def make() -> list[Field]:
        shape = [n if a in field.rows else 1 for a, n in enumerate(field.ids.shape)]
        ids = flow.fresh(int(np.prod(shape))).reshape(shape)
        return [Field(ids, field.rows, field.rows[-1])]

    [parent] = flow.source(f"rows beside {field.thin}", make)
    flow.link(parent.ids, field.ids)
    return parent


def hold_single(flow: Flow, field: Field, axis: int, chosen: IntArray) -> None:
    """The only position of an axis cannot go: nothing would be left of the axis."""
    if not np.size(chosen) or axis != field.thin:
        return
    taken = field.ids.take(np.ravel(chosen), axis=axis)
    first = taken.take([0], axis=axis)
    if np.array_equal(np.broadcast_to(first, taken.shape), taken):  # however often it is picked
        only = Field(first, field.axes, field.thin)
        flow.pin([only], f"{flow.where()} picks this position alone")


@rules.on("Split")
def split(flow: Flow, node: Node) -> None:
    """Ranges of an axis go to one output each."""
    axis = int(node.attr("axis", 0)) % len(flow.shape(node.inputs[0]) or (1,))
    start = 0
    for output, name in enumerate(node.outputs):
        length = (flow.shape(name) or ())[axis] if name else 0
        chosen = np.arange(start, start + length)
        start += length
        if name:
            moved = [_select(flow, f, axis, chosen, True) for f in flow.fields(0)]
            settle_all(flow, output, [(f.ids, [f.thin]) for f in moved])


@rules.on("Gather")
def gather(flow: Flow, node: Node) -> None:
    """Positions picked by constant indices; an axis picked by data is held."""
    data, where = flow.shape(node.inputs[0]) or (), flow.shape(node.inputs[1]) or ()
    axis = int(node.attr("axis", 0)) % len(data)
    indices = flow.value(1)
    fields = flow.fields(0)
    if _is_reshape(flow, node):
        pairs = shape_pairs(flow, node.inputs[0], node.outputs[0])
        flow.put(0, flow.reshape(node.outputs[0], fields, pairs))
        return
    if indices is None or not same_at_both(flow, 1):
        fields = tuple(split_held(flow, fields, [axis], f"{flow.where()}: rows picked by data"))
        indices = None
        flow.pin(flow.fields(1), f"{flow.where()}: used as indices")
    settle_all(flow, 0, [_gathered(flow, f, axis, indices, len(where)) for f in fields])


def _is_reshape(flow: Flow, node: Node) -> bool:
    """True for computed indices that are every position in turn, at both sizes."""
    name, shapes = node.inputs[1], flow.shapes(node.inputs[0])
    known = (flow.first.value.get(name), flow.second.value.get(name))
    return all(v is not None and is_flat_order(v, s) for v, s in zip(known, shapes, strict=True))


def _gathered(
    flow: Flow, field: Field, axis: int, indices: IntArray | None, rank: int
) -> tuple[IntArray, list[int]]:
    """Identities after a Gather, and where the thinned axis went."""
    thin = field.thin + (rank - 1) * (field.thin > axis)
    if axis not in field.axes or indices is None:
        ids = field.ids.squeeze(axis)
        return np.expand_dims(ids, tuple(range(axis, axis + rank))), [thin]
    chosen = np.asarray(indices, np.int64) % field.ids.shape[axis]
    ids = _select(flow, field, axis, chosen.ravel(), False).ids
    return ids.reshape(*ids.shape[:axis], *chosen.shape, *ids.shape[axis + 1 :]), [thin]
