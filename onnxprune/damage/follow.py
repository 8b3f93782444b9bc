"""Finds streams that can be turned: follows each from what writes it to what sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.cleanup.weight import PLAIN
from onnxprune.damage.norms import is_mean, is_square, mean_behind
from onnxprune.damage.streams import Kind, Turnable
from onnxprune.damage.trail import RAW, Axes, Carried, Form, Trail
from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.flow import FLOATS
from onnxprune.model.graph import Model, Node
from onnxprune.readers.narrow import MOST_TOGETHER
from onnxprune.readers.view import View

NORMS = {
    "LayerNormalization": Kind.LAYER,
    "RMSNormalization": Kind.RMS,
    "SimplifiedLayerNormalization": Kind.RMS,
}
LAYERS = ("MatMul", "Gemm", "Conv")
SUMS = ("Sum", "Concat")
MOVES = """Reshape Squeeze Unsqueeze Split Slice Flatten Gather Expand Tile AveragePool
    GlobalAveragePool""".split()
MEANS = ("ReduceMean", "ReduceSum")


def find_streams(model: Model, dims: Dims, views: Mapping[str, View]) -> dict[int, Turnable]:
    """Streams that can be turned, by Dim index."""
    touching: dict[int, list[Node]] = {}
    for node in model.nodes:
        for index in _touched(dims, node):
            touching.setdefault(index, []).append(node)
    found = {}
    for dim in dims.free:
        if _may_be(dims, dim) and dim.index in touching:
            made = _followed(Trail(model, dims, views, dim), dim, touching[dim.index])
            if made is not None and all(len(views[k].columns) <= MOST_TOGETHER for k in made.keys):
                found[dim.index] = made
    return found


def _touched(dims: Dims, node: Node) -> Iterator[int]:
    """The Dims that live in a node's inputs and outputs."""
    slots = [dims.ties.sources.get((node.key, slot)) for slot in range(len(node.inputs))]
    own = [one for source in slots if source for one in source.fields]
    own += [one for n in (*node.inputs, *node.outputs) for one in dims.ties.fields.get(n, ())]
    if own:
        channels = np.unique(np.concatenate([dims.of[one.ids.ravel()] for one in own]))
        yield from np.unique(dims.dim_of[channels[channels >= 0]]).tolist()


def _may_be(dims: Dims, dim: Dim) -> bool:
    """One part of more than two channels, which have no rows and are none."""
    is_own = dim.parents[0] < 0 and not np.isin(dims.parent, dim.channels).any()
    return len(dim.parts) == 1 and dim.size > 2 and is_own


def _followed(trail: Trail, dim: Dim, nodes: Sequence[Node]) -> Turnable | None:
    """The stream; None where anything else touches it. Args: nodes: where it lives."""
    if not all(_goes_along(trail, node) for node in nodes) or trail.sizes:
        return None
    sights = trail.sights
    kinds = {sight.kind for sight in sights}
    if not sights or not all(sight.fits for sight in sights):
        return None
    if Kind.LAYER in kinds and len(kinds) > 1:  # the others see the mean
        return None
    kind = next(iter(kinds)) if len(kinds) == 1 else Kind.RMS
    return Turnable(dim.index, kind, tuple(trail.writes), sights)


def _goes_along(trail: Trail, node: Node) -> bool:
    """Notes what a node does; False where a turned stream would come out as something else."""
    slots, outs = trail.slots(node), trail.outs(node)
    if (not slots and not outs) or node.op in ("Shape", "Size"):
        return not outs
    names = {node.inputs[s] for s in slots} | {*outs}
    outside = trail.model.captured.union(trail.model.output_names)
    if node.domain or -1 in (*slots.values(), *outs.values()) or names & outside:
        return False
    look = _LOOKS.get(node.op)
    return look is not None and look(trail, node, slots, outs)


# --- layers, sums and moves -----------------------------------------------------------------------


def _layer(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """A weight that sums over the stream, or one whose rows it is."""
    if not outs:
        return trail.reads(node, slots)
    wanted = [s for s, n in enumerate(node.inputs) if s and n]
    is_written = [*slots] == wanted and node.attr("group", 1) == 1
    return is_written and not any(trail.of(node, s) for s in wanted) and trail.joins(node, slots)


def _sum(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    return len(slots) == len(node.inputs) and bool(outs) and trail.joins(node, slots)


def _moves(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """A node that passes what it gets, or a stored tensor."""
    is_real = node.op != "Cast" or node.attr("to") in FLOATS
    if [*slots] != [0] or len(outs) != len(node.outputs) or not is_real:
        return False
    what = trail.of(node, 0)
    if what is not None:
        return trail.gives(node, what)
    use = trail.tensor(node, 0, slots[0])
    if use is not None and node.op in PLAIN:
        trail.stored[node.outputs[0]] = use
        return len(trail.model.consumers.get(node.outputs[0], ())) == 1
    return trail.joins(node, slots)


def _weighs(trail: Trail, node: Node, slot: int) -> bool:
    """A factor for all channels. A shift that it takes along could not be told any more."""
    what = trail.of(node, slot)
    return what is not None and what.shift_at is None and trail.gives(node, what)


# --- norms ----------------------------------------------------------------------------------------


def _norm(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """A norm over the stream alone; its mean and deviation are not handed out."""
    if trail.of(node, 0) != RAW or [*outs] != [*filter(None, node.outputs)]:
        return False
    last = _rank(trail, node) - 1
    if slots[0] != last or int(node.attr("axis", -1)) not in (-1, last):
        return False
    scale = trail.vector(node, 1, slots)
    shift = trail.vector(node, 2, slots) if node.input(2) else None
    if scale is None or (node.input(2) and shift is None):
        return False
    return trail.gives(node, Carried(Form.NORMED, node.key, NORMS[node.op], scale, shift))


def _rank(trail: Trail, node: Node) -> int:
    return trail.fields(node.inputs[0])[0].ids.ndim


def _mean(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """Over positions; or of the stream, for nothing but taking it away; or of squares."""
    what, model = trail.of(node, 0), trail.model
    if outs:
        is_sum = node.op == "ReduceSum" and what is not None  # a shift would count many times
        return _weighs(trail, node, 0) if is_sum else _moves(trail, node, slots, outs)
    if what is None or not is_mean(model, node, slots[0], _rank(trail, node)):
        return False
    if what.form is Form.SQUARE:
        trail.sizes.add(node.key)
        return True
    readers = model.consumers.get(node.outputs[0], ())
    is_shown = node.outputs[0] in model.captured.union(model.output_names)
    takes_away = all(r.op == "Sub" and s == 1 and r.inputs[0] == node.inputs[0] for r, s in readers)
    return what == RAW and takes_away and not is_shown


def _sub(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """A difference of terms, or the stream less its mean."""
    if len(slots) == len(node.inputs):
        return _sum(trail, node, slots, outs)
    mean = trail.model.producer.get(node.inputs[1])
    if trail.of(node, 0) != RAW or mean is None or mean.op != "ReduceMean":
        return False
    is_own = mean.inputs[0] == node.inputs[0]
    return is_own and trail.gives(node, Carried(Form.CENTRED))


def _square(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """Squares of which only means are taken."""
    what, readers = trail.of(node, 0), trail.model.consumers.get(node.outputs[0], ())
    if what is None or what.form not in (Form.RAW, Form.CENTRED):
        return False
    is_own = is_square(trail.model, node) and all(r.op == "ReduceMean" for r, _ in readers)
    return is_own and trail.gives(node, Carried(Form.SQUARE, node.inputs[0]))


def _mul(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """A square, a division by a size, a factor, or the scale of a norm."""
    if len(slots) < len(node.inputs):
        (slot,) = slots
        return _divides(trail, node, slot, -0.5) or _weighs(trail, node, slot)
    if node.inputs[0] == node.inputs[1]:
        return _square(trail, node, slots, outs)
    what, at = _normed(trail, node)
    scale = trail.vector(node, at, slots)
    if what is None or scale is None or what.scale_at or what.shift_at:
        return False
    return trail.gives(node, replace(what, scale_at=scale))


def _add(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    """A sum of terms, or the shift of a norm."""
    what, at = _normed(trail, node)
    if what is None:
        return _sum(trail, node, slots, outs)
    shift = trail.vector(node, at, slots)
    if shift is None or what.shift_at:
        return False
    return trail.gives(node, replace(what, shift_at=shift))


def _normed(trail: Trail, node: Node) -> tuple[Carried | None, int]:
    """What a norm gives, of two inputs, and the slot of the other one."""
    held = [trail.of(node, slot) for slot in range(2)]
    slot = next((s for s, one in enumerate(held) if one and one.form is Form.NORMED), -1)
    return held[slot] if slot >= 0 else None, 1 - slot


def _div(trail: Trail, node: Node, slots: Axes, outs: Mapping[str, int]) -> bool:
    if [*slots] != [0]:
        return False
    return _divides(trail, node, 0, 0.5) or _weighs(trail, node, 0)


def _divides(trail: Trail, node: Node, slot: int, exponent: float) -> bool:
    """The stream over the root of the mean of its squares."""
    what, mean = trail.of(node, slot), mean_behind(trail.model, node.inputs[1 - slot])
    if what is None or mean is None or mean[1] != exponent:
        return False
    if trail.of(mean[0], 0) != Carried(Form.SQUARE, node.inputs[slot]):
        return False
    trail.sizes.discard(mean[0].key)
    kind = Kind.LAYER if what.form is Form.CENTRED else Kind.RMS
    return trail.gives(node, Carried(Form.NORMED, node.key, kind))


_LOOKS: Mapping[str, Callable[[Trail, Node, Axes, Mapping[str, int]], bool]] = {
    **dict.fromkeys(LAYERS, _layer),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys((*PLAIN, *MOVES), _moves),
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(MEANS, _mean),
    "Add": _add,
    "Sub": _sub,
    "Pow": _square,
    "Mul": _mul,
    "Div": _div,
}
"""What is asked of a node of each kind."""
