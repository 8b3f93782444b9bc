"""What is refused before any work: names, depth, sizes, broken weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.model.graph import BITS, all_graphs, bodies, needed_bytes, tensors
from onnxprune.model.store import Array, held, values

# Exporters nest two or three bodies; a hostile file must not exhaust the stack.
MAX_DEPTH = 24

# An infinity that these read is a broken weight; elsewhere it is a mask or a bound.
WEIGHT_READERS = frozenset(
    """Conv ConvTranspose Gemm MatMul Einsum LSTM GRU RNN BatchNormalization
    InstanceNormalization LayerNormalization GroupNormalization RMSNormalization
    SimplifiedLayerNormalization SkipLayerNormalization""".split()
)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def check(proto: ModelProto) -> None:
    """Refuse what would be a riddle later: names, depth, sizes, broken weights.

    Raises: ModelError: says what and where.
    """
    _check_infos(proto)
    _check_names(proto.graph, [])
    read_by: dict[str, str] = {}
    for graph in all_graphs(proto.graph):
        for node in graph.node:
            if node.op_type in WEIGHT_READERS:
                read_by.update(dict.fromkeys(node.input, f"`{node.name}` ({node.op_type})"))
    for name, tensor in tensors(proto):
        _check_size(name or tensor.name, tensor)
        if name and tensor.data_type in _FLOATS:
            _check_finite(name, values(tensor), read_by.get(name))


def _check_names(graph: GraphProto, scopes: list[set[str]]) -> None:
    """Each value is defined once, and each that is read is defined."""
    if len(scopes) > MAX_DEPTH:
        raise ModelError(f"bodies of If, Loop or Scan are nested deeper than {MAX_DEPTH} levels")
    constants = [t.name for t in graph.initializer]
    constants += [t.values.name for t in graph.sparse_initializer]
    made = [name for node in graph.node for name in node.output if name]
    given = {info.name for info in graph.input}
    seen = given - set(constants)
    _check_texts((*constants, *made), "the name of a value")
    for name in (*constants, *made):
        if name in seen:
            raise ModelError(f"two values are named `{name}`", hint="export the model again")
        seen.add(name)
    scopes = [*scopes, seen | given]
    for node in graph.node:
        where = f"node `{node.name}` ({node.op_type})"
        attributes = (a.name for a in node.attribute)
        _check_texts((node.op_type, node.domain, node.name, *node.input, *attributes), where)
        if not any(node.output):
            raise ModelError("a node has no output", where=where)
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                raise ModelError(f"nothing makes the value `{name}`", where=where)
        for body in bodies(node):
            _check_names(body, scopes)
    for info in graph.output:
        if not any(info.name in scope for scope in scopes):
            raise ModelError(f"nothing makes the output `{info.name}`")


def _check_texts(texts: Iterable[object], where: str) -> None:
    """Refuse bytes that are no UTF-8, which protobuf hands out as they are."""
    for text in texts:
        if not isinstance(text, str):
            raise ModelError(f"{text!r} is not text", where=where, hint="export the model again")


def _check_infos(proto: ModelProto) -> None:
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        dims = info.type.tensor_type.shape.dim
        _check_texts((info.name, *(d.dim_param for d in dims)), "a declared value")
    _check_texts((o.domain for o in proto.opset_import), "an imported operator set")


def _check_size(name: str, tensor: TensorProto) -> None:
    """Refuse a tensor that holds more or less than its shape needs."""
    needed = needed_bytes(name, tensor)
    if held(tensor) is not None:
        return  # put away only if it fits
    if tensor.HasField("raw_data"):
        given, wanted, unit = len(tensor.raw_data), needed, "bytes"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        given, wanted, unit = len(getattr(tensor, field)), math.prod(tensor.dims), "values"
        if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            wanted *= 2
        wanted = needed if BITS.get(tensor.data_type, 8) < 8 else wanted
    if given != wanted:
        raise ModelError(
            f"tensor `{name}` holds {given} {unit}, its shape {list(tensor.dims)} needs {wanted}",
            hint="export or download the model again",
        )


def _check_finite(name: str, found: Array, reader: str | None) -> None:
    """Refuse a NaN in a weight, and an infinity where a sum or a norm reads it."""
    with np.errstate(all="ignore"):
        if np.isfinite(found.sum()):
            return  # no NaN or infinity survives a sum
    hint = "export the model again from an intact checkpoint"
    where = f"read by {reader}" if reader else ""
    # A single NaN that no weight's reader reads is a fill value.
    if np.isnan(found).any() and (reader or found.size > 1):
        raise ModelError(f"weight `{name}` holds NaN", where=where, hint=hint)
    if reader and np.isinf(found).any():
        raise ModelError(f"weight `{name}` holds infinite values", where=where, hint=hint)
