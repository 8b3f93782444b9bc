"""Shapes of what ONNX Runtime's own operators make, and those of ai.onnx.ml: onnx infers none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.model.graph import Node

Shape = tuple[int, ...]
DOMAIN = "com.microsoft"
ML = "ai.onnx.ml"


@dataclass(frozen=True)
class Typed:
    """Shape and element type of a tensor."""

    shape: Shape
    dtype: int


Inputs = Sequence[Typed | None]
Infer = Callable[[Node, Sequence[Any]], list[Typed]]

_TABLE: dict[tuple[str, str], Infer] = {}

# Fused operators that begin with an onnx one: the activation behind it changes no shape.
ALIASES = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "QLinearAveragePool": ("AveragePool", (0,)),
}
_OWN = frozenset(
    "activation activation_params activation_alpha activation_beta activation_gamma "
    "channels_last".split()
)


def shapes_of(*ops: str, domain: str = DOMAIN) -> Callable[[Infer], Infer]:
    """Register what operators make: fn(node, inputs) -> what is known of the first outputs.

    Inputs and outputs are `Typed`; an input is None where nothing is known of it.
    """

    def register(fn: Infer) -> Infer:
        for op in ops:
            _TABLE[domain, op] = fn
        return fn

    return register


def alias(node: Node) -> Node | None:
    """The onnx node whose output has the same shape; None where there is none."""
    if node.domain != DOMAIN or node.op not in ALIASES or node.attr("channels_last", 0):
        return None
    op, slots = ALIASES[node.op]
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    proto.op_type, proto.domain = op, ""
    proto.input[:] = [node.input(s) for s in slots]
    kept = [a for a in proto.attribute if a.name not in _OWN]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    return Node(proto, node.index)


def knows(node: Node) -> bool:
    """True where the shapes of a node's outputs are told here or not at all."""
    return node.domain == DOMAIN or (node.domain, node.op) in _TABLE


def infer(node: Node, inputs: Inputs) -> list[Typed]:
    """What is known of a node's outputs, first outputs first; [] where nothing is.

    Args:
        inputs: None where an input is absent or its shape unknown.
    """
    fn = _TABLE.get((node.domain, node.op))
    if fn is None or any(x is None and n for x, n in zip(inputs, node.inputs, strict=True)):
        return []
    return fn(node, inputs)


@shapes_of(
    "Gelu", "QuickGelu", "FastGelu", "BiasGelu", "QLinearSigmoid", "QLinearLeakyRelu",
    "RotaryEmbedding",
)  # fmt: skip
def _same(node: Node, x: Sequence[Typed]) -> list[Typed]:
    return [x[0]]


@shapes_of("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip(node: Node, x: Sequence[Typed]) -> list[Typed]:
    statistics = Typed((*x[0].shape[:-1], 1), TensorProto.FLOAT)
    return [x[0], statistics, statistics, x[0]]


@shapes_of("EmbedLayerNormalization")
def _embed(node: Node, x: Sequence[Typed]) -> list[Typed]:
    out = Typed((*x[0].shape, x[2].shape[1]), x[2].dtype)
    return [out, Typed(x[0].shape[:1], TensorProto.INT32), out]


@shapes_of("QLinearAdd", "QLinearMul")
def _broadcast(node: Node, x: Sequence[Typed]) -> list[Typed]:
    return [Typed(np.broadcast_shapes(x[0].shape, x[3].shape), x[0].dtype)]


@shapes_of("QLinearGlobalAveragePool")
def _pool(node: Node, x: Sequence[Typed]) -> list[Typed]:
    n, *rest = x[0].shape
    ones = (1,) * (len(rest) - 1)
    last = bool(node.attr("channels_last", 0))
    return [Typed((n, *ones, rest[-1]) if last else (n, rest[0], *ones), x[0].dtype)]


def matrix(shape: Shape, turned: bool) -> Shape:
    """A shape with its last two axes exchanged, if asked."""
    return (*shape[:-2], shape[-1], shape[-2]) if turned and len(shape) > 1 else shape


def _product(a: Shape, b: Shape) -> Shape:
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    return (*batch, *left[-2:-1] * (len(a) > 1), *right[-1:] * (len(b) > 1))


@shapes_of("QGemm")
def _gemm(node: Node, x: Sequence[Typed]) -> list[Typed]:
    a = matrix(x[0].shape, bool(node.attr("transA", 0)))
    b = matrix(x[3].shape, bool(node.attr("transB", 0)))
    dtype = x[0].dtype if node.input(7) else TensorProto.FLOAT
    return [Typed((a[0], b[1]), dtype)]


@shapes_of("FusedMatMul")
def _matmul(node: Node, x: Sequence[Typed]) -> list[Typed]:
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        return []
    a = matrix(x[0].shape, bool(node.attr("transA", 0)))
    b = matrix(x[1].shape, bool(node.attr("transB", 0)))
    return [Typed(_product(a, b), x[0].dtype)]


@shapes_of("MatMulIntegerToFloat", "DynamicQuantizeMatMul")
def _dynamic(node: Node, x: Sequence[Typed]) -> list[Typed]:
    return [Typed(_product(x[0].shape, x[1].shape), TensorProto.FLOAT)]


@shapes_of("Attention")
def _attention(node: Node, x: Sequence[Typed]) -> list[Typed]:
    sizes = node.attr("qkv_hidden_sizes")
    width = int(sizes[2]) if sizes else x[1].shape[1] // 3
    return [Typed((*x[0].shape[:2], width), x[0].dtype)]


@shapes_of("MultiHeadAttention")
def _heads(node: Node, x: Sequence[Typed]) -> list[Typed]:
    q, v = x[0].shape, x[2].shape if len(x) > 2 and x[2] else None
    if len(q) != 3 or v is None:
        return []
    width = v[2] if len(v) == 3 else v[1] * v[3]
    return [Typed((*q[:2], width), x[0].dtype)]


# --- ai.onnx.ml: what classical models put around a network ---------------------------------------


@shapes_of("Scaler", "Normalizer", domain=ML)
def _scaled(node: Node, x: Sequence[Typed]) -> list[Typed]:
    return [Typed(x[0].shape, TensorProto.FLOAT)]


@shapes_of("Binarizer", "Imputer", domain=ML)
def _kept(node: Node, x: Sequence[Typed]) -> list[Typed]:
    return [x[0]]


@shapes_of("FeatureVectorizer", domain=ML)
def _joined(node: Node, x: Sequence[Typed]) -> list[Typed]:
    widths = [one.shape[-1] for one in x]
    return [Typed((x[0].shape[0], sum(widths)), TensorProto.FLOAT)]


@shapes_of("LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor", domain=ML)
def _regressed(node: Node, x: Sequence[Typed]) -> list[Typed]:
    targets = int(node.attr("targets", node.attr("n_targets", 1)))
    return [Typed((_samples(x), targets), TensorProto.FLOAT)]


@shapes_of("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", domain=ML)
def _classified(node: Node, x: Sequence[Typed]) -> list[Typed]:
    names = node.attr("classlabels_strings") or ()
    numbers = node.attr("classlabels_int64s", node.attr("classlabels_ints")) or ()
    label = TensorProto.STRING if len(names) else TensorProto.INT64
    scores = Typed((_samples(x), len(names) or len(numbers)), TensorProto.FLOAT)
    return [Typed((_samples(x),), label), scores]


@shapes_of("ArrayFeatureExtractor", domain=ML)
def _picked(node: Node, x: Sequence[Typed]) -> list[Typed]:
    rows = x[0].shape[:-1] or (1,)
    return [Typed((*rows, int(np.prod(x[1].shape))), x[0].dtype)]


def _samples(x: Sequence[Typed]) -> int:
    return x[0].shape[0] if len(x[0].shape) > 1 else 1


def as_types(node: Node, found: Sequence[Typed]) -> dict[str, Any]:
    """Protos by output name, for as many outputs as are known."""
    return {
        name: helper.make_tensor_type_proto(one.dtype, one.shape)
        for name, one in zip(node.outputs, found, strict=False)
        if name
    }
