"""What a model takes and gives, and random feeds for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, ValueInfoProto, helper

from onnxprune.errors import ModelError

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


def seeded_inputs(
    inputs: Sequence[Spec | ValueInfoProto],
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    *,
    sizes: Mapping[str, int] | None = None,
    high: int = 10,
) -> dict[str, Array]:
    """Random feeds: floats standard normal, integers in 0 .. `high` - 1, bools.

    Args:
        shapes: the shape of an input, by its name.
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
        feeds[spec.name] = _draw(generator, spec.dtype, shape, high)
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
