"""Layers that sum over channels with stored weights, seen alike: convolutions and products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.cleanup.weight import Weight, weight
from onnxprune.model.graph import Model, Node
from onnxprune.shape.shapes import Shapes

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linear:
    """A node whose output channel is a sum over input channels, plus a bias."""

    model: Model
    node: Node
    groups: int
    bias: FloatArray
    """Shape (groups * outputs,): what is added in the end; zeros without one."""
    axis: int
    """Channel axis of the data."""
    out_axis: int
    padded: bool
    """True where sums at the border see zeros in the place of data."""
    weight: Weight
    """What the weights are made of."""
    bias_weight: Weight | None
    """What the bias is made of."""
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def is_shared(self) -> bool:
        """True where its weights cannot change without those of another node."""
        bias = self.bias_weight  # one that is stored as it is seen is copied when it changes
        return self.weight.is_shared or (bias is not None and bool(bias.steps) and bias.is_shared)

    @property
    def weights(self) -> Array:
        """Shape (groups, outputs, inputs, taps), each count per group; times `alpha`."""
        w, groups = self.weight.values, self.groups
        if self.node.op == "Conv":
            return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
        if self.node.op == "ConvTranspose":
            return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1).transpose(0, 2, 1, 3)
        rows = w if self.node.attr("transB", 0) else w.T
        return rows[None, :, :, None]

    def response(self, values: FloatArray) -> FloatArray:
        """What constant inputs add to each output.

        Args:
            values: shape (groups * inputs,).
        Returns: shape (groups * outputs,).
        """
        by_group = values.reshape(self.groups, -1)
        used = np.flatnonzero(by_group.any(axis=0))
        taps = self.weights[:, :, used].astype(np.float64).sum(axis=3)
        found = np.einsum("goi,gi->go", taps, by_group[:, used]).ravel() * self.alpha
        return np.asarray(found, np.float64)


def linear(
    model: Model, shapes: Shapes, node: Node, *, looks_through: bool = False
) -> Linear | None:
    """The view of a node; None where its weights or bias are not stored numbers.

    Args:
        looks_through: numbers may be stored in another form: as integers, in another type, turned.
    """
    if node.domain or node.op not in _VIEWS or weight(model, node.inputs[0]):
        return None
    own = weight(model, node.inputs[1], looks_through=looks_through)
    bias = weight(model, node.input(2), looks_through=looks_through) if node.input(2) else None
    x, y = shapes.shape.get(node.inputs[0]), shapes.shape.get(node.outputs[0])
    if own is None or x is None or y is None or (node.input(2) and bias is None):
        return None
    found: Linear | None = _VIEWS[node.op](_Stored(model, node, own, bias), len(x), len(y))
    return found


@dataclass(frozen=True, eq=False)
class _Stored:
    """A node and what it reads."""

    model: Model
    node: Node
    weight: Weight
    bias: Weight | None

    def vector(self, length: int) -> FloatArray | None:
        """The bias as a vector; None where it is none."""
        if self.bias is None:
            return np.zeros(length)
        found = self.bias.values
        if found.size not in (1, length) or found.shape[:-1] not in ((), (1,)):
            return None
        return np.broadcast_to(found.astype(np.float64).ravel(), (length,))


def _conv(own: _Stored, rank: int, out_rank: int) -> Linear | None:
    node, bias = own.node, own.vector(own.weight.dims[0])
    auto = node.attr("auto_pad", b"NOTSET")
    padded = any(node.attr("pads", ())) or auto not in (b"NOTSET", b"VALID")
    groups = int(node.attr("group", 1))
    if bias is None:
        return None
    return Linear(own.model, node, groups, bias, 1, 1, padded, own.weight, own.bias)


def _conv_transpose(own: _Stored, rank: int, out_rank: int) -> Linear | None:
    """Border positions get fewer taps, whatever the pads say: as good as padded."""
    groups = int(own.node.attr("group", 1))
    bias = own.vector(groups * own.weight.dims[1])
    if bias is None:
        return None
    return Linear(own.model, own.node, groups, bias, 1, 1, True, own.weight, own.bias)


def _gemm(own: _Stored, rank: int, out_rank: int) -> Linear | None:
    node = own.node
    bias = own.vector(own.weight.dims[0 if node.attr("transB", 0) else 1])
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    if node.attr("transA", 0) or bias is None or not alpha or not beta:
        return None
    stored = (own.weight, own.bias)
    return Linear(own.model, node, 1, beta * bias, 1, 1, False, *stored, alpha, beta)


def _matmul(own: _Stored, rank: int, out_rank: int) -> Linear | None:
    dims = own.weight.dims
    if len(dims) != 2:
        return None
    axes = (rank - 1, out_rank - 1)
    return Linear(own.model, own.node, 1, np.zeros(dims[1]), *axes, False, own.weight, None)


_VIEWS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}
