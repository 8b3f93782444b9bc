"""Models as protobuf records, read and written piece by piece.

A file that is parsed at once is in memory twice; so is a model that is serialised at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxprune.model.store import INLINE_BYTES, KEPT_TYPES, Array, described, held

GRAPH_TAG = ModelProto.GRAPH_FIELD_NUMBER << 3 | 2
INITIALIZER_TAG = GraphProto.INITIALIZER_FIELD_NUMBER << 3 | 2
RAW_TAG = TensorProto.RAW_DATA_FIELD_NUMBER << 3 | 2

Keep = Callable[[Array, TensorProto], TensorProto]
"""Puts a weight's array somewhere; returns what stands in the graph for it."""


def read_model(file: BinaryIO, size: int, keep: Keep) -> ModelProto:
    """A model from an open file of so many bytes.

    Args:
        keep: where the arrays of larger weights go.
    Raises: DecodeError: a record is broken, or reaches past the end.
    """
    proto = ModelProto()
    _merge(file, size, proto, keep)
    return proto


def _merge(file: BinaryIO, end: int, target: Any, keep: Keep) -> None:
    start = file.tell()
    while start < end:
        tag = _varint(file)
        stop = _payload(file, tag & 7) + file.tell()
        if stop > end:
            raise DecodeError("a record is cut short")
        if tag == GRAPH_TAG and isinstance(target, ModelProto):
            target.graph.SetInParent()
            _merge(file, stop, target.graph, keep)
        elif (
            tag == INITIALIZER_TAG
            and isinstance(target, GraphProto)
            and stop - start >= INLINE_BYTES
        ):
            target.initializer.append(_tensor(file, stop, keep))
        else:
            file.seek(start)
            target.MergeFromString(file.read(stop - start))
        start = stop


def _tensor(file: BinaryIO, end: int, keep: Keep) -> TensorProto:
    """An initializer; raw data that fits its shape is kept apart."""
    made, raw = TensorProto(), b""
    start = file.tell()
    while start < end:
        tag = _varint(file)
        size = _payload(file, tag & 7)
        stop = file.tell() + size
        if stop > end:
            raise DecodeError("a tensor is cut short")
        if tag == RAW_TAG:
            raw = file.read(size)
        else:
            file.seek(start)
            made.MergeFromString(file.read(stop - start))
        start = stop
    array = _as_array(made, raw)
    if array is not None:
        return keep(array, made)
    if raw:
        made.raw_data = raw
    return made


def _as_array(tensor: TensorProto, raw: bytes) -> Array | None:
    """Raw data in the tensor's shape and type; None where it does not fit."""
    if tensor.data_type not in KEPT_TYPES or any(n < 0 for n in tensor.dims):
        return None
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    elements = int(np.prod(tensor.dims, dtype=object)) if tensor.dims else 1
    if elements * dtype.itemsize != len(raw):
        return None
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(tuple(tensor.dims))


def _payload(file: BinaryIO, wire_type: int) -> int:
    """Bytes that follow a tag."""
    if wire_type == 2:
        return _varint(file)
    if wire_type == 0:
        _varint(file)
        return 0
    if wire_type in (1, 5):
        return 8 if wire_type == 1 else 4
    raise DecodeError("unknown wire type")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise DecodeError("a number is cut short")


def write_model(
    file: BinaryIO, proto: ModelProto, copy_fields: Callable[[Any, Any, set[str]], None]
) -> None:
    """Serialise a model, deterministically, weight by weight.

    Args:
        copy_fields: copies a message less some of its fields.
    """
    outer, graph = ModelProto(), GraphProto()
    copy_fields(proto, outer, {"graph"})
    copy_fields(proto.graph, graph, {"initializer"})
    head = graph.SerializeToString(deterministic=True)
    pieces = [_Piece(tensor) for tensor in proto.graph.initializer]
    file.write(outer.SerializeToString(deterministic=True))
    file.write(_number(GRAPH_TAG) + _number(len(head) + sum(p.size for p in pieces)))
    file.write(head)
    for piece in pieces:
        piece.write(file)


class _Piece:
    """One initializer: its description, then its raw data, straight from the array."""

    def __init__(self, tensor: TensorProto) -> None:
        self.array = held(tensor)
        light = tensor if self.array is None else described(tensor)
        content = light.SerializeToString(deterministic=True)
        raw = 0 if self.array is None else self.array.nbytes
        if self.array is not None:
            content += _number(RAW_TAG) + _number(raw)
        self.head = _number(INITIALIZER_TAG) + _number(len(content) + raw) + content
        self.size = len(self.head) + raw

    def write(self, file: BinaryIO) -> None:
        file.write(self.head)
        if self.array is not None:
            file.write(little_endian(self.array))


def tensor_bytes(tensor: TensorProto) -> bytes | memoryview:
    """The values of a tensor as raw data."""
    array = held(tensor)
    if array is not None:
        return little_endian(array)
    if not tensor.HasField("raw_data"):
        tensor = numpy_helper.from_array(numpy_helper.to_array(tensor))
    raw: bytes = tensor.raw_data
    return raw


def little_endian(array: Array) -> memoryview:
    """The bytes of an array as ONNX stores them."""
    kept = np.ascontiguousarray(array)
    if kept.dtype.byteorder == ">" or (kept.dtype.byteorder == "=" and not _IS_LITTLE):
        kept = kept.byteswap()
    return kept.reshape(-1).view(np.uint8).data


_IS_LITTLE = np.dtype("<i4") == np.dtype("=i4")


def _number(value: int) -> bytes:
    """A varint."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
