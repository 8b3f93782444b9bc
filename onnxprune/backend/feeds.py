"""What a model takes and gives, and random feeds for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, ValueInfoProto, helper

from onnxprune.errors import ModelError
from onnxprune.model.graph import Model, Node

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Spec:
    """An input or output of a model."""

    name: str
    dtype: np.dtype[Any] | None
    """None where it is no tensor of numbers (text, sequence, map)."""
    shape: tuple[int | str | None, ...] | None
    """A name or None per dynamic axis; None where even the rank is unknown."""

    @staticmethod
    def of(info: ValueInfoProto) -> Spec:
        """The same, read from a graph."""
        tensor = info.type.tensor_type
        kind = tensor.elem_type
        if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
            return Spec(info.name, None, None)
        shape: tuple[int | str | None, ...] = tuple(
            # Some exporters write -1 for a dynamic axis.
            d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or None
            for d in tensor.shape.dim
        )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
        return Spec(info.name, dtype, shape if tensor.HasField("shape") else None)


# What an input may pass through and still hold the same indices.
_CARRIERS = frozenset(
    """Cast Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Slice Concat Split
    Tile""".split()
)
# Operators that look up input 1 in input 0, and their default axis.
_LOOK_UPS = {"Gather": 0, "GatherElements": 0}
# What a table may stand behind and keep its length.
_STORED = frozenset("""Cast DequantizeLinear""".split())
HIGH = 10
# Integers that index no table: pixels are bytes, and wide integers are mostly masks, of which
# other numbers than 0 and 1 make infinities.
_HIGH_BYTE, _HIGH_WIDE = 128, 2


def model_inputs(
    model: Model,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    high: int | None = None,
) -> dict[str, Array]:
    """Random feeds for a model; what indexes a table stays within it.

    Args:
        high: one above the largest integer, where that is less than would be drawn.
    """
    limits = index_limits(model)
    for spec in map(Spec.of, model.inputs):
        if spec.dtype is not None and spec.name not in limits:
            limits[spec.name] = _HIGH_BYTE if spec.dtype.itemsize == 1 else _HIGH_WIDE
    most = max(limits.values(), default=HIGH) if high is None else high
    return seeded_inputs(model.inputs, shapes, seed, high=most, limits=limits)


def index_limits(model: Model) -> dict[str, int]:
    """For inputs that index tables of known length: the length of the shortest."""
    holds = {name: {name} for name in model.input_names}
    limits: dict[str, int] = {}
    for node in model.nodes:
        if node.op in _CARRIERS:
            found = set().union(*(holds.get(name, set()) for name in node.inputs))
            holds |= dict.fromkeys(node.outputs, found)
        elif node.op in _LOOK_UPS and holds.get(node.inputs[1]):
            length = _table_length(model, node)
            for name in holds[node.inputs[1]] if length else ():
                limits[name] = min(limits.get(name, length), length)
    return limits


def _table_length(model: Model, node: Node) -> int:
    """Rows of the table that a node looks up; 0 where they are not known."""
    name = node.inputs[0]
    while (made := model.producer.get(name)) is not None and made.op in _STORED:
        name = made.inputs[0]
    if name not in model.initializers:
        return 0
    return model.dims(name)[int(node.attr("axis", _LOOK_UPS[node.op]))]


def seeded_inputs(
    inputs: Sequence[Spec | ValueInfoProto],
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    *,
    sizes: Mapping[str, int] | None = None,
    high: int = HIGH,
    limits: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Random feeds: floats standard normal, integers in 0 .. `high` - 1, bools.

    Args:
        shapes: the shape of an input, by its name.
        limits: for integer inputs by name, one above the largest number if below `high`.
        sizes: for an input without one, the sizes of its axes by name; 1 for the others.

    Raises: ModelError: an input is no tensor of numbers.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for item in inputs:
        spec = item if isinstance(item, Spec) else Spec.of(item)
        if spec.dtype is None:
            raise ModelError(
                "an input takes no numbers, so none can be drawn", where=f"`{spec.name}`"
            )
        given = (shapes or {}).get(spec.name)
        shape = tuple(given) if given is not None else _sized(spec, sizes or {})
        most = min(high, (limits or {}).get(spec.name, high))
        feeds[spec.name] = _draw(generator, spec.dtype, shape, max(most, 1))
    return feeds


def _sized(spec: Spec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    axes = spec.shape or ()
    return tuple(a if isinstance(a, int) else sizes.get(a or "", 1) for a in axes)


def _draw(
    generator: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], high: int
) -> Array:
    if dtype.kind in "iu":
        return np.asarray(generator.integers(0, high, shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    return np.asarray(generator.standard_normal(shape)).astype(dtype)
