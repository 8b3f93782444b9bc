"""Mechanics of the exact clean-ups: what may go, and what is moved elsewhere before it goes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, helper

from onnxprune.cleanup.knowledge import Knowledge
from onnxprune.cleanup.known import Array, FloatArray
from onnxprune.cleanup.linear import Linear
from onnxprune.cutting.assemble import assemble
from onnxprune.cutting.compact import takes
from onnxprune.cutting.oracle import recorded, witnesses
from onnxprune.errors import PruneError
from onnxprune.identity.dims import BoolArray, Dim, Dims
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node
from onnxprune.shape.shapes import Shape

# float32 sums reorder when terms go.
LIMIT = 1e-5


# --- what may go ----------------------------------------------------------------------------------


def largest_cut(dims: Dims, dead: BoolArray) -> BoolArray:
    """The most of these channels that may go: rows keep equal counts, no Dim vanishes.

    Args:
        dead: shape (channels,); of a row (a head) only if all channels in it are.
    """
    removed = np.zeros(dims.count, np.bool_)
    for dim in sorted(dims.free, key=lambda d: _depth(dims, d)):
        wanted = dead[dim.channels]
        if not dim.is_exact or not wanted.any():
            continue
        own = [p[dead[p]] for p in dim.parts]
        gone = [parent >= 0 and removed[parent] for parent in dim.parents]
        least = [0 if g else len(p) - len(d)
                 for p, d, g in zip(dim.parts, own, gone, strict=True)]  # fmt: skip
        level = next(x for x in dim.levels if (x >= least).all())
        for part, channels, count in zip(dim.parts, own, level, strict=True):
            removed[channels[: max(len(part) - int(count), 0)]] = True
    return _with_rows(dims, removed)


def _depth(dims: Dims, dim: Dim) -> int:
    depth, channel = 0, int(dim.channels[0])
    while dims.parent[channel] >= 0:
        depth, channel = depth + 1, int(dims.parent[channel])
    return depth


def _with_rows(dims: Dims, removed: BoolArray) -> BoolArray:
    """Everything in a row that goes, goes too."""
    while True:
        inside = (dims.parent >= 0) & ~removed
        inside[inside] = removed[dims.parent[inside]]
        if not inside.any():
            return removed
        removed = removed | inside


# --- constants into biases ------------------------------------------------------------------------


def bias_changes(known: Knowledge, removed: BoolArray) -> dict[str, FloatArray]:
    """What readers must add once constant channels are gone, by the key of the reader.

    Each is over the outputs that stay.
    """
    dims, found = known.dims, {}
    for key, view in known.linear.items():
        name, out = view.node.inputs[0], view.node.outputs[0]
        total = np.zeros(known.shape(name)[view.axis])
        for one in dims.ties.fields.get(name, ()):
            if one.axes == (view.axis,) and not view.padded:
                constants = known.constants(name, one).ravel()
                leaves = removed[dims.of[one.ids.ravel()]] & ~np.isnan(constants)
                total[leaves] = constants[leaves]
        change = view.response(total) if total.any() else total
        if not change.any():
            continue
        fields = dims.ties.fields.get(out, ())
        for take in takes(fields, known.shape(out), ~removed[dims.of]):
            if take.axis == view.out_axis:
                change = change[take.first]
        found[key] = change
    return found


def add_biases(
    model: Model, views: Mapping[str, Linear], changes: Mapping[str, FloatArray]
) -> Model:
    """A copy of a model whose nodes add this; `views` are of the model before its cut."""
    edit = Edit(model)
    later: dict[int, tuple[int, FloatArray]] = {}
    for node in model.nodes:
        change = changes.get(node.key)
        behind = _adder(model, node, change) if change is not None else None
        if node.index in later:
            edit.add_to(node, *later[node.index])
        elif change is None or behind is not None:
            edit.nodes.append(node.proto)
        else:
            edit.add_bias(node, views[node.key], change)
        if change is not None and behind is not None:
            later[behind[0]] = behind[1], change
    return edit.model()


def _adder(model: Model, node: Node, change: FloatArray) -> tuple[int, int] | None:
    """The Add that gives a MatMul its bias, and the slot of that; None where there is none."""
    out, readers = node.outputs[0], model.consumers.get(node.outputs[0], ())
    if node.op != "MatMul" or len(readers) != 1 or out in model.captured | {*model.output_names}:
        return None
    after, slot = readers[0]
    bias = after.input(1 - slot)
    if after.op != "Add" or bias not in model.initializers or bias in model.overridable:
        return None
    dims = model.dims(bias)
    is_vector = dims[-1:] == change.shape and np.prod(dims) == change.size
    return (after.index, 1 - slot) if is_vector else None


# --- columns into others --------------------------------------------------------------------------


def with_weights(model: Model, weights: Mapping[Slot, Array]) -> Model:
    """A copy of a model in which these uses read other numbers of the same shape.

    An optional input that is left out may be given some: in the type of the node's weight.
    """
    edit = Edit(model)
    changed: dict[str, list[int]] = {}
    for key, slot in weights:
        if isinstance(slot, int):
            changed.setdefault(key, []).append(slot)
    for node in model.nodes:
        proto = edit.copy(node) if node.key in changed else node.proto
        edit.nodes.append(proto)
        for slot in changed.get(node.key, ()):
            name = node.input(slot)
            like = name or node.inputs[1]
            proto.input.extend([""] * (slot + 1 - len(proto.input)))
            made = edit.store(name or f"{node.key}_input_{slot}", weights[node.key, slot], like)
            proto.input[slot] = made
    return edit.model()


class Edit:
    """A copy of a model in the making."""

    def __init__(self, model: Model) -> None:
        self.source = model
        self.nodes: list[NodeProto] = []
        self.arrays: dict[str, Array] = {}

    def copy(self, node: Node) -> NodeProto:
        """A node to change."""
        made = NodeProto()
        made.CopyFrom(node.proto)
        return made

    def store(self, name: str, values: Array, like: str) -> str:
        """Numbers in the type of an initializer; they take its name where nothing else reads it."""
        return self.store_as(name, values, self.source.initializers[like].data_type)

    def store_as(self, name: str, values: Array, kind: int) -> str:
        """Numbers in an element type, under a name of their own or one that is used once."""
        alone = len(self.source.consumers.get(name, ())) == 1 and name not in self.source.captured
        if name not in self.source.initializers or not alone:
            name = self.unused(name)
        self.arrays[name] = values.astype(helper.tensor_dtype_to_np_dtype(kind))
        return name

    def unused(self, name: str) -> str:
        """A name like this one that no value has."""
        taken = {n for node in self.source.nodes for n in (*node.inputs, *node.outputs)}
        taken |= self.arrays.keys() | self.source.initializers.keys()
        while name in taken:
            name += "_"
        return name

    def add_bias(self, node: Node, view: Linear, change: FloatArray) -> None:
        """The node with more in its bias, or with an Add behind it where it has none."""
        proto = self.copy(node)
        self.nodes.append(proto)
        if node.op == "MatMul":
            self._add_behind(proto, change, view.weight.kind)
            return
        old, total = node.input(2), change / view.beta
        if old:
            had = self.source.array(old).astype(np.float64)
            total = (had + total).reshape(had.shape if had.size == total.size else -1)
        name = self.store_as(old or f"{node.outputs[0]}_bias", total, view.weight.kind)
        del proto.input[2:]
        proto.input.append(name)

    def add_to(self, node: Node, slot: int, change: FloatArray) -> None:
        """The node with more in one of its vectors."""
        proto, old = self.copy(node), node.inputs[slot]
        total = self.source.array(old).astype(np.float64) + change
        proto.input[slot] = self.store(old, total, old)
        self.nodes.append(proto)

    def _add_behind(self, proto: NodeProto, change: FloatArray, kind: int) -> None:
        out = proto.output[0]
        name = self.store_as(f"{out}_bias", change, kind)
        proto.output[0] = self.unused(f"{out}_product")
        made = helper.make_node("Add", [proto.output[0], name], [out], name=f"{out}_add")
        self.nodes.append(made)

    def model(self) -> Model:
        """The finished copy; weights that nothing reads any more are gone."""
        made = assemble(self.source, self.nodes, {}, self.arrays)
        stored = made.proto.graph.initializer
        stale = {n for n in self.arrays if n in self.source.initializers}
        first = [next(i for i, t in enumerate(stored) if t.name == n) for n in stale]
        for index in sorted(first, reverse=True):
            del stored[index]
        return Model(made.proto, self.source.folder)


# --- the check ------------------------------------------------------------------------------------


def difference(before: Model, after: Model, shapes: Mapping[str, Shape]) -> float | None:
    """Largest difference of outputs on two seeded inputs, relative per output.

    Returns: None where nothing can be compared, or a model does not run here.
    """
    names = [n for n in witnesses(before) if n in after.producer] or list(before.output_names)
    try:
        return recorded(before, before.proto, names, shapes).disagreement(after)
    except PruneError:
        return None
