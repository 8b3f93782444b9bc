"""A model and its nodes: read-only views of the ModelProto, which is the source of truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxprune.errors import ModelError
from onnxprune.model.store import Array, arrays, complete, values

# protobuf hands out bytes as copies. Small arrays are kept, larger ones live as long as they
# are used: a second copy of every weight would double the memory of a model.
KEPT_BYTES = 2**16
_ODD_BITS = {
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
BITS = {
    number: _ODD_BITS.get(name, 8)
    for name, number in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING")
}



@dataclass(frozen=True, eq=False)
class Node:
    """A view of a NodeProto and its place in the graph."""

    proto: NodeProto
    index: int

    @cached_property
    def op(self) -> str:
        return self.proto.op_type

    @cached_property
    def domain(self) -> str:
        """Empty for ai.onnx, however that was spelt."""
        return plain_domain(self.proto.domain)

    @cached_property
    def name(self) -> str:
        return self.proto.name

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names; "" for an optional input that is missing."""
        return tuple(self.proto.input)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.proto.output)

    @cached_property
    def key(self) -> str:
        """The first output that has a name: unique in a graph, the same after a cut."""
        return next((name for name in self.outputs if name), self.name)

    def input(self, i: int) -> str:
        """The name of an input; "" where it is missing."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as int, float, str, list, array (of a tensor) or GraphProto."""
        found = self._attributes.get(name)
        if found is None:
            return default
        if name not in self._values:
            try:
                self._values[name] = _value(found)
            except (ValueError, TypeError, AttributeError) as error:
                where = f"node `{self.name or self.key}` ({self.op})"
                raise ModelError(f"cannot read the attribute `{name}`", where=where) from error
        return self._values[name]

    @cached_property
    def _attributes(self) -> dict[str, AttributeProto]:
        return {a.name: a for a in self.proto.attribute}

    @cached_property
    def _values(self) -> dict[str, Any]:
        return {}


@dataclass(eq=False)
class Model:
    """A ModelProto and indexes over it; the proto is never edited in place."""

    proto: ModelProto
    folder: Path | None = None  # of the file it came from

    def __post_init__(self) -> None:
        # What stubs stand for lives as long as a model that reads it.
        self._weights = tuple(arrays(self.proto))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """In the order of the proto."""
        return tuple(Node(proto, i) for i, proto in enumerate(self.proto.graph.node))

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    @cached_property
    def inputs(self) -> tuple[ValueInfoProto, ...]:
        """Graph inputs that the caller must give: no initializer stands behind them."""
        sparse = {tensor.values.name for tensor in self.proto.graph.sparse_initializer}
        known = self.initializers.keys() | sparse
        return tuple(info for info in self.proto.graph.input if info.name not in known)

    @cached_property
    def outputs(self) -> tuple[ValueInfoProto, ...]:
        return tuple(self.proto.graph.output)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.inputs)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.outputs)

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Imported version by domain; "" is ai.onnx."""
        return {plain_domain(o.domain): o.version for o in self.proto.opset_import}

    @property
    def opset(self) -> int:
        """Version of ai.onnx; 1 where it is not imported, as the specification has it."""
        return self.opsets.get("", 1)

    @cached_property
    def element_types(self) -> dict[str, int]:
        """Of inputs and of values whose type is written down."""
        infos = (*self.proto.graph.value_info, *self.inputs)
        kinds = {info.name: info.type.tensor_type.elem_type for info in infos}
        return {name: kind for name, kind in kinds.items() if kind}

    @cached_property
    def producer(self) -> dict[str, Node]:
        """The node that makes a value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> dict[str, tuple[tuple[Node, int], ...]]:
        """Nodes that read a value, with the input they read it at; bodies are not looked into."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for i, name in enumerate(node.inputs):
                if name:
                    found.setdefault(name, []).append((node, i))
        return {name: tuple(readers) for name, readers in found.items()}

    @cached_property
    def overridable(self) -> frozenset[str]:
        """Initializers that a caller may replace: from IR 4 on, those listed as graph inputs."""
        if self.proto.ir_version < 4:
            return frozenset()
        return frozenset(i.name for i in self.proto.graph.input if i.name in self.initializers)

    @cached_property
    def captured(self) -> frozenset[str]:
        """Values of the main graph that the bodies of If, Loop and Scan read."""
        return frozenset(
            name
            for node in self.proto.graph.node
            for body in bodies(node)
            for name in free_names(body)
        )

    def array(self, name: str) -> Array:
        """The value of an initializer; read-only."""
        found = self._arrays.get(name)
        if found is None:
            found = values(self.initializers[name])
            found.setflags(write=False)
            self._arrays[name] = found
            if found.nbytes <= KEPT_BYTES:
                self._kept.append(found)
        return found

    def dims(self, name: str) -> tuple[int, ...]:
        """The shape of an initializer."""
        return tuple(self.initializers[name].dims)

    def complete(self) -> ModelProto:
        """The proto with all weights inside."""
        return complete(self.proto)

    @cached_property
    def _arrays(self) -> WeakValueDictionary[str, Array]:
        return WeakValueDictionary()

    @cached_property
    def _kept(self) -> list[Array]:
        return []


def plain_domain(domain: str) -> str:
    """A domain with the two names of ai.onnx made one."""
    return "" if domain == "ai.onnx" else domain


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: GraphProto | FunctionProto) -> Iterator[GraphProto | FunctionProto]:
    """A graph or function and the bodies below it, at any depth."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(body for node in current.node for body in bodies(node))


def free_names(graph: GraphProto) -> set[str]:
    """Names that a body takes from the graphs around it."""
    own = {info.name for info in graph.input} | {t.name for t in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    return read_names(graph) - own - {""}


def read_names(graph: GraphProto) -> set[str]:
    """Names that nodes, their bodies or the graph's outputs read."""
    read = {info.name for info in graph.output}
    for node in graph.node:
        read.update(node.input)
        for body in bodies(node):
            read |= free_names(body)
    return read


def tensors(proto: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor of a model, with its name as a value; "" where it is a mere attribute."""
    training = [g for part in proto.training_info for g in (part.algorithm, part.initialization)]
    for root in (proto.graph, *training, *proto.functions):
        for graph in all_graphs(root):
            if isinstance(graph, GraphProto):
                yield from ((tensor.name, tensor) for tensor in graph.initializer)
                for sparse in graph.sparse_initializer:
                    yield from ((sparse.values.name, sparse.values), ("", sparse.indices))
            yield from _attribute_tensors(graph.node)


def _attribute_tensors(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        value = node.output[0] if node.op_type == "Constant" and node.output else ""
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield value, attribute.t
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                if sparse.HasField("values"):
                    yield from ((value, sparse.values), ("", sparse.indices))
            yield from (("", tensor) for tensor in attribute.tensors)


def needed_bytes(name: str, tensor: TensorProto) -> int:
    """Bytes that a tensor's shape and type ask for; strings count as nothing.

    Raises: ModelError: the shape or the type is none.
    """
    if any(n < 0 for n in tensor.dims):
        raise ModelError(f"tensor `{name}` has the shape {list(tensor.dims)}")
    if tensor.data_type == TensorProto.STRING:
        return 0
    if tensor.data_type not in BITS:
        raise ModelError(f"tensor `{name}` has the unknown type {tensor.data_type}")
    bits: int = math.prod(tensor.dims) * BITS[tensor.data_type]
    return (bits + 7) // 8


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    if attribute.type == AttributeProto.TENSORS:
        return [numpy_helper.to_array(tensor) for tensor in value]
    if attribute.type == AttributeProto.STRING:
        return _text(value)
    if attribute.type == AttributeProto.STRINGS:
        return [_text(text) for text in value]
    return list(value) if isinstance(value, (list, tuple)) else value


def _text(value: bytes) -> str | bytes:
    """Text, or bytes as they are where they are no UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
