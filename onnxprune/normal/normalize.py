"""The form a model is worked on in: no functions, constants as initializers, nothing idle."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
)

from onnxprune.errors import ModelError
from onnxprune.model.graph import Model, Node, bodies, free_names, plain_domain
from onnxprune.model.storage import copy_fields, without_weights
from onnxprune.model.store import values
from onnxprune.normal.draft import Draft, stub
from onnxprune.normal.fold import fold
from onnxprune.normal.origin import Origin

_VALUES: dict[str, type[np.generic]] = {"value_float": np.float32, "value_floats": np.float32}
_VALUES |= {"value_int": np.int64, "value_ints": np.int64}


@dataclass(frozen=True, eq=False)
class Normalized:
    """A normalised model, and where its weights come from."""

    model: Model
    origins: Mapping[str, Origin]
    """For each initializer: its sources in the file, and the steps from them."""


def normalize(model: Model) -> Model:
    """A model that computes the same, in the form that the flow follows.

    Local functions are inlined, nodes sorted, Constants made initializers, Identity and idle
    Dropout removed, constant parts folded, and value_info inferred anew. The interface stays,
    and so does the name of every value that is still there.

    Raises: ModelError: the graph has a cycle, or a function cannot be inlined.
    """
    return normalize_with_origins(model).model


def normalize_with_origins(model: Model) -> Normalized:
    """The same, with what each weight was made of.

    Raises: ModelError: as `normalize`.
    """
    draft = _draft(model)
    _drop_identities(draft)
    while fold(draft):
        pass  # what was folded may give sizes to what was not
    made = Model(_assemble(draft, model.proto), model.folder)
    return Normalized(made, {name: draft.origin(name) for name in made.initializers})


def stored_weights(model: Model) -> dict[str, TensorProto]:
    """What origins name as sources: initializers and outputs of Constant nodes.

    Raises: ModelError: as `normalize`.
    """
    return _draft(model).weights


def _draft(model: Model) -> Draft:
    source = _inlined(model.proto) if model.proto.functions else model.proto
    weights = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    draft = Draft(source, sort_nodes(source.graph.node), weights, model.overridable)
    _lift_constants(draft)
    return draft


def _inlined(proto: ModelProto) -> ModelProto:
    """The model without its local functions; weights are stubs."""
    light = without_weights(proto, stub)
    try:
        made = inliner.inline_local_functions(light)
        if made.functions:  # written for another opset
            made = inliner.inline_local_functions(_typed(light), convert_version=True)
    except Exception as error:  # the C++ library's own
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error
    names = {node.output[0]: node.name for node in proto.graph.node if node.output}
    for node in made.graph.node:
        key = next((name for name in node.output if name), "")
        node.name = node.name or names.get(key) or key
    return made


def _typed(light: ModelProto) -> ModelProto:
    """With a type for every value: the version converter asks for those that functions read."""
    told = {info.name for info in (*light.graph.value_info, *light.graph.input)}
    light.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in light.graph.initializer
        if tensor.name not in told
    )
    return shape_inference.infer_shapes(light)


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


def _lift_constants(draft: Draft) -> None:
    """Make initializers of Constant nodes."""
    kept, outputs = [], draft.outputs
    for node in draft.nodes:
        tensor = _constant(node)
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
        else:
            draft.weights[node.output[0]] = tensor
    draft.nodes = kept


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


def _drop_identities(draft: Draft) -> None:
    """Let readers read what an Identity or an idle Dropout reads."""
    captured, outputs = draft.captured(), draft.outputs
    read = draft.read(draft.nodes)
    made = {name for node in draft.nodes for name in node.output}
    stands_for: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for original in draft.nodes:
        node = _rewired(original, stands_for, {})
        if not _is_idle(draft, node, read):
            kept.append(node)
            continue
        source, target = node.input[0], node.output[0]
        if target not in outputs and target not in captured:
            stands_for[target] = source
        elif target in outputs and source in made - outputs - captured - renamed.keys():
            renamed[source] = target
        else:
            kept.append(node)
    draft.nodes = [_rewired(node, renamed, renamed) for node in kept]


def _is_idle(draft: Draft, node: NodeProto, read: set[str]) -> bool:
    if plain_domain(node.domain) or not node.input or not node.input[0] or not node.output[0]:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(mask in read for mask in node.output[1:] if mask):
        return False
    if draft.opset < 7:
        return bool(Node(node, -1).attr("is_test", 0))
    mode = node.input[2] if len(node.input) > 2 else ""
    if mode and mode not in draft.constants():
        return False
    return not mode or not values(draft.weights[mode]).any()


def _rewired(node: NodeProto, inputs: dict[str, str], outputs: dict[str, str]) -> NodeProto:
    """The node with other names; a copy if it has any of them."""
    if not any(n in inputs for n in node.input) and not any(n in outputs for n in node.output):
        return node
    made = NodeProto()
    made.CopyFrom(node)
    made.input[:] = [inputs.get(name, name) for name in node.input]
    made.output[:] = [outputs.get(name, name) for name in node.output]
    return made


def _assemble(draft: Draft, origin: ModelProto) -> ModelProto:
    """The rewritten model, in a proto of its own."""
    made = ModelProto()
    copy_fields(origin, made, {"graph", "functions", "opset_import"})
    made.functions.extend(draft.source.functions)
    made.opset_import.extend(draft.source.opset_import)
    copy_fields(origin.graph, made.graph, {"node", "initializer", "input", "value_info"})
    made.graph.node.extend(draft.nodes)
    old = {tensor.name for tensor in origin.graph.initializer}
    idle = old if origin.training_info else old - _read_in(origin)
    kept = draft.read(draft.nodes) | idle | draft.overridable
    made.graph.input.extend(i for i in origin.graph.input if i.name not in old or i.name in kept)
    for name, tensor in draft.weights.items():
        if name not in kept:
            continue
        added = made.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = name
        if origin.ir_version < 4 and name not in old:  # there every initializer is listed
            info = helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            made.graph.input.append(info)
    made.graph.value_info.extend(_inferred(made, origin.graph.value_info))
    return made


def _read_in(origin: ModelProto) -> set[str]:
    nodes = list(origin.graph.node)
    return Draft(origin, nodes, {}, frozenset()).read(nodes)


def _inferred(proto: ModelProto, told: Sequence[ValueInfoProto]) -> list[ValueInfoProto]:
    """Types and shapes of the values between; none where inference fails.

    The mask oracle reads element types here. What the source told is believed only of operators
    that inference does not know: it may be stale.
    """
    light = without_weights(proto, stub)
    foreign = {n for node in proto.graph.node if plain_domain(node.domain) for n in node.output}
    light.graph.value_info.extend(info for info in told if info.name in foreign)
    try:
        inferred = shape_inference.infer_shapes(light)
    except Exception:  # the C++ library's own
        return []
    found = {info.name: info for info in inferred.graph.value_info}
    return [found[n] for node in proto.graph.node for n in node.output if n in found]
