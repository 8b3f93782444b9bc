"""A hash of a model with its weights, whatever file they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Any

from google.protobuf.message import Message  # type: ignore[import-untyped, unused-ignore]
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TrainingInfoProto,
)

from onnxprune.model.graph import Model
from onnxprune.model.wire import tensor_bytes

# Messages that may hold tensors; others are small and hashed whole.
_OPENED = (
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TrainingInfoProto,
)  # fmt: skip
# Where a tensor's values may lie; they are hashed as bytes, however they are stored.
_VALUES = frozenset(
    """raw_data float_data int32_data int64_data double_data uint64_data
    data_location external_data""".split()
)
# Another version of onnx may infer more or less of it.
_INFERRED = frozenset(("value_info",))


def digest(model: Model) -> str:
    """SHA-256 of a model, as hexadecimal text.

    Never the whole model at once: protobuf serialises at most 2 GB, and doubles them. A loaded
    model has the same hash wherever its weights are stored.
    """
    found = hashlib.sha256()
    _feed(found, model.proto)
    return found.hexdigest()


def _feed(found: Any, message: Any) -> None:
    if isinstance(message, TensorProto):
        _feed_fields(found, message, skip=_VALUES)
        if message.data_type != TensorProto.STRING:
            _feed_bytes(found, tensor_bytes(message))
    elif isinstance(message, NodeProto) and not any(_is_large(a) for a in message.attribute):
        _feed_bytes(found, message.SerializeToString(deterministic=True))
    elif isinstance(message, _OPENED):
        _feed_fields(found, message, skip=_INFERRED)
    elif isinstance(message, Message):
        _feed_bytes(found, message.SerializeToString(deterministic=True))
    else:
        _feed_bytes(found, message if isinstance(message, bytes) else repr(message).encode())


def _feed_fields(found: Any, message: Message, skip: Container[str]) -> None:
    for field, value in message.ListFields():
        if field.name in skip:
            continue
        is_list = hasattr(value, "extend")
        found.update(f"{field.number}:{len(value) if is_list else ''};".encode())
        for one in value if is_list else [value]:
            _feed(found, one)


def _is_large(attribute: AttributeProto) -> bool:
    """True for an attribute that holds tensors or bodies."""
    large = ("t", "g", "sparse_tensor")
    return any(attribute.HasField(name) for name in large) or bool(
        attribute.tensors or attribute.graphs or attribute.sparse_tensors
    )


def _feed_bytes(found: Any, content: bytes | memoryview) -> None:
    found.update(str(len(content)).encode() + b";")
    found.update(content)
