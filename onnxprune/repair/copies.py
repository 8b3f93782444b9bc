"""Weights that several nodes read: for repair each reader has its own, and what stays is one again.

A tied head cannot be refit while the table of the input is the same weight.
"""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from onnxprune.cleanup.cleaning import with_weights
from onnxprune.cutting.assemble import assemble
from onnxprune.identity.flow import FLOATS
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model
from onnxprune.shape.shapes import Array

# All copies together, as a share of the model's elements. A small alphabet's head wins by its own
# weight (accuracy at half the MACs 0.52 for 0.50); a vocabulary's is most of the model, and
# twins share everything: they stay one.
MOST = 0.05


def copied(cut: Model, original: Model) -> list[Slot]:
    """Uses of shared weights that may have a copy; none where the model would grow too much."""
    found, more = _shared(cut)
    room = min(MOST * elements(cut), elements(original) - elements(cut))
    return found if more <= room else []


def uncoupled(original: Model) -> Model:
    """A model as it is repaired once enough of it went: with a copy for each of these uses."""
    found, more = _shared(original)
    return apart(original, found) if more <= MOST * elements(original) else original


def _shared(model: Model) -> tuple[list[Slot], int]:
    """Uses of weights beside the first, and how many numbers copies for them would hold."""
    found, more = list[Slot](), 0
    for name, tensor in model.initializers.items():
        readers = model.consumers.get(name, ())
        is_weight = tensor.data_type in FLOATS and len(tensor.dims) > 1
        held = name in model.captured or name in model.overridable or name in model.output_names
        if is_weight and not held and len(readers) > 1:
            found += [(node.key, slot) for node, slot in readers[1:]]
            more += (len(readers) - 1) * prod(tensor.dims)
    return found, more


def elements(model: Model) -> int:
    """Numbers that a model stores."""
    return sum(prod(tensor.dims) for tensor in model.initializers.values())


def apart(model: Model, slots: list[Slot]) -> Model:
    """A model with a copy of the weight for each of these uses."""
    if not slots:
        return model
    wanted, found = {*slots}, dict[Slot, Array]()
    for node in model.nodes:
        for slot, name in enumerate(node.inputs):
            if (node.key, slot) in wanted and name in model.initializers:
                found[node.key, slot] = model.array(name)
    return with_weights(model, found)


def together(made: Model, tied: Model, copies: Model) -> Model:
    """The model with one weight again for all uses whose numbers are still those they shared.

    Args:
        tied, copies: the model before and after its weights were copied.
    """
    same = dict[str, list[str]]()
    for node, other in zip(tied.nodes, copies.nodes, strict=True):
        for name, copy in zip(node.inputs, other.inputs, strict=True):
            if copy != name and _is_same(made, copy, tied, name):
                same.setdefault(name, []).append(copy)
    back = {
        copy: name if _is_same(made, name, tied, name) else found[0]
        for name, found in same.items()
        for copy in found
    }
    nodes = []
    for node in made.nodes:
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        for slot, name in enumerate(node.inputs):
            proto.input[slot] = back.get(name, name)
        nodes.append(proto)
    return assemble(made, nodes, {}, {}) if back else made


def _is_same(made: Model, copy: str, tied: Model, name: str) -> bool:
    """True where a weight is still there, and what it was."""
    if copy not in made.initializers:
        return False
    ours, theirs = made.array(copy), tied.array(name)
    return ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
