"""The mask oracle: a cut model computes what the original does once readers see zeros.

In the original, what enters every contraction is multiplied by a 0/1 mask of the channels that
stay. (Zeroing what makes them is not enough: a bias behind a zeroed filter leaks.) On exact Dims
both models then agree, whatever the plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.backend.feeds import model_inputs
from onnxprune.backend.runtime import Session, session
from onnxprune.errors import ModelError
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.ties import Reader
from onnxprune.model.graph import Model, Node, read_names
from onnxprune.model.storage import copy_fields
from onnxprune.model.store import values
from onnxprune.normal.floats import HALVES, as_float32, without_quantizers
from onnxprune.rules.quant import ZERO_POINTS
from onnxprune.shape.shapes import Array, Shape

# Outputs smaller than this are compared absolutely.
FLOOR = 1e-3
WHOLE = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
SEEN_THROUGH = frozenset(
    """Sigmoid HardSigmoid Softmax LogSoftmax Hardmax Tanh Clip ArgMax ArgMin Cast Identity
    Transpose Reshape Flatten Squeeze Unsqueeze""".split()
)


def mask(model: Model, dims: Dims, removed: BoolArray) -> ModelProto:
    """The model with removed channels silenced where they are read.

    Args:
        removed: shape (channels,).
    """
    alive = ~removed[dims.of]
    by_node: dict[str, list[Reader]] = defaultdict(list)
    for reader in dims.ties.readers:
        if not alive[reader.field.ids].all():
            by_node[reader.key].append(reader)
    proto = ModelProto()
    copy_fields(model.proto, proto, {"graph"})
    copy_fields(model.proto.graph, proto.graph, {"node", "initializer"})
    for node in model.nodes:
        copy = NodeProto()
        copy.CopyFrom(node.proto)
        for number, reader in enumerate(_silenced(model, node, by_node.get(node.key, []))):
            _silence(model, proto, copy, reader, alive, number)
        proto.graph.node.append(copy)
    read = read_names(proto.graph)
    unread = model.initializers.keys() - read - model.overridable
    kept = (t for t in model.proto.graph.initializer if t.name not in unread)
    proto.graph.initializer.extend(kept)
    inputs = [info for info in proto.graph.input if info.name not in unread]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return proto


def _silenced(model: Model, node: Node, readers: Sequence[Reader]) -> list[Reader]:
    """The operands of a node to silence: activations, and weights of what no activation has.

    A masked weight is a copy of it. Numbers of a quantised activation have a zero of their own.
    """
    beside = [r for r in readers if r.beside]
    readers = [r for r in readers if not r.beside]
    weights = [r for r in readers if node.inputs[r.slot] in model.initializers]
    data = [r for r in readers if r not in weights]
    is_whole = any(model.initializers[node.inputs[r.slot]].data_type in WHOLE for r in weights)
    if not data or is_whole:
        return (weights or readers) + beside
    return data + [r for r in weights if r.alone] + beside


def _silence(
    model: Model, proto: ModelProto, node: NodeProto, reader: Reader, alive: BoolArray, number: int
) -> None:
    """Multiply one operand by a mask: a weight at once, an activation by a Mul before the node."""
    name = node.input[reader.slot]
    keep = alive[reader.field.ids]
    new = f"{reader.key}_masked{reader.slot}_{number}"
    array = _stored(model, proto, name)
    if array is not None:
        zero = np.asarray(_zero(model, node, reader.slot, array.ndim), array.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(np.where(keep, array, zero), new))
    else:
        made = _as_long(proto, name, keep.astype(_dtype(model, name)), f"{new}_mask")
        proto.graph.node.append(helper.make_node("Mul", [name, made], [new], name=new))
    node.input[reader.slot] = new


def _as_long(proto: ModelProto, name: str, mask: Array, new: str) -> str:
    """A mask for a value, repeated as often as it is longer: batch and heads may be one axis."""

    def constant(suffix: str, array: Array) -> str:
        proto.graph.initializer.append(numpy_helper.from_array(array, f"{new}{suffix}"))
        return f"{new}{suffix}"

    def node(op: str, *inputs: str, **more: Any) -> str:
        out = f"{new}_{op}"
        proto.graph.node.append(helper.make_node(op, inputs, [out], name=out, **more))
        return out

    periods = [_period(mask, a) for a in range(mask.ndim)]
    for axis in (a for a, n in enumerate(periods) if n == 1):
        mask = mask.take([0], axis=axis)
    axis = next((a for a, n in enumerate(mask.shape) if periods[a] < n), -1)
    if axis < 0:
        return constant("", mask)
    one = constant("", mask.take(range(periods[axis]), axis=axis))
    length = node("Gather", node("Shape", name), constant("_axis", np.array([axis])))
    times = node("Div", length, constant("_length", np.array([periods[axis]])))
    ones = [constant(f"_ones{i}", np.ones(n, np.int64))
            for i, n in enumerate((axis, mask.ndim - axis - 1))]  # fmt: skip
    return node("Tile", one, node("Concat", ones[0], times, ones[1], axis=0))


def _period(mask: Array, axis: int) -> int:
    """Positions after which a mask begins again along an axis."""
    length = mask.shape[axis]
    table = np.moveaxis(mask, axis, 0)
    divisors = (d for d in range(1, length) if length % d == 0)
    return next((d for d in divisors if (table[d:] == table[:-d]).all()), length)


def _stored(model: Model, proto: ModelProto, name: str) -> Array | None:
    """The value of a weight, masked already or not; None for an activation."""
    if name in model.initializers:
        return model.array(name)
    if name in model.producer or name in model.input_names:
        return None
    made = next((t for t in proto.graph.initializer if t.name == name), None)
    return None if made is None else values(made)


def _zero(model: Model, node: NodeProto, slot: int, rank: int) -> Array | int:
    """What stands for zero in a weight: the zero point of a quantised one."""
    at = ZERO_POINTS.get(node.op_type, {}).get(slot, len(node.input))
    name = node.input[at] if at < len(node.input) else ""
    if name not in model.initializers:
        return 0
    point = model.array(name)
    if point.size == 1:
        return np.asarray(point.ravel()[0])
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    if "Conv" in node.op_type or turned:
        return np.asarray(point.reshape(-1, *[1] * (rank - 1)))
    return np.asarray(point)


def _dtype(model: Model, name: str) -> np.dtype[np.generic]:
    """Element type of an activation; float32 where nothing says otherwise."""
    kind = model.element_types.get(name, TensorProto.FLOAT)
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))


@dataclass(frozen=True, eq=False)
class Expected:
    """Outputs of a silenced model on seeded inputs."""

    names: list[str]
    feeds: list[dict[str, Array]]
    outputs: list[list[Array]]
    custom_ops: Sequence[str] = ()

    def disagreement(self, cut: Model) -> float | None:
        """Largest difference of a cut model's outputs, relative per output.

        Returns: None where no output can be compared (none is a tensor of numbers).
        """
        worst: float | None = None
        run = _session(cut.proto, self.names, self.custom_ops)
        for feeds, ours in zip(self.feeds, self.outputs, strict=True):
            for a, b in zip(ours, run.run(feeds, self.names), strict=True):
                found = relative(np.asarray(a), np.asarray(b))
                if found is not None:
                    worst = max(worst or 0.0, found)
        return worst


def expected(
    model: Model,
    dims: Dims,
    removed: BoolArray,
    shapes: Mapping[str, Shape],
    seeds: Sequence[int] = (0, 1),
    custom_ops: Sequence[str] = (),
) -> Expected:
    """What a right cut gives.

    The silenced model is gone when this returns: it and the cut one need not be in memory
    together.
    """
    silenced = mask(model, dims, removed)
    return recorded(model, silenced, witnesses(model), shapes, seeds, custom_ops)


def recorded(
    model: Model,
    proto: ModelProto,
    names: list[str],
    shapes: Mapping[str, Shape],
    seeds: Sequence[int] = (0, 1),
    custom_ops: Sequence[str] = (),
) -> Expected:
    """What a form of a model gives on seeded inputs of the model."""
    run = _session(proto, names, custom_ops)
    runs = [_drawn(model, run, names, shapes, seed) for seed in seeds]
    return Expected(names, [feeds for feeds, _ in runs], [out for _, out in runs], custom_ops)


def _drawn(
    model: Model, run: Session, names: list[str], shapes: Mapping[str, Shape], seed: int
) -> tuple[dict[str, Array], list[Array]]:
    """Random feeds, and what they give.

    Integers are drawn again from 0 and 1 where larger ones have no meaning: positions counted
    from a mask lie beyond the end of their table.
    """
    try:
        feeds = _fitting(model_inputs(model, shapes, seed), run)
        return feeds, run.run(feeds, names)
    except ModelError:
        feeds = _fitting(model_inputs(model, shapes, seed, high=2), run)
        return feeds, run.run(feeds, names)


def disagreement(
    model: Model,
    dims: Dims,
    removed: BoolArray,
    cut: Model,
    shapes: Mapping[str, Shape],
    seeds: Sequence[int] = (0, 1),
) -> float | None:
    """Largest difference between a cut model and the silenced original, relative per output."""
    return expected(model, dims, removed, shapes, seeds).disagreement(cut)


def _session(proto: ModelProto, names: Sequence[str], custom_ops: Sequence[str]) -> Session:
    return session(unrounded(_giving(proto, names)), optimize=False, custom_ops=custom_ops)


def witnesses(model: Model) -> list[str]:
    """What to compare: each output, seen through what saturates, orders or moves it last.

    A sigmoid near zero and a class number say little of what made them.
    """
    found = []
    for name in model.output_names:
        made = model.producer.get(name)
        while made is not None and not made.domain and made.op in SEEN_THROUGH:
            name = made.inputs[0]
            made = model.producer.get(name)
        found.append(name)
    return [name for name in dict.fromkeys(found) if name in model.producer]


def _giving(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with these values among its outputs; weights are shared, not copied."""
    made = ModelProto()
    copy_fields(proto, made, {"graph"})
    copy_fields(proto.graph, made.graph, {"initializer"})
    known = {info.name for info in proto.graph.output}
    made.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in known)
    made.graph.initializer.extend(proto.graph.initializer)
    return made


def unrounded(proto: ModelProto) -> ModelProto:
    """A float32 copy of a float16 model, a quantised one without rounding; else the model."""
    if any(t.data_type in HALVES for t in proto.graph.initializer):
        proto = as_float32(proto)
    quantised = any("Quant" in node.op_type or "QLinear" in node.op_type
                    for node in proto.graph.node)  # fmt: skip
    return without_quantizers(proto) if quantised else proto


def _fitting(feeds: Mapping[str, Array], run: Session) -> dict[str, Array]:
    """Feeds in the types of a float32 copy."""
    types = {spec.name: spec.dtype for spec in run.inputs}
    return {name: array.astype(types.get(name) or array.dtype) for name, array in feeds.items()}


def relative(a: Array, b: Array) -> float | None:
    """Largest difference relative to the largest value; integers and bools are not compared.

    Nor is an output without a single finite number: it says nothing.
    """
    if a.dtype.kind != "f" or a.shape != b.shape:
        return None if a.shape == b.shape else float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if a.size and not np.isfinite(a).any() and not np.isfinite(b).any():
        return None
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    difference = np.where(same, 0.0, np.abs(a - b))
    finite = np.abs(a[np.isfinite(a)])
    # Below the floor outputs are rounding noise (a saturated sigmoid).
    return float(difference.max() / max(float(finite.max(initial=0.0)), FLOOR))
