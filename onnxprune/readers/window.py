"""What a convolution sees at each position of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.model.graph import Node
from onnxprune.readers.stats import Array, IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """What a convolution sees at each position, per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    """Padding in front."""
    is_transposed: bool = False
    """An input is spread over outputs, `strides` apart, instead of outputs over inputs."""

    def patches(self, x: Array, out: Sequence[int], at: IntArray) -> Array:
        """Inputs of some positions.

        Args:
            x: shape (channels, *spatial); `out`: spatial shape of the result.
            at: positions, counted through `out`.
        Returns: shape (positions, channels * taps).
        """
        index = np.zeros((len(at), 1), np.int64)
        is_inside = np.ones((len(at), 1), np.bool_)
        for axis, place in enumerate(np.unravel_index(at, tuple(out))):
            where, fits = self._seen(axis, place)  # (positions, kernel)
            length = x.shape[axis + 1]
            fits &= (where >= 0) & (where < length)
            where = where.clip(0, length - 1)
            index = (index[:, :, None] * length + where[:, None]).reshape(len(at), -1)
            is_inside = (is_inside[:, :, None] & fits[:, None]).reshape(len(at), -1)
        taken = x.reshape(len(x), -1)[:, index]  # (channels, positions, taps)
        if not is_inside.all():
            taken *= is_inside
        return taken.transpose(1, 0, 2).reshape(len(at), -1)

    def _seen(self, axis: int, place: IntArray) -> tuple[IntArray, BoolArray]:
        """Which inputs the taps see along an axis, and whether they see one at all."""
        taps = np.arange(self.kernel[axis]) * self.dilations[axis] - self.before[axis]
        if not self.is_transposed:
            where = place[:, None] * self.strides[axis] + taps
            return where, np.ones(where.shape, np.bool_)
        spread = place[:, None] - taps
        return spread // self.strides[axis], spread % self.strides[axis] == 0


def window(node: Node, kernel: tuple[int, ...], lengths: Sequence[int]) -> Window:
    """The window of a Conv or ConvTranspose.

    Args:
        lengths: spatial lengths of the data.
    """
    rank = len(kernel)
    strides = tuple(node.attr("strides", [1] * rank))
    dilations = tuple(node.attr("dilations", [1] * rank))
    before = tuple(node.attr("pads", [0] * 2 * rank))[:rank]
    auto = _text(node.attr("auto_pad", "NOTSET"))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    is_transposed = node.op == "ConvTranspose"
    if auto.startswith("SAME"):
        if is_transposed:
            totals = [max(e - s, 0) for s, e in zip(strides, extents, strict=True)]
        else:
            sizes = zip(lengths, strides, extents, strict=True)
            totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in sizes]
        before = tuple((t + (auto == "SAME_LOWER")) // 2 for t in totals)
    return Window(kernel, strides, dilations, before, is_transposed)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
