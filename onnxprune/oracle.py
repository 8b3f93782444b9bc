"""The mask oracle: a cut model computes what the original does once readers see zeros.

In the original, what enters every contraction is multiplied by a 0/1 mask of the channels that
stay. (Zeroing what makes them is not enough: a bias behind a zeroed filter leaks.) On exact Dims
both models then agree, whatever the plan.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.dims import BoolArray, Dims
from onnxprune.flow import Reader
from onnxprune.graph import Model


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
    proto.CopyFrom(model.proto)
    del proto.graph.node[:]
    for node in model.nodes:
        copy = NodeProto()
        copy.CopyFrom(node.proto)
        readers = by_node.get(node.key, [])
        weights = [r for r in readers if node.inputs[r.slot] in model.initializers]
        for number, reader in enumerate(weights or readers):
            _silence(model, proto, copy, reader, alive, number)
        proto.graph.node.append(copy)
    return proto


def _silence(
    model: Model, proto: ModelProto, node: NodeProto, reader: Reader, alive: BoolArray, number: int
) -> None:
    """Multiply one operand by a mask: a weight at once, an activation by a Mul before the node."""
    name = node.input[reader.slot]
    keep = alive[reader.field.ids]
    new = f"{reader.key}_masked{reader.slot}_{number}"
    stored = {t.name: t for t in proto.graph.initializer} if name not in model.producer else {}
    if name in stored:
        array = numpy_helper.to_array(stored[name])
        proto.graph.initializer.append(
            numpy_helper.from_array((array * keep.astype(array.dtype)).astype(array.dtype), new)
        )
    else:
        kind = _dtype(model, name)
        proto.graph.initializer.append(numpy_helper.from_array(keep.astype(kind), f"{new}_mask"))
        proto.graph.node.append(helper.make_node("Mul", [name, f"{new}_mask"], [new], name=new))
    node.input[reader.slot] = new


def _dtype(model: Model, name: str) -> np.dtype[np.generic]:
    """Element type of an activation; float32 where nothing says otherwise."""
    for info in (*model.proto.graph.value_info, *model.inputs):
        if info.name == name and info.type.tensor_type.elem_type:
            return np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    return np.dtype(np.float32)
