"""Computes what depends on constants alone, where the result is worth storing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    defs,
    numpy_helper,
    reference,
    shape_inference,
)

from onnxprune.errors import PruneError
from onnxprune.model.graph import BITS, Node, bodies, needed_bytes, plain_domain
from onnxprune.model.store import Array, values
from onnxprune.normal.draft import SHAPE_BYTES, Draft, stub
from onnxprune.normal.origin import Origin, trace

# A value on the way to a result may be so large, or twice what it is made of.
LARGE_BYTES = 2**20
# A stored result too: a mask or table made by ConstantOfShape, Tile, Expand stays an operator.
STORED_BYTES = 2**16
# A weight of this size that others read as well stays one weight: its Transpose is not folded.
SHARED_BYTES = 4096

_MOVES = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten Cast".split())
# Their results are no larger than their inputs, whatever inference can say about them.
_DATA_SIZED = frozenset("Compress NonZero Unique".split())
# A quantised weight stays quantised.
_QUANTISERS = frozenset("DequantizeLinear DynamicQuantizeLinear QuantizeLinear".split())

Types = Mapping[str, ValueInfoProto]


def fold(draft: Draft) -> bool:
    """Replace nodes that read constants only by their results; tells whether there were any."""
    chosen = _foldable(draft)
    types = _types(draft, chosen) if chosen else {}
    chosen = _worthwhile(draft, _Sizes(draft, types).bounded(chosen), types)
    if not chosen:
        return False
    done, values = _evaluate(draft, chosen, types)
    gone = {id(node) for node in done}
    draft.nodes = [node for node in draft.nodes if id(node) not in gone]
    read = draft.read(draft.nodes)
    kept = {name: tensor for name, tensor in values.items() if name in read}
    draft.origins |= _origins(draft, done, types, kept)
    draft.weights |= kept
    return bool(done)


def _foldable(draft: Draft) -> list[NodeProto]:
    """Nodes that read constants only, may be run now, and that no output needs."""
    known, opset, outputs = draft.constants(), draft.opset, draft.outputs
    chosen = []
    for node in draft.nodes:
        read = [name for name in node.input if name]
        if not read or not known.issuperset(read) or not outputs.isdisjoint(node.output):
            continue
        if plain_domain(node.domain) or any(True for _ in bodies(node)):
            continue
        if _is_deterministic(node.op_type, opset):
            chosen.append(node)
            known.update(node.output)
    return chosen


@lru_cache(maxsize=1024)
def _is_deterministic(op: str, opset: int) -> bool:
    if op in _QUANTISERS or op.startswith("Random") or op in ("Bernoulli", "Multinomial"):
        return False
    try:
        schema = defs.get_schema(op, opset, "")
    except defs.SchemaError:
        return False
    return op != "Dropout" and not any(
        text.startswith(("seq(", "optional(")) for out in schema.outputs for text in out.types
    )


def _types(draft: Draft, nodes: Sequence[NodeProto]) -> Types:
    """What inference can tell of the results."""
    model = _constant_model(draft, draft.weights, nodes, [], light=True)
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # the C++ library's own; then nothing is known
        return {}
    return {info.name: info for info in inferred.graph.value_info}


def _constant_model(
    draft: Draft,
    weights: Mapping[str, TensorProto],
    nodes: Sequence[NodeProto],
    outputs: Iterable[ValueInfoProto],
    *,
    light: bool = False,
) -> ModelProto:
    """Nodes that read constants only, as a model without inputs."""
    model = ModelProto(ir_version=max(draft.source.ir_version, 4))
    model.opset_import.add(domain="", version=draft.opset)
    graph = model.graph
    graph.name = "constants"
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    for name in dict.fromkeys(name for node in nodes for name in node.input):
        if name in weights:
            tensor = graph.initializer.add()
            tensor.CopyFrom(stub(weights[name]) if light else weights[name])
            tensor.name = name
    return model


class _Sizes:
    """Bytes of constants, and of the weights that they are made of."""

    def __init__(self, draft: Draft, types: Types) -> None:
        self.draft, self.types = draft, types
        self.of: dict[str, int] = {}
        self.roots: dict[str, frozenset[str]] = {}

    def bounded(self, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        """Without nodes whose results are of unknown size or far larger than what they read.

        What is made out of little stays within `LARGE_BYTES`; a result that is stored because
        others read it, within `STORED_BYTES`.
        """
        chosen = [node for node in nodes if self._measure(node)]
        inside = {id(node) for node in chosen}
        while True:
            read = self.draft.read(n for n in self.draft.nodes if id(n) not in inside)
            large = {id(n) for n in chosen if id(n) in inside and self._is_blown_up(n, read)}
            if not large:
                return [node for node in chosen if id(node) in inside]
            inside -= large

    def _measure(self, node: NodeProto) -> bool:
        """Note the sizes of a node's results; tells whether they may be computed at all."""
        read = {name for name in node.input if name}
        for name in read & self.draft.weights.keys() - self.of.keys():
            self.of[name] = needed_bytes(name, self.draft.weights[name])
            self.roots[name] = frozenset((name,))
        if not read <= self.of.keys():
            return False
        roots = frozenset[str]().union(*(self.roots[name] for name in read))
        given = sum(self.of[name] for name in roots)
        made = {name: _size(self.types.get(name)) for name in node.output if name}
        is_small = node.op_type in _DATA_SIZED and given <= LARGE_BYTES
        known = {name: size for name, size in made.items() if size is not None}
        if is_small and len(known) < len(made):
            return True  # what reads them waits until they are there
        if len(known) < len(made) or max(known.values(), default=0) > max(LARGE_BYTES, 2 * given):
            return False
        self.of |= known
        self.roots |= dict.fromkeys(known, roots)
        return True

    def _is_blown_up(self, node: NodeProto, read: set[str]) -> bool:
        stored = [name for name in node.output if name in read and name in self.of]
        return any(
            self.of[name] > max(STORED_BYTES, 2 * sum(self.of[r] for r in self.roots[name]))
            for name in stored
        )


def _size(info: ValueInfoProto | None) -> int | None:
    """Bytes of a value, if its shape is known."""
    shape = _shape(info)
    if info is None or shape is None:
        return None
    return math.prod(shape) * BITS.get(info.type.tensor_type.elem_type, 64) // 8


def _shape(info: ValueInfoProto | None) -> tuple[int, ...] | None:
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    if not all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims):
        return None
    return tuple(d.dim_value for d in dims)


def _worthwhile(draft: Draft, nodes: Sequence[NodeProto], types: Types) -> list[NodeProto]:
    """Without what would make a second copy of a weight that others read too."""
    chosen = {id(node): node for node in nodes}
    constants = draft.constants()
    while True:
        outside = draft.read(n for n in draft.nodes if id(n) not in chosen)
        known = constants | {name for node in chosen.values() for name in node.output}
        left = [
            key
            for key, node in chosen.items()
            if not known.issuperset(name for name in node.input if name)
            or (node.op_type in _MOVES and _is_heavy(draft, node.input[0], outside))
        ]
        if not left:
            return list(chosen.values())
        for key in left:
            del chosen[key]


def _is_heavy(draft: Draft, name: str, outside: set[str]) -> bool:
    return (
        name in outside
        and name in draft.weights
        and needed_bytes(name, draft.weights[name]) >= SHARED_BYTES
    )


def _evaluate(
    draft: Draft, nodes: Sequence[NodeProto], types: Types
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """The nodes that could be run, and the results that others read."""
    from onnxprune.backend.runtime import session

    chosen = {id(node) for node in nodes}
    read = draft.read(node for node in draft.nodes if id(node) not in chosen)
    wanted = [name for node in nodes for name in node.output if name in read]
    if not wanted:
        return list(nodes), {}
    infos = [types.get(name) or ValueInfoProto(name=name) for name in wanted]
    try:
        model = _constant_model(draft, draft.weights, nodes, infos)
        arrays = session(model, threads=1, optimize=False).run({}, wanted)
        made = dict(zip(wanted, map(_tensor, arrays, infos), strict=True))
    except (PruneError, TypeError):  # a type or operator without a kernel
        return _evaluate_apart(draft, nodes, types)
    return list(nodes), made


def _tensor(array: Array, info: ValueInfoProto) -> TensorProto:
    """A result as a tensor.

    Raises: TypeError: it is of another type than inference says: numpy has none for it.
    """
    made = numpy_helper.from_array(np.asarray(array), info.name)
    kind = info.type.tensor_type.elem_type
    if kind not in (TensorProto.UNDEFINED, made.data_type):
        raise TypeError(f"`{info.name}` came out as another type")
    return made


def _evaluate_apart(
    draft: Draft, nodes: Sequence[NodeProto], types: Types
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """The same, node by node, by ONNX's reference implementation."""
    weights, done = dict(draft.weights), []
    for node in nodes:
        if not weights.keys() >= {name for name in node.input if name}:
            continue
        names = [name for name in node.output if name]
        infos = [types.get(name) or ValueInfoProto(name=name) for name in names]
        model = _constant_model(draft, weights, [node], infos)
        try:
            arrays = reference.ReferenceEvaluator(model).run(None, {})
            made = dict(zip(names, map(_tensor, arrays, infos), strict=True))
        except Exception:  # whatever an operator's Python raises: the node stays
            continue
        weights |= made
        done.append(node)
    return done, {name: t for name, t in weights.items() if name not in draft.weights}


def _origins(
    draft: Draft, nodes: Sequence[NodeProto], types: Types, kept: Mapping[str, TensorProto]
) -> dict[str, Origin]:
    """Where the results come from."""
    found: dict[str, Origin] = {}

    def shape(name: str) -> tuple[int, ...] | None:
        tensor = kept.get(name) or draft.weights.get(name)
        return _shape(types.get(name)) if tensor is None else tuple(tensor.dims)

    def numbers(name: str) -> list[int] | None:
        tensor = kept.get(name) or draft.weights.get(name)
        if tensor is None or needed_bytes(name, tensor) > SHAPE_BYTES:
            return None
        return [int(n) for n in values(tensor).ravel()]

    for proto in nodes:
        node = Node(proto, -1)
        names = [name for name in node.inputs if name]
        origins = [found.get(name) or draft.origin(name) for name in names]
        made = trace(node, origins, [shape(name) for name in names], numbers, shape(node.key))
        found |= dict.fromkeys((name for name in node.outputs if name), made)
    return {name: origin for name, origin in found.items() if name in kept}
