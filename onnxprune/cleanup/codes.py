"""Integers that stand for real numbers: number = scale * (integer - zero point)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxprune.model.graph import BITS, Model, Node

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

SIGNED = frozenset((TensorProto.INT4, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32))
UNSIGNED = frozenset((TensorProto.UINT4, TensorProto.UINT8, TensorProto.UINT16))


@dataclass(frozen=True, eq=False)
class Code:
    """How integers of a type stand for numbers."""

    kind: int
    scale: FloatArray
    """One number, or one for each position along `axis`."""
    zero: FloatArray
    """Zero points, shaped as `scale`."""
    axis: int
    stored: np.dtype[Any]
    """Type of the scales."""

    def numbers(self, integers: Array) -> FloatArray:
        """What integers stand for."""
        centred = integers.astype(np.float64) - self._along(self.zero, integers.ndim)
        found: FloatArray = centred * self._along(self.scale, integers.ndim)
        return found

    def integers(self, numbers: Array) -> FloatArray:
        """The nearest integers, as floats; divided as kernels do, which decides what is half."""
        kind = np.promote_types(self.stored, np.float32)
        scaled = numbers.astype(kind) / self._along(self.scale, numbers.ndim).astype(kind)
        found: FloatArray = np.rint(scaled) + self._along(self.zero, numbers.ndim)
        return found.clip(*self._limits)

    def fitted(self, numbers: FloatArray, before: FloatArray) -> Code:
        """The code with scales for other numbers; symmetric where it is.

        Args:
            before: integers that were stored: exporters leave a bit unused where sums of 16 bits
                would overflow, and so does this.
        """
        axes = tuple(a for a in range(numbers.ndim) if self.scale.size == 1 or a != self.axis)
        shape = self.scale.shape
        low = np.minimum(numbers.min(axis=axes, initial=0), 0).reshape(shape)
        high = np.maximum(numbers.max(axis=axes, initial=0), 0).reshape(shape)
        least, most = self._limits
        half, middle = (most - least + 1) // 2, (most + least + 1) // 2
        if (self.zero == middle).all():
            used = np.abs(before - middle).max(initial=0)
            steps = half // 2 if used <= half // 2 else half - 1
            return self._with(np.maximum(high, -low) / steps, self.zero)
        if before.max(initial=least) < middle:
            most = middle - 1
        scale = self._with((high - low) / (most - least), self.zero).scale
        return replace(self, scale=scale, zero=np.rint(least - low / scale).clip(least, most))

    def times(self, factor: FloatArray) -> Code:
        """The code with other scales; the code itself where factors do not fit its scales."""
        if factor.size not in (1, self.scale.size):
            return self
        shape = self.scale.shape if factor.size > 1 else ()
        return self._with(self.scale * factor.reshape(shape), self.zero)

    def _with(self, scale: FloatArray, zero: FloatArray) -> Code:
        """With scales as they are stored; one for zeros only stays."""
        stored = scale.astype(self.stored).astype(np.float64)
        return replace(self, scale=np.where(stored > 0, stored, self.scale), zero=zero)

    @property
    def _limits(self) -> tuple[int, int]:
        count = int(2 ** BITS[self.kind])
        least = -count // 2 if self.kind in SIGNED else 0
        return least, least + count - 1

    def _along(self, vector: FloatArray, rank: int) -> FloatArray:
        shape = [-1 if a == self.axis else 1 for a in range(rank)] if vector.size > 1 else ()
        return vector.reshape(shape)


def code(model: Model, node: Node, kind: int, rank: int) -> Code | None:
    """The code of a QuantizeLinear or DequantizeLinear; None where it is not stored or in blocks.

    Args:
        kind: type of the integers.
        rank: of the data.
    """
    names = [name for name in node.inputs[1:] if name]
    if any(n not in model.initializers or n in model.overridable for n in names):
        return None
    has_zero = bool(node.input(2))
    if kind not in SIGNED | UNSIGNED or node.attr("block_size", 0):
        return None
    if kind in UNSIGNED and not has_zero:  # what cannot be negative cannot be refit
        return None
    stored = model.array(names[0])
    scale = stored.astype(np.float64)
    zero = model.array(names[1]).astype(np.float64) if has_zero else np.zeros(scale.shape)
    axis = int(node.attr("axis", 1)) % max(rank, 1)
    return Code(kind, scale, zero, axis, stored.dtype) if scale.ndim < 2 else None
