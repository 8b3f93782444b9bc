"""Large weights in memory of their own; in a proto they are stubs that name it.

protobuf copies bytes whenever they are read and whenever a message is copied. Arrays kept beside
the protos are shared by all models that a weight goes through unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]

# Shapes and scalars stay where a reader of the graph finds them.
INLINE_BYTES = 1024
PREFIX = "in-memory-"
KEPT_TYPES = frozenset(
    helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in "float16 float32 float64 int8 uint8 int32 int64".split()
)

# Whoever uses a stub holds its array: a `Model` holds those of its proto.
_ARRAYS: WeakValueDictionary[str, Array] = WeakValueDictionary()


def put(array: Array, like: TensorProto) -> tuple[TensorProto, Array | None]:
    """A stub for an array, and the array to hold on to; a small one goes into the proto.

    Args:
        like: its name, type, doc string and metadata are taken over.
    """
    made = _described(like, array.shape)
    if array.nbytes < INLINE_BYTES or like.data_type not in KEPT_TYPES:
        made.MergeFrom(numpy_helper.from_array(np.ascontiguousarray(array)))
        made.dims[:] = array.shape
        made.data_type = like.data_type
        return made, None
    kept = np.ascontiguousarray(array)
    kept.setflags(write=False)
    key = PREFIX + secrets.token_hex(16)  # no file can guess it
    _ARRAYS[key] = kept
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=key)
    return made, kept


def _described(like: TensorProto, dims: tuple[int, ...]) -> TensorProto:
    made = TensorProto(name=like.name, data_type=like.data_type, dims=dims)
    if like.HasField("doc_string"):
        made.doc_string = like.doc_string
    made.metadata_props.extend(like.metadata_props)
    return made


def described(tensor: TensorProto) -> TensorProto:
    """A tensor without its values."""
    return _described(tensor, tuple(tensor.dims))


def held(tensor: TensorProto) -> Array | None:
    """The array behind a stub; None for a tensor that holds its values itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    return _ARRAYS.get(location)


def values(tensor: TensorProto) -> Array:
    """The values of a tensor, wherever they are."""
    found = held(tensor)
    return numpy_helper.to_array(tensor) if found is None else found


def arrays(proto: ModelProto) -> Iterator[Array]:
    """The arrays behind a model's stubs."""
    for tensor in proto.graph.initializer:
        if (found := held(tensor)) is not None:
            yield found


def completed(tensor: TensorProto) -> TensorProto:
    """The tensor with its values inside."""
    found = held(tensor)
    if found is None:
        return tensor
    made = described(tensor)
    made.raw_data = found.tobytes()
    return made


def complete(proto: ModelProto) -> ModelProto:
    """The model with all its weights inside; itself where they are."""
    if not any(held(tensor) is not None for tensor in proto.graph.initializer):
        return proto
    made = ModelProto()
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        if held(tensor) is not None:
            tensor.CopyFrom(completed(tensor))
    return made
