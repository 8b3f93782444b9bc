"""The form a model is worked on in: no functions, constants as initializers, nothing idle."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    defs,
    helper,
    inliner,
    numpy_helper,
    reference,
    shape_inference,
)

from onnxprune.errors import ModelError, PruneError
from onnxprune.graph import (
    BITS,
    Model,
    Node,
    bodies,
    free_names,
    needed_bytes,
    plain_domain,
)
from onnxprune.storage import copy_fields, without_weights

# A result above this is folded only if it is hardly larger than what it is made of.
LARGE_BYTES = 2**20
# A weight of this size that others read as well stays one weight: its Transpose is not folded.
SHARED_BYTES = 4096
# Larger initializers say nothing to shape inference but their dims.
SHAPE_BYTES = 1024

_VALUES: dict[str, type[np.generic]] = {"value_float": np.float32, "value_floats": np.float32}
_VALUES |= {"value_int": np.int64, "value_ints": np.int64}
_MOVES = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten Cast".split())
# Their results are no larger than their inputs, whatever inference can say about them.
_DATA_SIZED = frozenset("Compress NonZero Unique".split())
# A quantised weight stays quantised.
_QUANTISERS = frozenset("DequantizeLinear DynamicQuantizeLinear QuantizeLinear".split())


@dataclass
class _Work:
    """A model being rewritten; protos are shared with the source until they change.

    Args:
        weights: constants by value name; the tensor itself may be named otherwise.
    """

    source: ModelProto
    nodes: list[NodeProto]
    weights: dict[str, TensorProto]
    overridable: frozenset[str]

    @property
    def outputs(self) -> set[str]:
        return {info.name for info in self.source.graph.output}

    @property
    def opset(self) -> int:
        return Model(self.source).opset

    def captured(self) -> set[str]:
        return {n for node in self.nodes for body in bodies(node) for n in free_names(body)}

    def constants(self) -> set[str]:
        return self.weights.keys() - self.overridable

    def read(self, nodes: Iterable[NodeProto]) -> set[str]:
        """Values that nodes, their bodies or the caller read."""
        found = {name for node in nodes for name in node.input} | self.outputs
        return found.union(*(free_names(body) for node in nodes for body in bodies(node)))


def normalize(model: Model) -> Model:
    """A model that computes the same, in the form that the flow follows.

    Local functions are inlined, nodes sorted, Constants made initializers, Identity and idle
    Dropout removed, constant parts folded, and value_info inferred anew. The interface stays,
    and so does the name of every value that is still there.

    Raises: ModelError: the graph has a cycle, or a function cannot be inlined.
    """
    source = _inlined(model.proto) if model.proto.functions else model.proto
    weights = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    work = _Work(source, sort_nodes(source.graph.node), weights, model.overridable)
    _lift_constants(work)
    _drop_identities(work)
    while _fold(work):
        pass  # what was folded may give sizes to what was not
    return Model(_assemble(work, model.proto), model.folder)


def _inlined(proto: ModelProto) -> ModelProto:
    """The model without its local functions; weights are stubs."""
    light = without_weights(proto, _stub)
    try:
        made = inliner.inline_local_functions(light)
        if made.functions:  # written for another opset
            made = inliner.inline_local_functions(light, convert_version=True)
    except Exception as error:  # the C++ library's own
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error
    names = {node.output[0]: node.name for node in proto.graph.node if node.output}
    for node in made.graph.node:
        key = next((name for name in node.output if name), "")
        node.name = node.name or names.get(key) or key
    return made


def _stub(tensor: TensorProto) -> TensorProto:
    """Type and shape of a weight; small ones whole."""
    if needed_bytes(tensor.name, tensor) <= SHAPE_BYTES:
        return tensor
    stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="elsewhere")
    return stub


def sort_nodes(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes after what they read; in the given order where that does not matter.

    Raises: ModelError: there is a cycle.
    """
    made_by = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    waits: list[int] = []
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        read = set(node.input).union(*(free_names(body) for body in bodies(node)))
        sources = {made_by[name] for name in read if name in made_by}
        waits.append(len(sources))
        for source in sources:
            readers.setdefault(source, []).append(i)
    ready = [i for i, count in enumerate(waits) if count == 0]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waits[reader] -= 1
            if waits[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = nodes[next(i for i, count in enumerate(waits) if count)]
        raise ModelError("the graph has a cycle", where=f"node `{stuck.name}` ({stuck.op_type})")
    return [nodes[i] for i in order]


def _lift_constants(work: _Work) -> None:
    """Make initializers of Constant nodes."""
    kept, outputs = [], work.outputs
    for node in work.nodes:
        tensor = _constant(node)
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
        else:
            work.weights[node.output[0]] = tensor
    work.nodes = kept


def _constant(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds; None if that is no tensor."""
    if node.op_type != "Constant" or plain_domain(node.domain) or len(node.attribute) != 1:
        return None
    held: AttributeProto = node.attribute[0]
    if held.name == "value":
        return held.t if held.HasField("t") else None
    value = helper.get_attribute_value(held)
    if held.name in _VALUES:
        return numpy_helper.from_array(np.array(value, _VALUES[held.name]))
    if held.name in ("value_string", "value_strings"):
        texts = [value] if held.name == "value_string" else list(value)
        dims = [] if held.name == "value_string" else [len(texts)]
        return TensorProto(data_type=TensorProto.STRING, dims=dims, string_data=texts)
    return None


def _drop_identities(work: _Work) -> None:
    """Let readers read what an Identity or an idle Dropout reads."""
    captured, outputs = work.captured(), work.outputs
    read = work.read(work.nodes)
    made = {name for node in work.nodes for name in node.output}
    stands_for: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for original in work.nodes:
        node = _rewired(original, stands_for, {})
        if not _is_idle(work, node, read):
            kept.append(node)
            continue
        source, target = node.input[0], node.output[0]
        if target not in outputs and target not in captured:
            stands_for[target] = source
        elif target in outputs and source in made - outputs - captured - renamed.keys():
            renamed[source] = target
        else:
            kept.append(node)
    work.nodes = [_rewired(node, renamed, renamed) for node in kept]


def _is_idle(work: _Work, node: NodeProto, read: set[str]) -> bool:
    if plain_domain(node.domain) or not node.input or not node.input[0] or not node.output[0]:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(mask in read for mask in node.output[1:] if mask):
        return False
    if work.opset < 7:
        return bool(Node(node, -1).attr("is_test", 0))
    mode = node.input[2] if len(node.input) > 2 else ""
    if mode and mode not in work.constants():
        return False
    return not mode or not numpy_helper.to_array(work.weights[mode]).any()


def _rewired(node: NodeProto, inputs: dict[str, str], outputs: dict[str, str]) -> NodeProto:
    """The node with other names; a copy if it has any of them."""
    if not any(n in inputs for n in node.input) and not any(n in outputs for n in node.output):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    made.input[:] = [inputs.get(name, name) for name in node.input]
    made.output[:] = [outputs.get(name, name) for name in node.output]
    return made


def _fold(work: _Work) -> bool:
    """Compute what depends on constants alone; tells whether there was anything."""
    chosen = _foldable(work)
    types = _types(work, chosen) if chosen else {}
    chosen = _unshared(work, _bounded(work, chosen, types))
    if not chosen:
        return False
    done, values = _evaluate(work, chosen, types)
    gone = {id(node) for node in done}
    work.nodes = [node for node in work.nodes if id(node) not in gone]
    read = work.read(work.nodes)
    work.weights |= {name: tensor for name, tensor in values.items() if name in read}
    return bool(done)


def _foldable(work: _Work) -> list[NodeProto]:
    """Nodes that read constants only, may be run now, and that no output needs."""
    known, opset, outputs = work.constants(), work.opset, work.outputs
    chosen = []
    for node in work.nodes:
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


def _types(work: _Work, nodes: Sequence[NodeProto]) -> dict[str, ValueInfoProto]:
    """What inference can tell of the results."""
    model = _constant_model(work, work.weights, nodes, [], light=True)
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # the C++ library's own; then nothing is known
        return {}
    return {info.name: info for info in inferred.graph.value_info}


def _constant_model(
    work: _Work,
    weights: Mapping[str, TensorProto],
    nodes: Sequence[NodeProto],
    outputs: Iterable[ValueInfoProto],
    *,
    light: bool = False,
) -> ModelProto:
    """Nodes that read constants only, as a model without inputs."""
    model = ModelProto(ir_version=max(work.source.ir_version, 4))
    model.opset_import.add(domain="", version=work.opset)
    graph = model.graph
    graph.name = "constants"
    graph.node.extend(nodes)
    graph.output.extend(outputs)
    for name in dict.fromkeys(name for node in nodes for name in node.input):
        if name in weights:
            tensor = graph.initializer.add()
            tensor.CopyFrom(_stub(weights[name]) if light else weights[name])
            tensor.name = name
    return model


def _bounded(
    work: _Work, nodes: Sequence[NodeProto], types: Mapping[str, ValueInfoProto]
) -> list[NodeProto]:
    """Without the nodes whose results are of unknown size or far larger than what they read."""
    sizes = {n: needed_bytes(n, work.weights[n]) for n in _inputs(nodes) if n in work.weights}
    chosen = []
    for node in nodes:
        read = [name for name in node.input if name]
        if any(name not in sizes for name in read):
            continue
        given = sum(sizes[name] for name in set(read))
        made = {name: _size(types.get(name)) for name in node.output if name}
        if node.op_type in _DATA_SIZED and given <= LARGE_BYTES:
            chosen.append(node)
        elif all(n is not None and n <= max(LARGE_BYTES, 2 * given) for n in made.values()):
            chosen.append(node)
            sizes |= {name: size or 0 for name, size in made.items()}
    return chosen


def _inputs(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input if name}


def _size(info: ValueInfoProto | None) -> int | None:
    """Bytes of a value, if its shape is known."""
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    if not all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims):
        return None
    elements: int = math.prod(d.dim_value for d in dims)
    return elements * BITS.get(info.type.tensor_type.elem_type, 64) // 8


def _unshared(work: _Work, nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Without what would make a second copy of a weight that others read too."""
    chosen = {id(node): node for node in nodes}
    constants = work.constants()
    while True:
        outside = work.read(n for n in work.nodes if id(n) not in chosen)
        known = constants | {name for node in chosen.values() for name in node.output}
        left = [
            key
            for key, node in chosen.items()
            if not known.issuperset(name for name in node.input if name)
            or (node.op_type in _MOVES and _is_heavy(work, node.input[0], outside))
        ]
        if not left:
            return list(chosen.values())
        for key in left:
            del chosen[key]


def _is_heavy(work: _Work, name: str, outside: set[str]) -> bool:
    return (
        name in outside
        and name in work.weights
        and needed_bytes(name, work.weights[name]) >= SHARED_BYTES
    )


def _evaluate(
    work: _Work, nodes: Sequence[NodeProto], types: Mapping[str, ValueInfoProto]
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """The nodes that could be run, and the results that others read."""
    from onnxprune.runtime import session

    chosen = {id(node) for node in nodes}
    read = work.read(node for node in work.nodes if id(node) not in chosen)
    wanted = [name for node in nodes for name in node.output if name in read]
    if not wanted:
        return list(nodes), {}
    infos = [types.get(name) or ValueInfoProto(name=name) for name in wanted]
    try:
        model = _constant_model(work, work.weights, nodes, infos)
        arrays = session(model, threads=1, optimize=False).run({}, wanted)
    except PruneError:  # a type or operator without a kernel
        return _evaluate_apart(work, nodes, types)
    made = zip(wanted, arrays, strict=True)
    return list(nodes), {n: numpy_helper.from_array(np.asarray(a), n) for n, a in made}


def _evaluate_apart(
    work: _Work, nodes: Sequence[NodeProto], types: Mapping[str, ValueInfoProto]
) -> tuple[list[NodeProto], dict[str, TensorProto]]:
    """The same, node by node, by ONNX's reference implementation."""
    weights, done = dict(work.weights), []
    for node in nodes:
        if not weights.keys() >= _inputs([node]):
            continue
        names = [name for name in node.output if name]
        infos = [types.get(name) or ValueInfoProto(name=name) for name in names]
        model = _constant_model(work, weights, [node], infos)
        try:
            arrays = reference.ReferenceEvaluator(model).run(None, {})
            made = [numpy_helper.from_array(np.asarray(a)) for a in arrays]
        except Exception:  # whatever an operator's Python raises: the node stays
            continue
        kinds = [i.type.tensor_type.elem_type for i in infos]
        if all(kind in (0, t.data_type) for kind, t in zip(kinds, made, strict=True)):
            weights |= zip(names, made, strict=True)
            done.append(node)
    return done, {name: t for name, t in weights.items() if name not in work.weights}


def _assemble(work: _Work, origin: ModelProto) -> ModelProto:
    """The rewritten model, in a proto of its own."""
    made = ModelProto()
    copy_fields(origin, made, {"graph", "functions", "opset_import"})
    made.functions.extend(work.source.functions)
    made.opset_import.extend(work.source.opset_import)
    copy_fields(origin.graph, made.graph, {"node", "initializer", "input", "value_info"})
    made.graph.node.extend(work.nodes)
    old = {tensor.name for tensor in origin.graph.initializer}
    idle = old if origin.training_info else old - _read_in(origin)
    kept = work.read(work.nodes) | idle | work.overridable
    made.graph.input.extend(i for i in origin.graph.input if i.name not in old or i.name in kept)
    for name, tensor in work.weights.items():
        if name not in kept:
            continue
        added = made.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = name
        if origin.ir_version < 4 and name not in old:  # there every initializer is listed
            info = helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            made.graph.input.append(info)
    made.graph.value_info.extend(_inferred(made))
    return made


def _read_in(origin: ModelProto) -> set[str]:
    nodes = list(origin.graph.node)
    return _Work(origin, nodes, {}, frozenset()).read(nodes)


def _inferred(proto: ModelProto) -> Sequence[ValueInfoProto]:
    """Types and shapes of the values between; none where inference fails."""
    try:
        inferred = shape_inference.infer_shapes(without_weights(proto, _stub))
    except Exception:  # the C++ library's own
        return []
    return list(inferred.graph.value_info)
