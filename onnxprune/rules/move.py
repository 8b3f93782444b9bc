"""Operators that only move data: they are run on the identities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.identity.fields import Field, IntArray, Shape
from onnxprune.identity.flow import Flow
from onnxprune.model.graph import Node
from onnxprune.rules.registry import rules

Moved = list[tuple[IntArray, Sequence[int]]]


def shape_pairs(flow: Flow, before: str, after: str) -> list[tuple[Shape, Shape]]:
    """(before, after) at both sizes."""
    return list(zip(flow.shapes(before), flow.shapes(after), strict=True))


def is_static(flow: Flow, name: str, axis: int) -> bool:
    """True where the axis has the same length at both sizes."""
    a, b = flow.shapes(name)
    return a[axis] == b[axis]


def same_at_both(flow: Flow, slot: int) -> bool:
    """True for an operand whose known value does not depend on the sizes."""
    name = flow.node.input(slot)
    if name not in flow.first.value:
        return True
    return np.array_equal(flow.first.value[name], flow.second.value[name])


def settle_all(flow: Flow, output: int, moved: Moved) -> None:
    """Put moved identities on an output."""
    flow.put(output, flow.settle(flow.node.outputs[output], moved))


def split_held(
    flow: Flow, fields: Sequence[Field], axes: Sequence[int], reason: str
) -> list[Field]:
    """Pin the fields that live on `axes`; return the others."""
    held = [f for f in fields if set(f.axes) & set(axes)]
    flow.pin(held, reason)
    return [f for f in fields if not set(f.axes) & set(axes)]


@rules.on("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(flow: Flow, node: Node) -> None:
    """Positions keep their flat order."""
    pairs = shape_pairs(flow, node.inputs[0], node.outputs[0])
    flow.put(0, flow.reshape(node.outputs[0], flow.fields(0), pairs))


@rules.on("Transpose")
def transpose(flow: Flow, node: Node) -> None:
    """Axes change places."""
    rank = len(flow.shape(node.inputs[0]) or ())
    perm = [int(p) for p in node.attr("perm", list(range(rank))[::-1])]
    place = [perm.index(a) for a in range(rank)]
    flow.put(0, [f.moved(f.ids.transpose(perm), place) for f in flow.fields(0)])


@rules.on("Concat")
def concat(flow: Flow, node: Node) -> None:
    """Inputs follow each other along an axis; along the others they are the same channels."""
    rank = len(flow.shape(node.outputs[0]) or ())
    axis = int(node.attr("axis", 1)) % rank
    inputs = [tuple(flow.fields(i)) for i in range(len(node.inputs))]
    on = [[f for f in fields if axis in f.axes] for fields in inputs]
    off = [[f for f in fields if axis not in f.axes] for fields in inputs]
    joined = _join(flow, on, off, axis)
    across = _tie_across(flow, node, on, off, axis)
    settle_all(flow, 0, [(f.ids, [f.thin]) for f in [*joined, *across]])


def _tie_across(
    flow: Flow, node: Node, on: list[list[Field]], off: list[list[Field]], axis: int
) -> list[Field]:
    """Fields off the concatenated axis: equal in all inputs, or held."""
    for other in range(len(flow.shape(node.outputs[0]) or ())):
        if other == axis or not flow.spans(node.outputs[0], other):
            continue
        own = [[f for f in (*a, *b) if other in f.axes] for a, b in zip(on, off, strict=True)]
        if any(not fields for fields in own):
            everything = [f for fields in own for f in fields]
            missing = next(i for i, fields in enumerate(own) if not fields)
            flow.pin(everything, f"lined up with `{node.inputs[missing]}` by {flow.where()}")
    kept: list[Field] = []
    for one in off[0]:
        partners = [next((f for f in fields if f.axes == one.axes), None) for fields in off[1:]]
        if all(p is not None for p in partners):
            for partner in partners:
                flow.equal(one.ids, partner.ids)  # type: ignore[union-attr]
            kept.append(one)
    alone = [f for fields in off for f in fields if all(f.axes != k.axes for k in kept)]
    flow.pin(alone, f"lined up with several axes by {flow.where()}")
    return kept


def _join(flow: Flow, on: list[list[Field]], off: list[list[Field]], axis: int) -> list[Field]:
    """Fields along the concatenated axis, one after the other.

    An input that has channels on the other axes alone has the same ones at each of its positions.
    """
    if not any(on):
        return []
    for fields in on:
        if len(fields) > 1:
            flow.pin(fields[1:], f"{flow.where()}: positions carry two kinds of identities")
    pieces = []
    around = sorted({a for fields in on for f in fields[:1] for a in f.axes} - {axis})
    for slot, fields in enumerate(on):
        shape = flow.shape(flow.node.inputs[slot]) or ()
        same = [f for f in off[slot] if list(f.axes) == around]
        if not fields and same:
            off[slot].remove(same[0])
            ids = np.repeat(same[0].ids, shape[axis], axis=axis)
            fields = on[slot] = [Field(ids, tuple(sorted([axis, *around])), same[0].thin)]
        pieces.append(fields[0] if fields else _fixed_piece(flow, slot, shape[axis], axis))
    axes = sorted({a for p in pieces for a in p.axes})
    rank = pieces[0].ids.ndim
    whole = [max(p.ids.shape[a] for p in pieces) if a in axes else 1 for a in range(rank)]
    arrays = [
        np.broadcast_to(p.ids, [p.ids.shape[axis] if a == axis else n for a, n in enumerate(whole)])
        for p in pieces
    ]
    thin = next((p.thin for p in pieces if len(p.axes) > 1), axis)
    return [Field(np.concatenate(arrays, axis=axis), tuple(axes), thin)]


def _fixed_piece(flow: Flow, slot: int, length: int, axis: int) -> Field:
    """Positions of an input that cannot shrink: they get identities, which are held."""
    rank = len(flow.shape(flow.node.inputs[slot]) or ())

    def make() -> list[Field]:
        return _plain(flow, axis, length, rank)

    [piece] = flow.source(f"held {slot}", make)
    name = flow.node.inputs[slot]
    flow.pin([piece], f"beside `{name}`, which cannot shrink, in {flow.where()}")
    return piece


def grown(
    flow: Flow, name: str, output: str, word: str, fields: Sequence[Field]
) -> list[Field]:
    """Fresh identities on static axes that grow from length 1 (or from nothing).

    Args:
        fields: what lives on the output already; a cut may have left one position of it.
    """
    taken = {a for f in fields for a in f.axes}
    old, new = flow.shape(name) or (), flow.shape(output) or ()
    old = (1,) * (len(new) - len(old)) + tuple(old)
    made = []
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        spans = flow.spans(output, axis)
        was = axis - (len(new) - len(flow.shape(name) or ()))
        had = axis in taken or (was >= 0 and flow.spans(name, was))
        if spans and not had and is_static(flow, output, axis):
            made += list(flow.source(f"{word} {axis}", lambda a=axis, n=after: _plain(
                flow, a, n, len(new))))  # type: ignore[misc]  # fmt: skip
        assert before in (1, after) or word == "tile", "grown from a length other than 1"
    return made


def _plain(flow: Flow, axis: int, length: int, rank: int) -> list[Field]:
    shape = [1] * rank
    shape[axis] = length
    return [Field(flow.fresh(length).reshape(shape), (axis,), axis)]


@rules.on("Expand")
def expand(flow: Flow, node: Node) -> None:
    """Axes of length 1 grow: where they are static their positions can go again."""
    rank = len(flow.shape(node.outputs[0]) or ())
    fields = [_lead(f, rank) for f in flow.fields(0)]
    flow.put(0, [*fields, *grown(flow, node.inputs[0], node.outputs[0], "grown", fields)])


def _lead(field: Field, rank: int) -> Field:
    """The field of a tensor that gets leading axes of length 1."""
    more = rank - field.ids.ndim
    ids = field.ids.reshape((1,) * more + field.ids.shape)
    return field.moved(ids, [a + more for a in range(field.ids.ndim)])


@rules.on("ConstantOfShape")
def constant_of_shape(flow: Flow, node: Node) -> None:
    """Static axes can shrink with what the constant is joined to."""
    shape = flow.shape(node.outputs[0]) or ()
    made: list[Field] = []
    for axis, length in enumerate(shape):
        if flow.spans(node.outputs[0], axis) and is_static(flow, node.outputs[0], axis):
            made += flow.source(f"grown {axis}", lambda a=axis, n=length: _plain(
                flow, a, n, len(shape)))  # type: ignore[misc]  # fmt: skip
    flow.put(0, made)


@rules.on("Tile")
def tile(flow: Flow, node: Node) -> None:
    """Positions repeat; what grows from length 1 can shrink again."""
    repeats = flow.value(1)
    rank = len(flow.shape(node.inputs[0]) or ())
    if repeats is None:
        split_held(flow, flow.fields(0), range(rank), f"{flow.where()}: repeats are computed")
        return
    fields = list(flow.fields(0))
    if not same_at_both(flow, 1):
        loose = [a for a in range(rank) if not is_static(flow, node.outputs[0], a)]
        fields = split_held(flow, fields, loose, f"{flow.where()}: repeats are computed")
    moved: Moved = [
        (np.tile(f.ids, [int(repeats[a]) if a in f.axes else 1 for a in range(rank)]), [f.thin])
        for f in fields
    ]
    made = grown(flow, node.inputs[0], node.outputs[0], "tile", fields)
    flow.put(0, [*flow.settle(node.outputs[0], moved), *made])


@rules.on("Pad")
def pad(flow: Flow, node: Node) -> None:
    """Added positions get identities of their own, so that they shrink with what they meet."""
    rank = len(flow.shape(node.inputs[0]) or ())
    amounts = flow.value(1) if node.input(1) else node.attr("pads", node.attr("paddings"))
    mode = node.attr("mode", "constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    given = flow.value(3) if node.input(3) else None
    if amounts is None or (node.input(3) and given is None):
        split_held(flow, flow.fields(0), range(rank), f"{flow.where()}: amounts are computed")
        return
    axes = [int(a) % rank for a in given] if given is not None else list(range(rank))
    before = dict(zip(axes, (int(n) for n in amounts[: len(axes)]), strict=True))
    after = dict(zip(axes, (int(n) for n in amounts[len(axes) :]), strict=True))
    padded = [a for a in axes if before[a] or after[a]]
    odd = padded if mode != "constant" else [a for a in padded if min(before[a], after[a]) < 0]
    fields = split_held(flow, flow.fields(0), odd, f"{flow.where()}: mode {mode} over channels")
    moved: Moved = []
    for index, field in enumerate(fields):
        for axis in set(field.axes) & set(padded):
            field = _padded(flow, field, axis, before[axis], after[axis], index)
        moved.append((field.ids, [field.thin]))
    settle_all(flow, 0, moved)


def _padded(flow: Flow, field: Field, axis: int, before: int, after: int, index: int) -> Field:
    shape = [n if a in field.axes else 1 for a, n in enumerate(field.ids.shape)]
    pieces = [field.ids]
    for word, count in (("before", before), ("after", after)):
        if not count:
            continue
        size = [count if a == axis else n for a, n in enumerate(shape)]

        def make(size: list[int] = size) -> list[Field]:
            ids = flow.fresh(int(np.prod(size))).reshape(size)
            return [Field(ids, field.axes, field.thin)]

        [piece] = flow.source(f"{word} {axis} {index}", make)
        pieces.insert(0 if word == "before" else len(pieces), piece.ids)
    return Field(np.concatenate(pieces, axis=axis), field.axes, field.thin)


@rules.on("DepthToSpace", "SpaceToDepth")
def pixel_shuffle(flow: Flow, node: Node) -> None:
    """Blocks of channels become blocks of pixels, or the other way round."""
    (n, c, h, w), block = flow.shape(node.inputs[0]) or (0, 0, 0, 0), int(node.attr("blocksize"))
    mode = node.attr("mode", "DCR")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if node.op == "SpaceToDepth":
        view, perm, own = (n, c, h // block, block, w // block, block), (0, 3, 5, 1, 2, 4), 1
    elif mode == "DCR":
        view, perm, own = (n, block, block, c // block**2, h, w), (0, 3, 4, 1, 5, 2), 3
    else:
        view, perm, own = (n, c // block**2, block, block, h, w), (0, 1, 4, 2, 5, 3), 1
    key, shape, out = node.outputs[0], (n, c, h, w), flow.shape(node.outputs[0]) or ()
    still = [a for a in range(6) if a != own]
    seen = flow.reshape(f"{key}/view", flow.fields(0), [(shape, view)], still)
    place = [perm.index(a) for a in range(6)]
    # Pixels cannot go alone; of a single channel there is nothing else.
    held = [f for f in seen if f is not None and f.thin != own]
    flow.pin(held, f"{flow.where()} has pixels instead of channels")
    kept = [f for f in seen if f is not None and f.thin == own]
    turned = [f.moved(f.ids.transpose(perm), place) for f in kept]
    between = tuple(view[p] for p in perm)
    flow.put(0, flow.reshape(key, turned, [(between, out)]))


@rules.on("Resize", "Upsample")
def resize(flow: Flow, node: Node) -> None:
    """Axes that keep their length pass; the others stay whole."""
    (a, b), (c, d) = flow.shapes(node.inputs[0]), flow.shapes(node.outputs[0])
    resized = [i for i in range(len(a)) if a[i] != c[i] or b[i] != d[i]]
    flow.put(0, flow.whole(flow.fields(0), resized, f"{flow.where()} changes this axis"))


@rules.on("GridSample")
def grid_sample(flow: Flow, node: Node) -> None:
    """Batch and channels pass; the grid is held."""
    flow.pin(flow.fields(1), f"{flow.where()}: used as a grid")
    flow.put(0, flow.whole(flow.fields(0), [2, 3, 4], f"{flow.where()} resamples it"))
