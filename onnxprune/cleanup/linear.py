"""Layers that sum over channels with stored weights, seen alike: convolutions and products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.identity.flow import FLOATS
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
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def weights(self) -> Array:
        """Shape (groups, outputs, inputs, taps), each count per group; times `alpha`."""
        w, groups = self.model.array(self.node.inputs[1]), self.groups
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


def linear(model: Model, shapes: Shapes, node: Node) -> Linear | None:
    """The view of a node; None where its weights or bias are not stored numbers."""
    if node.domain or node.op not in _VIEWS or not _is_stored(model, node.inputs[1]):
        return None
    x, y = shapes.shape.get(node.inputs[0]), shapes.shape.get(node.outputs[0])
    if x is None or y is None or _is_stored(model, node.inputs[0]):
        return None
    if node.input(2) and not _is_stored(model, node.input(2)):
        return None
    found: Linear | None = _VIEWS[node.op](model, node, len(x), len(y))
    return found


def _is_stored(model: Model, name: str) -> bool:
    """True for an initializer of floating point numbers that no caller overrides."""
    if name not in model.initializers or name in model.overridable:
        return False
    return model.initializers[name].data_type in FLOATS


def _bias(model: Model, node: Node, length: int) -> FloatArray | None:
    """The bias as a vector; None where it is none."""
    if not node.input(2):
        return np.zeros(length)
    found = model.array(node.input(2))
    if found.size not in (1, length) or found.shape[:-1] not in ((), (1,)):
        return None
    return np.broadcast_to(found.astype(np.float64).ravel(), (length,))


def _conv(model: Model, node: Node, rank: int, out_rank: int) -> Linear | None:
    bias = _bias(model, node, model.dims(node.inputs[1])[0])
    auto = node.attr("auto_pad", b"NOTSET")
    padded = any(node.attr("pads", ())) or auto not in (b"NOTSET", b"VALID")
    groups = int(node.attr("group", 1))
    return None if bias is None else Linear(model, node, groups, bias, 1, 1, padded)


def _conv_transpose(model: Model, node: Node, rank: int, out_rank: int) -> Linear | None:
    """Border positions get fewer taps, whatever the pads say: as good as padded."""
    groups = int(node.attr("group", 1))
    bias = _bias(model, node, groups * model.dims(node.inputs[1])[1])
    return None if bias is None else Linear(model, node, groups, bias, 1, 1, True)


def _gemm(model: Model, node: Node, rank: int, out_rank: int) -> Linear | None:
    bias = _bias(model, node, model.dims(node.inputs[1])[0 if node.attr("transB", 0) else 1])
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    if node.attr("transA", 0) or bias is None or not alpha or not beta:
        return None
    return Linear(model, node, 1, beta * bias, 1, 1, False, alpha, beta)


def _matmul(model: Model, node: Node, rank: int, out_rank: int) -> Linear | None:
    dims = model.dims(node.inputs[1])
    if len(dims) != 2:
        return None
    return Linear(model, node, 1, np.zeros(dims[1]), rank - 1, out_rank - 1, False)


_VIEWS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}
