"""Shapes and known integer values of every tensor, at chosen sizes of the dynamic axes.

Nothing is run: each node's output shape comes from onnx's own inference for that one node, fed
with the values that shape arithmetic is known to have. A value is *known* when it depends on
shapes and constants alone; anything that depends on the data is not, whatever its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import (
    NodeProto,
    TensorProto,
    TypeProto,
    checker,
    defs,
    helper,
    numpy_helper,
    shape_inference,
)

from onnxprune.errors import ModelError
from onnxprune.model.graph import Model, Node
from onnxprune.shape import contrib
from onnxprune.shape.kernels import KERNELS

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

# Larger computed values (attention masks of long sequences) are treated as data.
KNOWN_LIMIT = 1 << 16
# Operators that are written as functions.
STAND_INS = {
    "GroupNormalization": "Identity", "MeanVarianceNormalization": "Identity",
    "GreaterOrEqual": "Greater", "LessOrEqual": "Less",
}  # fmt: skip
# Above this an inferred size is taken for the mark of a broken or hostile model.
SIZE_LIMIT = 1 << 40


# What onnx's inference raises on nodes that are not valid.
REFUSALS = (
    shape_inference.InferenceError, checker.ValidationError, ValueError, RuntimeError, TypeError,
)  # fmt: skip


@dataclass
class Shapes:
    """What is known about each tensor at one choice of sizes."""

    shape: dict[str, Shape] = field(default_factory=dict)
    """Concrete shapes; a tensor whose shape depends on the data is absent."""
    value: dict[str, Array] = field(default_factory=dict)
    """Known values of shape arithmetic; initializers are not listed here."""
    dtype: dict[str, int] = field(default_factory=dict)
    """onnx TensorProto element types."""


class Evaluator:
    """Walks a model's nodes in order and fills a `Shapes`.

    Subclass hook: `before(node)` may change what is known of a node's inputs before the node is
    evaluated; the cut uses it to repair shape constants as it meets them.
    """

    def __init__(self, model: Model, inputs: Mapping[str, Shape]) -> None:
        self.model, self.known = model, Shapes()
        self.types: dict[str, TypeProto] = {}
        for info in model.inputs:
            if info.type.HasField("tensor_type") and info.name in inputs:
                self._set(info.name, info.type.tensor_type.elem_type, inputs[info.name])
            else:
                self.types[info.name] = info.type
        for name, tensor in model.initializers.items():
            self._set(name, tensor.data_type, tuple(tensor.dims))

    def _set(self, name: str, dtype: int, shape: Shape) -> None:
        self.known.shape[name], self.known.dtype[name] = shape, dtype
        self.types[name] = helper.make_tensor_type_proto(dtype, shape)

    def value(self, name: str) -> Array | None:
        """The known value of a tensor: shape arithmetic or a constant small enough to be one."""
        if (found := self.known.value.get(name)) is not None:
            return found
        return constant(self.model, name)

    def run(self) -> Shapes:
        """Evaluate every node.

        Raises: ModelError: a node's inputs do not fit together at these sizes.
        """
        for node in self.model.nodes:
            self.step(node)
        return self.known

    def step(self, node: Node) -> None:
        """Evaluate one node: its value where every input is known, else its shape."""
        known = self._compute(node)
        if known is not None:
            for name, out in zip(node.outputs, known, strict=False):
                if name:
                    self._put_value(name, out)
            return
        for name, inferred in self._infer(node).items():
            self._put_type(node, name, inferred)

    def _compute(self, node: Node) -> list[Array] | None:
        if node.op == "Shape" and node.domain == "":
            return self._shape_of(node)
        if node.op == "Size" and node.domain == "" and node.input(0) in self.known.shape:
            return [np.array(np.prod(self.known.shape[node.input(0)], dtype=np.int64))]
        kernel = KERNELS.get(node.op) if node.domain == "" else None
        if kernel is None:
            return None
        values = [self.value(name) if name else None for name in node.inputs]
        if any(v is None and name for v, name in zip(values, node.inputs, strict=True)):
            return None
        if _result_size(node, values) > KNOWN_LIMIT:
            return None
        try:
            with np.errstate(all="ignore"):
                return kernel(node, values)
        except NotImplementedError:
            return None
        except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"shapes do not fit: {first_line(error)}", where=describe(node)
            ) from error

    def _shape_of(self, node: Node) -> list[Array] | None:
        shape = self.known.shape.get(node.input(0))
        if shape is None:
            return None
        start, end = int(node.attr("start", 0)), node.attr("end")
        return [np.array(shape[start : None if end is None else int(end)], np.int64)]

    def _put_value(self, name: str, value: Array) -> None:
        self.known.value[name] = value
        self._set(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)

    def _put_type(self, node: Node, name: str, inferred: TypeProto) -> None:
        self.types[name] = inferred
        if not inferred.HasField("tensor_type"):
            return
        tensor = inferred.tensor_type
        self.known.dtype[name] = tensor.elem_type
        if not tensor.HasField("shape"):
            return
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        if any(n == -1 for n in sizes):
            return  # depends on the data
        if any(n < 0 for n in sizes) or int(np.prod(sizes, dtype=object)) > SIZE_LIMIT:
            raise ModelError(f"`{name}` would have the shape {sizes}", where=describe(node))
        self.known.shape[name] = tuple(sizes)

    def _infer(self, node: Node) -> dict[str, TypeProto]:
        if contrib.knows(node):
            return self._infer_contrib(node)
        node = _stand_in(node)
        schema = _schema(node.op, node.domain, self.model.opsets.get(node.domain, 0))
        if schema is None:
            return {}
        types = {n: self.types[n] for n in node.inputs if n and n in self.types}
        if any(n and n not in types for n in node.inputs):
            return {}
        data = {n: numpy_helper.from_array(np.asarray(v), n) for n, v in self._data(node)}
        imports = [helper.make_opsetid(d, v) for d, v in self.model.opsets.items()]
        try:
            return dict(
                shape_inference.infer_node_outputs(
                    schema, node.proto, types, data, None, imports
                )
            )
        except REFUSALS as error:
            raise ModelError(
                f"shapes do not fit: {first_line(error)}", where=describe(node)
            ) from error

    def _infer_contrib(self, node: Node) -> dict[str, TypeProto]:
        same = contrib.alias(node)
        if same is not None:
            return self._infer(same)
        shapes = [self.known.shape.get(n) for n in node.inputs]
        inputs = [
            None if s is None else contrib.Typed(s, self.known.dtype[n])
            for n, s in zip(node.inputs, shapes, strict=True)
        ]
        return contrib.as_types(node, contrib.infer(node, inputs))

    def _data(self, node: Node) -> Iterator[tuple[str, Array]]:
        for name in dict.fromkeys(node.inputs):
            if name and (value := self.value(name)) is not None:
                yield name, value
            elif name in self.model.initializers and node.op in {"Resize", "Upsample"}:
                yield name, self.model.array(name)


def evaluate(model: Model, inputs: Mapping[str, Shape]) -> Shapes:
    """Shapes and known values of `model` for concrete input shapes.

    Raises: ModelError: the sizes do not fit the model.
    """
    return Evaluator(model, inputs).run()


def constant(model: Model, name: str) -> Array | None:
    """An initializer that may be part of shape arithmetic: integers, or one number."""
    tensor = model.initializers.get(name)
    if tensor is None or name in model.overridable:
        return None
    size = prod(tensor.dims)
    if size > KNOWN_LIMIT or tensor.data_type == TensorProto.STRING:
        return None
    whole = tensor.data_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    return model.array(name) if whole or size <= 1 else None


def describe(node: Node) -> str:
    """A node in the user's words."""
    return f"node `{node.name or node.key}` ({node.op})"


def first_line(error: Exception) -> str:
    """The first line of an exception's text, without what libraries put around it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("[ShapeInferenceError] ").strip()


def _result_size(node: Node, values: list[Array | None]) -> int:
    """Elements that a kernel would make, told before it makes them."""
    arrays = [np.asarray(v) for v in values if v is not None]
    if node.op in {"ConstantOfShape", "Expand"}:
        want = arrays[-1].ravel()
        return int(np.prod([max(int(n), 1) for n in want], dtype=object)) * (
            arrays[0].size if node.op == "Expand" else 1
        )
    if node.op == "Tile":
        return int(np.prod([int(n) for n in arrays[1].ravel()], dtype=object)) * arrays[0].size
    if node.op == "Range":
        start, stop, step = (float(a) for a in arrays)
        return int(abs(stop - start) / max(abs(step), 1e-9)) + 1
    if node.op == "Gather":
        return arrays[0].size * max(arrays[1].size, 1)
    return int(np.prod(np.broadcast_shapes(*[a.shape for a in arrays]), dtype=object)) if (
        node.op in {"Add", "Sub", "Mul", "Div", "Equal", "Where", "Less", "Greater"}
        and _broadcasts(arrays)
    ) else sum(a.size for a in arrays)


def _broadcasts(arrays: list[Array]) -> bool:
    try:
        np.broadcast_shapes(*[a.shape for a in arrays])
    except ValueError:
        return False
    return True


def _stand_in(node: Node) -> Node:
    """An operator with the same shapes, for one that onnx has no inference for."""
    op = STAND_INS.get(node.op, "") if node.domain == "" else ""
    if not op:
        return node
    proto = NodeProto(op_type=op, name=node.name, output=node.outputs)
    proto.input.extend(node.inputs[: 1 if op == "Identity" else None])
    return Node(proto, node.index)


@lru_cache(maxsize=4096)
def _schema(op: str, domain: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, max_inclusive_version=version, domain=domain)
    except defs.SchemaError:
        return None
