"""Puts a cut model together: the original's proto, less its nodes, weights and stale shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.cutting.compact import Take
from onnxprune.model.graph import Model
from onnxprune.model.storage import copy_fields
from onnxprune.model.store import described, put
from onnxprune.shape.shapes import Array

Taken = dict[str, tuple[str, list[Take]]]
"""For each initializer of the cut model: its source in the original, and the takes."""


def assemble(
    source: Model, nodes: Sequence[NodeProto], taken: Taken, fresh: Mapping[str, Array]
) -> Model:
    """A new model of these nodes, with what they read of the source's weights.

    Args:
        fresh: new initializers: shape constants, frozen numbers.
    """
    proto = ModelProto()
    copy_fields(source.proto, proto, {"graph"})
    dropped = {"node", "initializer", "value_info", "input"}
    copy_fields(source.proto.graph, proto.graph, dropped)
    proto.graph.node.extend(nodes)
    cut = _add_weights(source, proto, taken)
    read = _read_by(source, proto)
    kept = {name: array for name, array in fresh.items() if name in read}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in kept.items())
    _add_inputs(source, proto)
    made = Model(proto, source.folder)
    del cut  # the model holds them now
    return made


def _read_by(source: Model, proto: ModelProto) -> set[str]:
    read = {n for node in proto.graph.node for n in node.input} | source.captured
    return read | {info.name for info in proto.graph.output}


def _add_weights(source: Model, proto: ModelProto, taken: Taken) -> list[Array]:
    """Each weight once for each way in which it is taken, where something reads it.

    Returns: arrays that the proto's stubs stand for.
    """
    apart: list[Array] = []
    read = _read_by(source, proto)
    by_source: dict[str, list[str]] = {}
    for new, (name, _) in taken.items():
        by_source.setdefault(name, []).append(new)
    for name, tensor in source.initializers.items():
        for new in by_source.get(name, ()):
            if new in read:
                apart += _add_weight(source, proto, new, tensor, taken[new][1])
        if name not in taken and (name in read or name not in source.consumers):
            proto.graph.initializer.append(tensor)
    return apart


def _add_weight(
    source: Model, proto: ModelProto, new: str, tensor: TensorProto, found: Sequence[Take]
) -> list[Array]:
    if not found:
        made = proto.graph.initializer.add()
        made.CopyFrom(tensor)
        made.name = new
        return []
    array = source.array(tensor.name)
    for take in found:
        array = take.apply(array)
    like = described(tensor)
    like.name = new
    made, apart = put(array, like)
    proto.graph.initializer.append(made)
    return [] if apart is None else [apart]


def _add_inputs(source: Model, proto: ModelProto) -> None:
    """Graph inputs; in IR 3 every initializer is listed among them with its shape."""
    made = {t.name: t for t in proto.graph.initializer}
    for info in source.proto.graph.input:
        if info.name not in source.initializers:
            proto.graph.input.append(info)
        elif info.name in made:
            proto.graph.input.append(_info(made.pop(info.name)))
    if source.proto.ir_version < 4:
        proto.graph.input.extend(_info(tensor) for tensor in made.values())


def _info(tensor: TensorProto) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
