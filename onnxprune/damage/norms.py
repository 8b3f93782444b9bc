"""Norms that a graph writes out in small operators: means of squares, and roots of them.

Before opset 17 (layer norms) and 23 (RMS norms) exporters had no other way.
"""

from __future__ import annotations

import numpy as np

from onnxprune.model.graph import Model, Node
from onnxprune.shape.kernels import axes_argument

# What becomes of an exponent; a power multiplies it by its own.
POWERS = {"Sqrt": 0.5, "Reciprocal": -1.0}
# The small number that keeps a root from zero.
FLOORS = frozenset(("Add", "Max"))
SAME = frozenset(("Cast", "Identity"))
# Operators between a mean of squares and what divides by its root.
MOST_STEPS = 8


def is_mean(model: Model, node: Node, axis: int, rank: int) -> bool:
    """True for a mean over this axis alone, which stays, of length 1."""
    if node.op != "ReduceMean" or node.domain or not node.attr("keepdims", 1):
        return False
    named = node.input(1)
    is_known = named in model.initializers and named not in model.overridable
    given = model.array(named) if is_known else None
    if named and given is None:
        return False
    return [a % rank for a in axes_argument(node, [None, given], 1)] == [axis]


def is_square(model: Model, node: Node) -> bool:
    """True for a value times itself."""
    if node.op == "Mul":
        return node.inputs[0] == node.inputs[1]
    return node.op == "Pow" and _number(model, node.inputs[1]) == 2


def mean_behind(model: Model, name: str) -> tuple[Node, float] | None:
    """The mean that a value is a power of, but for a small number added, and the exponent.

    None where there is none, or anything else reads a value on the way.
    """
    exponent = 1.0
    for _ in range(MOST_STEPS):
        node = model.producer.get(name)
        if node is None or node.domain or not _is_read_once(model, name):
            return None
        if node.op == "ReduceMean":
            return node, exponent
        step = _step(model, node)
        if step is None:
            return None
        name, exponent = step[0], exponent * step[1]
    return None


def _step(model: Model, node: Node) -> tuple[str, float] | None:
    """What a value is made of, and which power of it."""
    if node.op in SAME:
        return node.inputs[0], 1.0
    if node.op in POWERS:
        return node.inputs[0], POWERS[node.op]
    numbers = [_number(model, name) for name in node.inputs]
    if node.op == "Pow" and numbers[1] is not None:
        return node.inputs[0], numbers[1]
    if node.op == "Div" and numbers[0] == 1:
        return node.inputs[1], -1.0
    if node.op in FLOORS and len(numbers) == 2 and numbers.count(None) == 1:
        return node.inputs[numbers.index(None)], 1.0
    return None


def _number(model: Model, name: str) -> float | None:
    """A stored number; None for anything else."""
    is_known = name in model.initializers and name not in model.overridable
    if not is_known or int(np.prod(model.dims(name))) != 1:
        return None
    return float(model.array(name).ravel()[0])


def _is_read_once(model: Model, name: str) -> bool:
    is_held = name in model.captured or name in model.output_names
    return not is_held and len(model.consumers.get(name, ())) == 1
