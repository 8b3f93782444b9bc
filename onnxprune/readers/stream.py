"""Where a reader's output goes: the residual sum that it joins, or what bends its channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import Array, FloatArray
from onnxprune.readers.view import LinearView, View
from onnxprune.rules import load_rules
from onnxprune.shape.shapes import Shapes

# Nodes between a reader and the sum: a bias, a norm with stored statistics.
MOST_BETWEEN = 3
MOVES = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Identity Cast".split())
MOST_MOVES = 8
# A channel that a norm all but silences is of no use to aim with.
LEAST_SCALE = 1e-3
# Beside moves, these pass each channel as it is, up to a factor and a number added; those of two
# operands do where the other one is stored.
PASSED = MOVES | frozenset(
    "Neg Dropout Split BatchNormalization AveragePool GlobalAveragePool ReduceMean".split()
)
SCALED = frozenset("Add Sub Mul Div".split())
SUMS = frozenset("Add Sub Sum Mean".split())


@dataclass(frozen=True, eq=False)
class Stream:
    """total = scale * (what the reader gives) + shift + other, channel by channel."""

    total: str
    other: str
    """The operand that does not come from the reader."""
    axis: int
    """Channel axis."""
    scale: FloatArray
    """Shape (channels,) of the model it was found in."""
    shift: FloatArray

    def share(self, total: Array, other: Array) -> FloatArray:
        """What the reader must give for this total, beside this operand.

        Args:
            total, other: shape (positions, channels).
        """
        least = LEAST_SCALE * float(np.abs(self.scale).max())
        scale = np.where(np.abs(self.scale) < least, np.copysign(least, self.scale), self.scale)
        found: FloatArray = (total - other.astype(np.float64) - self.shift) / scale
        return found


def joined(model: Model, view: View) -> str:
    """The sum that a reader's output joins, whatever moves it on the way; empty for none."""
    name = view.node.outputs[0]
    for _ in range(MOST_MOVES):
        readers = [r for r in model.consumers.get(name, ()) if r[0].op != "Shape"]
        if len(readers) != 1 or name in model.captured or name in model.output_names:
            return ""
        node, slot = readers[0]
        stored = [n for i, n in enumerate(node.inputs) if i != slot and n in model.initializers]
        if node.op == "Add" and not stored:
            return node.outputs[0]
        if node.domain or not (node.op in MOVES or (node.op == "Add" and stored)):
            return ""
        name = node.outputs[0]
    return ""


def bends(model: Model, name: str, most: int = MOST_MOVES) -> bool:
    """True where all that reads a value takes each channel for itself, and not in proportion.

    Such are activations and products with other values: how far off one is shows beside that
    channel's own size. Sums over channels and residual sums are not.
    """
    readers = [node for node, _ in model.consumers.get(name, ()) if node.op != "Shape"]
    is_held = name in model.captured or name in model.output_names
    return bool(readers) and not is_held and all(_bends(model, n, name, most) for n in readers)


def _bends(model: Model, node: Node, name: str, most: int) -> bool:
    is_alone = all(n == name or n in model.initializers for n in node.inputs if n)
    is_scaled = node.op in SCALED and is_alone and node.inputs.count(name) == 1
    is_inverse = node.op == "Div" and node.inputs[0] != name
    if not node.domain and (node.op in PASSED or (is_scaled and not is_inverse)):
        return most > 0 and all(bends(model, out, most - 1) for out in node.outputs)
    rule = load_rules().find(node, model.opset)
    is_own = rule is not None and rule.family == "elementwise"
    return is_own and node.op not in SUMS


def stream(model: Model, shapes: Shapes, view: View) -> Stream | None:
    """The residual sum behind a reader; None where its output goes elsewhere."""
    if not isinstance(view, LinearView) or view.linear.groups > 1:
        return None
    name, axis = view.node.outputs[0], view.linear.out_axis
    channels = len(view.linear.bias)
    found = Stream("", "", axis, np.ones(channels), np.zeros(channels))
    for _ in range(MOST_BETWEEN):
        readers = model.consumers.get(name, ())
        if len(readers) != 1 or name in model.captured or name in model.output_names:
            return None
        (after, slot), shape = readers[0], shapes.shape.get(name)
        if not shape:
            return None
        moved = _through(model, after, slot, found, len(shape))
        if moved is None:
            other = after.inputs[1 - slot] if after.op == "Add" else ""
            joins = other in model.producer and shapes.shape.get(other) == shape
            return replace(found, total=after.outputs[0], other=other) if joins else None
        name, found = after.outputs[0], moved
    return None


def _through(model: Model, node: Node, slot: int, found: Stream, rank: int) -> Stream | None:
    """The scale and shift after a node that works channel by channel."""
    stored = [n for i, n in enumerate(node.inputs) if i != slot]
    if node.domain or not all(n in model.initializers for n in stored):
        return None
    if node.op == "BatchNormalization" and slot == 0 and not node.attr("training_mode", 0):
        gamma, beta, mean, variance = (model.array(n).astype(np.float64) for n in stored)
        scale = gamma / np.sqrt(variance + float(node.attr("epsilon", 1e-5)))
        return replace(found, scale=found.scale * scale, shift=(found.shift - mean) * scale + beta)
    if node.op == "Add":
        vector, axis = model.array(stored[0]).astype(np.float64), found.axis
        if vector.size in (1, len(found.shift)) and _lies_along(vector, axis, rank):
            return replace(found, shift=found.shift + vector.ravel())
    return None


def _lies_along(vector: FloatArray, axis: int, rank: int) -> bool:
    """True for one number a channel; axes are counted from the end."""
    at = axis - rank
    return vector.size == 1 or (vector.ndim >= -at and vector.shape[at] == vector.size)
