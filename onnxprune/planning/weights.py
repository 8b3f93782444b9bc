"""Which initializers are learned, what for, and the real numbers they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, TensorProto

from onnxprune.identity.occurrences import follows_data
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node, all_graphs
from onnxprune.model.store import values

Array = npt.NDArray[Any]

# Element types a learned weight may have; integers of 32 and 64 bits hold shapes and indices,
# but for the bias of a quantised layer.
WEIGHT_TYPES = frozenset(
    TensorProto.DataType.Value(name)
    for name in """FLOAT DOUBLE FLOAT16 BFLOAT16 FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2
    FLOAT8E5M2FNUZ FLOAT4E2M1 INT8 UINT8 INT16 UINT16 INT4 UINT4""".split()
)
INTEGER_BIAS = frozenset({("DequantizeLinear", 0), ("QLinearConv", 8), ("QGemm", 6)})
# What an exporter adds to a score that must not count: the lowest float16, or below.
MASKED = -1e4

# Inputs whose elements meet data in a sum, or are looked up as rows: filters.
FILTERS: dict[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "ConvInteger": (1,), "FusedConv": (1,),
    "QLinearConv": (3,), "Gemm": (0, 1), "FusedGemm": (0, 1), "QGemm": (0, 3),
    "MatMul": (0, 1), "FusedMatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3),
    "MatMulIntegerToFloat": (0, 1), "DynamicQuantizeMatMul": (0, 1), "Einsum": (0, 1, 2, 3),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "DynamicQuantizeLSTM": (1, 2),
    "Attention": (1,), "QAttention": (1,), "Gather": (0,), "EmbedLayerNormalization": (2, 3, 4),
}  # fmt: skip
# Inputs with a number, a vector or a table that is added or multiplied position by position.
VECTORS = frozenset(
    """Add Sub Mul Div Pow Max Min Sum Mean Where PRelu Clip BatchNormalization
    InstanceNormalization LayerNormalization GroupNormalization RMSNormalization
    SimplifiedLayerNormalization SkipLayerNormalization BiasGelu Concat QLinearAdd
    QLinearMul DequantizeLinear QuantizeLinear""".split()
) | FILTERS.keys()  # fmt: skip
VIEWS = frozenset(
    """Cast Expand Flatten Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze
    DequantizeLinear""".split()
)
# Of operators on quantised numbers: slots of a weight, its scale and zero point (-1: none), and
# the axis that these go along.
QUANTISED: dict[str, dict[int, tuple[int, int, int]]] = {
    "QLinearConv": {3: (4, 5, 0)},
    "ConvInteger": {1: (-1, 3, 0)},
    "QLinearMatMul": {0: (1, 2, -2), 3: (4, 5, -1)},
    "MatMulInteger": {0: (-1, 2, -2), 1: (-1, 3, -1)},
    "MatMulIntegerToFloat": {1: (3, 5, -1)},
    "DynamicQuantizeMatMul": {1: (2, 3, -1)},
    "QGemm": {3: (4, 5, 1)},
    "QAttention": {1: (4, 7, -1)},
}


def is_weight(tensor: TensorProto) -> bool:
    """True for a type that learned weights are stored in."""
    return tensor.data_type in WEIGHT_TYPES


def learned(model: Model) -> dict[str, TensorProto]:
    """Weights that something reads, by name; masks, bounds, scales of all and shapes are none."""
    return {
        name: tensor
        for name, tensor in model.initializers.items()
        if (name in model.consumers or name in model.captured) and _is_learned(model, name, tensor)
    }


def learned_inside(model: Model) -> int:
    """Elements of learned weights in the bodies of If, Loop and Scan."""
    graphs = [g for g in all_graphs(model.proto.graph) if isinstance(g, GraphProto)]
    tensors = [t for g in graphs[1:] for t in g.initializer]
    for graph in graphs[1:]:
        constants = (n for n in graph.node if n.op_type == "Constant")
        tensors += [a.t for n in constants for a in n.attribute if a.HasField("t")]
    return sum(prod(t.dims) for t in tensors if is_weight(t) and t.dims)


def _is_learned(model: Model, name: str, tensor: TensorProto) -> bool:
    readers = [(node.op, slot) for node, slot in model.consumers.get(name, ())]
    if tensor.data_type == TensorProto.INT32:
        return any(reader in INTEGER_BIAS for reader in readers)
    if not is_weight(tensor):
        return False
    if not tensor.dims:
        return False  # a number: a scale of all, a bound, an epsilon
    summands = bool(readers) and all(op in {"Add", "Sub", "Where", "Mul"} for op, _ in readers)
    return not (summands and _is_mask(tensor))


def _is_mask(tensor: TensorProto) -> bool:
    array = values(tensor)
    if array.dtype.kind != "f" or not array.size:
        return False
    low = array <= MASKED
    return bool(low.any() and (low | (array == 0)).all())


class Uses:
    """What each use of a weight is for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes = {n.key: n for n in model.nodes}

    @cached_property
    def _follows_data(self) -> frozenset[str]:
        return follows_data(self.model)

    def sinks(self, slot: Slot) -> Iterator[tuple[Node, int]]:
        """Where a use meets data, through what only moves or scales the weight itself."""
        key, at = slot
        if not isinstance(at, int):
            return
        waiting, seen = [(self.nodes[key], at)], set[str]()
        lengths = self.model.initializers[self.nodes[key].input(at)].dims
        is_vector = sum(n > 1 for n in lengths) < 2
        while waiting:
            node, place = waiting.pop()
            inner = [n for n in node.outputs if n and n not in self._follows_data]
            # A vector that scales a weight is not the weight.
            if not inner or (is_vector and (node.op not in VIEWS or place > 0)):
                yield node, place
                continue
            for name in inner:
                if name not in seen:
                    seen.add(name)
                    waiting += self.model.consumers.get(name, ())

    def is_filter(self, slot: Slot) -> bool:
        """True where the weight's elements are summed with data; a bias or scale is none."""
        found = list(self.sinks(slot))
        if any(place in FILTERS.get(node.op, ()) for node, place in found):
            return True
        known = all(node.op in VECTORS for node, _ in found)
        name = self.nodes[slot[0]].input(slot[1]) if isinstance(slot[1], int) else ""
        lengths = [n for n in self.model.initializers[name].dims if n > 1] if name else []
        return not known and len(lengths) > 1

    def is_norm_scale(self, slot: Slot) -> bool:
        """True for the scale (gamma) of a BatchNormalization."""
        return any(n.op == "BatchNormalization" and place == 1 for n, place in self.sinks(slot))

    def real(self, slot: Slot) -> Array:
        """The numbers a use stands for: dequantised; float32 or float64."""
        key, at = slot
        assert isinstance(at, int), "only uses of initializers hold numbers"
        node = self.nodes[key]
        array = self.model.array(node.input(at))
        if array.dtype in (np.float32, np.float64):
            return array
        numbers = array.astype(np.float32)
        if node.op == "DequantizeLinear" and at == 0:
            return self._scaled(node, numbers, (1, 2, int(node.attr("axis", 1))))
        where = QUANTISED.get(node.op, {}).get(at)
        if node.op == "QGemm" and node.attr("transB", 0) and where:
            where = (*where[:2], 0)
        return self._scaled(node, numbers, where) if where else numbers

    def _scaled(self, node: Node, numbers: Array, where: tuple[int, int, int]) -> Array:
        scale, zero, axis = where
        shift = self._spread(node, zero, numbers.shape, axis)
        factor = self._spread(node, scale, numbers.shape, axis)
        shifted = numbers if shift is None else numbers - shift
        return shifted if factor is None else shifted * factor

    def _spread(self, node: Node, slot: int, shape: tuple[int, ...], axis: int) -> Array | None:
        """A number, vector or table of blocks over a weight's shape; None where it is unknown."""
        name = node.input(slot) if slot >= 0 else ""
        if name not in self.model.initializers:
            return None
        array = self.model.array(name).astype(np.float32)
        if array.size == 1:
            return array.reshape(())
        if array.ndim == 1:
            return array.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
        for at, (own, whole) in enumerate(zip(array.shape, shape, strict=True)):
            if own not in (1, whole):
                array = np.repeat(array, -(-whole // own), at).take(range(whole), at)
        return array
