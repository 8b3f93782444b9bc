"""Float32 copies of models, for comparing what rounding would blur.

A quantiser turns a difference of 1e-7 into a whole step now and then, and float16 rounds every
sum; a cut is judged on copies without either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxprune.model.store import values

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Integer attributes that name an element type.
TYPE_ATTRIBUTES = frozenset(
    {"to", "dtype", "stash_type", "output_dtype", "softmax_precision", "output_datatype"}
)

# What may stand between a quantiser and its dequantiser: it treats all types alike.
CARRIERS = frozenset(
    """Flatten Gather Identity MaxPool Relu Reshape Slice Split Squeeze Transpose Unsqueeze
    DepthToSpace SpaceToDepth Expand""".split()
)


RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
}

# Of operators on quantised numbers: the float operator; slots of number, scale and zero point of
# each operand; of scale and zero point of the result; of a bias in steps of both scales.
FUSED: dict[str, tuple[str, tuple[tuple[int, int, int], ...], tuple[int, int], int]] = {
    "QLinearConv": ("Conv", ((0, 1, 2), (3, 4, 5)), (6, 7), 8),
    "QLinearMatMul": ("MatMul", ((0, 1, 2), (3, 4, 5)), (6, 7), -1),
    "QGemm": ("Gemm", ((0, 1, 2), (3, 4, 5)), (7, 8), 6),
    "QLinearAdd": ("Add", ((0, 1, 2), (3, 4, 5)), (6, 7), -1),
    "QLinearMul": ("Mul", ((0, 1, 2), (3, 4, 5)), (6, 7), -1),
    "QLinearSigmoid": ("Sigmoid", ((0, 1, 2),), (3, 4), -1),
    "QLinearLeakyRelu": ("LeakyRelu", ((0, 1, 2),), (3, 4), -1),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", ((0, 1, 2),), (3, 4), -1),
    "QLinearAveragePool": ("AveragePool", ((0, 1, 2),), (3, 4), -1),
}


def as_float32(model: ModelProto) -> ModelProto:
    """The model with every float16 and bfloat16 number a float32 one, interface included."""
    made = ModelProto()
    made.CopyFrom(model)
    _widen_graph(made.graph)
    for function in made.functions:
        _widen_nodes(function.node)
        _widen_infos(function.value_info)
    return made


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen(tensor)
    for sparse in graph.sparse_initializer:
        _widen(sparse.values)
    for infos in (graph.input, graph.output, graph.value_info):
        _widen_infos(infos)
    _widen_nodes(graph.node)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type not in HALVES:
        return
    array = values(tensor).astype(np.float32)
    made = numpy_helper.from_array(array, tensor.name)
    made.doc_string = tensor.doc_string
    tensor.CopyFrom(made)


def _widen_infos(infos: Iterable[ValueInfoProto]) -> None:
    for info in infos:
        _widen_type(info.type)


def _widen_type(kind: TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which in {"tensor_type", "sparse_tensor_type"}:
        inner = getattr(kind, which)
        if inner.elem_type in HALVES:
            inner.elem_type = TensorProto.FLOAT
    elif which in {"sequence_type", "optional_type"}:
        _widen_type(getattr(kind, which).elem_type)
    elif which == "map_type":
        _widen_type(kind.map_type.value_type)


def _widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _widen_attribute(attribute)


def _widen_attribute(attribute: AttributeProto) -> None:
    if attribute.name in TYPE_ATTRIBUTES and attribute.i in HALVES:
        attribute.i = TensorProto.FLOAT
    if attribute.HasField("t"):
        _widen(attribute.t)
    for tensor in attribute.tensors:
        _widen(tensor)
    if attribute.HasField("g"):
        _widen_graph(attribute.g)
    for graph in attribute.graphs:
        _widen_graph(graph)


def without_quantizers(model: ModelProto) -> ModelProto:
    """The model with activations that saturate, but are never rounded; weights stay as they are.

    Operators on quantised numbers (QLinearConv) become their float selves between quantisers
    first. A quantiser goes where all that reads it, through operators that only move data, are
    dequantisers. What is scaled by the data (DynamicQuantizeLinear) stays.
    """
    made = ModelProto()
    made.CopyFrom(model)
    opset = max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=1)
    if opset >= 13:  # from there on a dequantiser may have a scale for each channel
        nodes = [new for node in model.graph.node for new in _unfused(node)]
        del made.graph.node[:]
        made.graph.node.extend(nodes)
    _drop_pairs(made.graph)
    return made


# --- quantiser, carriers, dequantiser -----------------------------------------------------------


def _drop_pairs(graph: GraphProto) -> None:
    readers = _readers(graph)
    stored = {t.name: t for t in graph.initializer}
    replaced: dict[str, list[NodeProto]] = {}
    floats = set[str]()
    for node in graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        reached = list(_reached(node, readers))
        if all(n is not None and n.op_type in CARRIERS | {"DequantizeLinear"} for n in reached):
            found = [n for n in reached if n is not None]
            replaced[node.output[0]] = _saturated(node, stored)
            for last in (n for n in found if n.op_type == "DequantizeLinear"):
                replaced[last.output[0]] = [_node("Identity", last.input[:1], last.output[0])]
            floats |= {o for n in (node, *found) for o in n.output}
    nodes = [new for n in graph.node for new in replaced.get(_first(n), [n])]
    infos = [v for v in graph.value_info if v.name not in floats]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.value_info.extend(infos)


def _readers(graph: GraphProto) -> dict[str, list[NodeProto | None]]:
    """What reads each value; None for a use that must stay quantised."""
    readers: dict[str, list[NodeProto | None]] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            readers.setdefault(name, []).append(node if slot == 0 else None)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                for name in _names(inner):
                    readers.setdefault(name, []).append(None)
    for output in graph.output:
        readers.setdefault(output.name, []).append(None)
    return readers


def _names(graph: GraphProto) -> Iterator[str]:
    """Names that a subgraph reads."""
    yield from (o.name for o in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _names(inner)


def _reached(
    node: NodeProto, readers: dict[str, list[NodeProto | None]]
) -> Iterator[NodeProto | None]:
    """Nodes that a quantised value reaches, up to what is no carrier."""
    for name in node.output:
        for reader in readers.get(name, []):
            yield reader
            if reader is not None and reader.op_type in CARRIERS:
                yield from _reached(reader, readers)


def _saturated(node: NodeProto, stored: Mapping[str, TensorProto]) -> list[NodeProto]:
    """The bounds of a quantiser: exporters leave a Relu to them."""
    scale = stored.get(node.input[1])
    zero = stored.get(node.input[2]) if len(node.input) > 2 else None
    out = node.output[0]
    if scale is None or zero is None or np.prod(scale.dims) > 1 or zero.data_type not in RANGES:
        return [_node("Identity", node.input[:1], out)]
    width = float(values(scale).ravel()[0])
    at = float(values(zero).ravel()[0])
    low, high = ((end - at) * width for end in RANGES[zero.data_type])
    return [
        _number(low, f"{out}_low"),
        _number(high, f"{out}_high"),
        _node("Max", [node.input[0], f"{out}_low"], f"{out}_above"),
        _node("Min", [f"{out}_above", f"{out}_high"], out),
    ]


def _node(op: str, inputs: Iterable[str], output: str) -> NodeProto:
    return helper.make_node(op, list(inputs), [output], name=output)


def _number(value: float, name: str) -> NodeProto:
    tensor = numpy_helper.from_array(np.array(value, np.float32), name)
    return helper.make_node("Constant", [], [name], name=name, value=tensor)


def _first(node: NodeProto) -> str:
    return node.output[0] if node.output else ""


# --- operators on quantised numbers -------------------------------------------------------------


def _unfused(node: NodeProto) -> list[NodeProto]:
    """A dequantiser for each operand, the float operator, a quantiser."""
    if node.op_type not in FUSED or _attribute(node, "channels_last"):
        return [node]
    op, operands, (scale, zero), bias = FUSED[node.op_type]
    given = [*node.input, *[""] * 9]
    out, turned = node.output[0], _attribute(node, "transB")
    axis = {"Conv": 0, "MatMul": -1, "Gemm": 0 if turned else 1}.get(op, 0)
    nodes, inputs = [], []
    for slots in operands:
        inputs.append(f"{out}_{slots[0]}")
        nodes.append(_node("DequantizeLinear", [given[s] for s in slots], inputs[-1]))
        if slots[0] == 3:
            nodes[-1].attribute.append(helper.make_attribute("axis", axis))
    if bias >= 0 and given[bias]:
        inputs.append(f"{out}_bias")
        nodes += [
            _node("Mul", [given[1], given[4]], f"{out}_step"),
            _node("Cast", [given[bias]], f"{out}_steps"),
            _node("Mul", [f"{out}_steps", f"{out}_step"], inputs[-1]),
        ]
        nodes[-2].attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    made = _node(op, inputs, f"{out}_float" if given[scale] else out)
    made.attribute.extend(a for a in node.attribute if a.name != "channels_last")
    if op == "Gemm" and (alpha := _attribute(node, "alpha")) is not None:
        made.attribute.append(helper.make_attribute("beta", float(alpha)))
    nodes.append(made)
    if given[scale]:
        nodes.append(_node("QuantizeLinear", [made.output[0], given[scale], given[zero]], out))
    return nodes


def _attribute(node: NodeProto, name: str) -> Any:
    found = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return found[0] if found else None
