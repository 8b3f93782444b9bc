"""Parts of a graph that change nothing: branches that end in a constant, nodes nobody reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, helper

from onnxprune.cleanup.cleaning import Edit
from onnxprune.cleanup.knowledge import Knowledge
from onnxprune.model.graph import Model, Node, bodies, free_names

# Of these, an operand that is 0 (or 1) leaves the other one as it is.
NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
# Operators that may read a stored constant in the place of a branch.
JOINS = frozenset({*NEUTRAL, "Max", "Min", "Sum", "Where", "Pow", "PRelu"})


def without_idle_branches(known: Knowledge) -> Model:
    """A model without branches that are constant and nodes that nothing reads.

    Returns: the very same model where there are none.
    """
    work = _Joins(known, Edit(known.model))
    for node in known.model.nodes:
        work.visit(node)
    kept = _needed(known.model, work.edit.nodes)
    if len(kept) == len(known.model.nodes) and all(
        new is old.proto for new, old in zip(kept, known.model.nodes, strict=True)
    ):
        return known.model
    work.edit.nodes = kept
    return work.edit.model()


@dataclass(eq=False)
class _Joins:
    """Joins that are simplified one after the other."""

    known: Knowledge
    edit: Edit
    alias: dict[str, str] = field(default_factory=dict)
    """Results that are one of the operands unchanged."""

    def visit(self, node: Node) -> None:
        """Keep a node, reading constants in the place of branches, or leave it out."""
        slot = self._branch(node)
        if slot is not None and self._is_neutral(node, slot):
            source = node.inputs[1 - slot]
            self.alias[node.outputs[0]] = self.alias.get(source, source)
            return
        renamed = [self.alias.get(n, n) for n in node.inputs]
        if slot is not None:
            value = self.known.values[node.inputs[slot]].factor
            dtype = self.known.shapes[0].dtype[node.inputs[slot]]
            name = self.edit.unused(f"{node.inputs[slot]}_constant")
            self.edit.arrays[name] = value.astype(helper.tensor_dtype_to_np_dtype(dtype))
            renamed[slot] = name
        proto = node.proto if renamed == list(node.inputs) else self.edit.copy(node)
        if proto is not node.proto:
            proto.input[:] = renamed
        self.edit.nodes.append(proto)

    def _is_neutral(self, node: Node, slot: int) -> bool:
        value = self.known.values[node.inputs[slot]].factor
        first = slot == 0 and node.op in {"Sub", "Div"}
        inside = node.outputs[0] not in self.known.leaving
        return inside and not first and bool((value == NEUTRAL.get(node.op, np.nan)).all())

    def _branch(self, node: Node) -> int | None:
        """The operand of a join that is computed, and constant all the same."""
        if node.domain or node.op not in JOINS:
            return None
        return next((i for i in range(len(node.inputs)) if _is_branch(self.known, node, i)), None)


def _is_branch(known: Knowledge, node: Node, slot: int) -> bool:
    """True for a computed constant whose join has the shape of its other operands."""
    name = node.inputs[slot]
    value = known.values.get(name)
    if value is None or not value.is_constant:
        return False
    for shapes in known.shapes:
        rest = [shapes.shape[n] for i, n in enumerate(node.inputs) if n and i != slot]
        if not rest or np.broadcast_shapes(*rest) != shapes.shape[node.outputs[0]]:
            return False
    return True


def _needed(model: Model, nodes: list[NodeProto]) -> list[NodeProto]:
    """Nodes from which an output can be reached."""
    read = {info.name for info in model.proto.graph.output}
    kept = []
    for node in reversed(nodes):
        if any(name in read for name in node.output if name):
            kept.append(node)
            read.update(node.input)
            read.update(name for body in bodies(node) for name in free_names(body))
    return kept[::-1]
