"""What a cut changes in operators that name shapes: their operands and attributes."""

from __future__ import annotations

import numpy as np

from onnxprune.model.graph import Node
from onnxprune.rules.registry import rules
from onnxprune.rules.wiring import Ints, Wiring
from onnxprune.shape.kernels import is_flat_order, slice_arguments
from onnxprune.shape.shapes import Shape


@rules.rewire("Reshape")
def reshape(wiring: Wiring, node: Node) -> None:
    """Entries that name a length follow it; 0 (copy) and -1 (infer) stay what they are."""
    values = wiring.values(node, 1)
    if values is None:
        return
    old, new = wiring.after(node.inputs[0]), wiring.after(node.outputs[0])
    allow = bool(node.attr("allowzero", 0))

    def target(value: Ints, source: Shape, after: Shape) -> list[int]:
        entries = []
        for i, n in enumerate(np.ravel(value).tolist()):
            copies = n == 0 and not allow and i < len(source) and source[i] == after[i]
            entries.append(0 if copies else -1 if n == -1 else after[i])
        return entries

    wants = [target(v, s, a) for v, s, a in zip(values, old, new, strict=True)]
    wiring.want(node, 1, *wants)


@rules.rewire("Expand", "ConstantOfShape")
def expand(wiring: Wiring, node: Node) -> None:
    """Lengths follow the output; a 1 that leaves a length alone stays."""
    slot = 1 if node.op == "Expand" else 0
    values = wiring.values(node, slot)
    if values is None:
        return
    new = wiring.after(node.outputs[0])
    wants = []
    for value, after in zip(values, new, strict=True):
        entries = np.ravel(value).tolist()
        tail = after[len(after) - len(entries) :]
        wants.append([1 if n == 1 and slot else m for n, m in zip(entries, tail, strict=True)])
    wiring.want(node, slot, *wants)


@rules.rewire("Slice")
def slice_(wiring: Wiring, node: Node) -> None:
    """Bounds count what is left before them."""
    shape = wiring.before(node.inputs[0])[0]
    operands = [None, *(_first(wiring.values(node, i)) for i in range(1, 5))]
    if any(v is None and node.input(i) for i, v in enumerate(operands) if i):
        return
    rows = slice_arguments(node, operands, len(shape))
    starts: list[int | None] = [None] * len(rows)
    ends: list[int | None] = [None] * len(rows)
    for i, (axis, start, end, step) in enumerate(rows):
        kept = wiring.kept(node.inputs[0], axis)
        if kept is None:
            continue
        stop = None if step < 0 and end < -shape[axis] else end
        chosen = np.arange(shape[axis])[slice(start, stop, step)]
        left = np.searchsorted(kept, chosen[np.isin(chosen, kept)])
        if step != 1 and not _is_progression(left, step):
            if len(rows) == 1:
                wiring.replace_by_gather(node, axis, left)
            return
        if len(left):
            starts[i], ends[i] = _bounds(left, step, end, len(chosen) == shape[axis] - start)
        else:
            starts[i] = ends[i] = len(kept)
    _set_bounds(wiring, node, starts, ends, operands)


def _first(values: tuple[Ints, Ints] | None) -> Ints | None:
    return None if values is None else values[0]


def _is_progression(left: Ints, step: int) -> bool:
    return len(left) > 0 and bool((np.diff(left) == step).all()) and step > 0


def _bounds(left: Ints, step: int, end: int, open_ended: bool) -> tuple[int, int]:
    start = int(left[0])
    stop = start + (len(left) - 1) * step + 1
    return start, end if open_ended and end > (1 << 30) else stop


def _set_bounds(
    wiring: Wiring,
    node: Node,
    starts: list[int | None],
    ends: list[int | None],
    operands: list[Ints | None],
) -> None:
    if not any(s is not None for s in starts):
        return
    if operands[1] is not None:
        wiring.want(node, 1, starts, starts)
        wiring.want(node, 2, ends, ends)
        return
    old = zip(node.attr("starts"), starts, strict=True), zip(node.attr("ends"), ends, strict=True)
    new = [[int(o) if n is None else n for o, n in pairs] for pairs in old]
    wiring.set(node, starts=new[0], ends=new[1])


@rules.rewire("Split")
def split(wiring: Wiring, node: Node) -> None:
    """Each part has what it kept."""
    axis = int(node.attr("axis", 0)) % len(wiring.before(node.inputs[0])[0])
    if wiring.kept(node.inputs[0], axis) is None:
        return
    sizes = [wiring.after(n)[0][axis] for n in node.outputs]
    if node.attr("split") is not None:
        wiring.set(node, split=sizes)
    elif node.input(1) or len(set(sizes)) > 1 or node.attr("num_outputs") is not None:
        wiring.set(node, num_outputs=None)
        wiring.want(node, 1, sizes, sizes)


@rules.rewire("Gather")
def gather(wiring: Wiring, node: Node) -> None:
    """Indices name the positions that are left."""
    values = wiring.values(node, 1)
    shape = wiring.before(node.inputs[0])[0] if node.inputs[0] else ()
    axis = int(node.attr("axis", 0)) % max(len(shape), 1)
    kept = wiring.kept(node.inputs[0], axis)
    if values is None or kept is None:
        return
    flat = zip(values, wiring.before(node.inputs[0]), strict=True)
    if not np.array_equal(*values) and all(is_flat_order(v, s) for v, s in flat):
        wiring.replace_by_reshape(node, *wiring.after(node.outputs[0]))
        return
    indices = np.asarray(values[0], np.int64) % shape[axis]
    for at in range(indices.ndim):
        out = wiring.kept(node.outputs[0], axis + at)
        if out is not None:
            indices = indices.take(out, axis=at)
    wiring.replace_by_gather(node, axis, np.searchsorted(kept, indices))


@rules.rewire("Tile")
def tile(wiring: Wiring, node: Node) -> None:
    """What grew from length 1 grows to what is left."""
    if wiring.values(node, 1) is None:
        return
    old, new = wiring.after(node.inputs[0]), wiring.after(node.outputs[0])
    wants = [
        [m // max(n, 1) for n, m in zip(a, b, strict=True)]
        for a, b in zip(old, new, strict=True)
    ]
    wiring.want(node, 1, *wants)


@rules.rewire("Pad")
def pad(wiring: Wiring, node: Node) -> None:
    """Added positions that went are not added."""
    shape = wiring.before(node.inputs[0])[0]
    attribute = "pads" if node.attr("pads") is not None else "paddings"
    given = node.attr(attribute) if not node.input(1) else _first(wiring.values(node, 1))
    if given is None:
        return
    axes = _first(wiring.values(node, 3)) if node.input(3) else None
    listed = [int(a) % len(shape) for a in axes] if axes is not None else list(range(len(shape)))
    amounts = [int(n) for n in np.ravel(given)]
    changed = list(amounts)
    for i, axis in enumerate(listed):
        kept = wiring.kept(node.outputs[0], axis)
        if kept is not None:
            changed[i] = int((kept < amounts[i]).sum())
            changed[i + len(listed)] = int((kept >= amounts[i] + shape[axis]).sum())
    if changed == amounts:
        return
    if node.input(1):
        wiring.want(node, 1, changed, changed)
    else:
        wiring.set(node, **{attribute: changed})


@rules.rewire("Resize")
def resize(wiring: Wiring, node: Node) -> None:
    """A `sizes` operand names channels too."""
    if not node.input(3) or wiring.values(node, 3) is None:
        return
    new = wiring.after(node.outputs[0])
    axes = node.attr("axes")
    if axes is None:
        wiring.want(node, 3, *new)
    else:
        wiring.want(node, 3, *([shape[int(a)] for a in axes] for shape in new))
