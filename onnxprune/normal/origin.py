"""Where a weight's values come from: the sources in the file, and the steps from them.

The steps say enough to find each value's place in its source again (`Origin.replay`), but for
`fold`, where values were computed with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxprune.model.graph import Node
from onnxprune.model.store import Array

Step = Mapping[str, Any]
"""Ready for JSON: `op`, and what it was done with."""
Shape = tuple[int, ...]

FOLD: Step = {"op": "fold"}

_RESHAPES = frozenset("Reshape Flatten Squeeze Unsqueeze".split())
# Each result depends on the value at the same place alone, and on numbers.
_IN_PLACE = frozenset(
    """Abs Add Ceil Clip Div Exp Floor Log Max Min Mul Neg Not Pow Reciprocal Round Sigmoid Sign
    Softplus Sqrt Sub Tanh""".split()
)
# Concats of Concats double with each level: beyond this an origin is a fold. Exporters that
# reorder the gates of both directions of a recurrent cell need 11.
_MAX_SIZE = 64


class NoReplay(Exception):
    """The place of each value cannot be found again; says why."""


@dataclass(frozen=True)
class Origin:
    """What a weight was made of.

    Args:
        sources: initializers or outputs of Constant nodes.
        steps: what was done to the source, in order; nothing for a weight that is as it was.
        size: origins that it is put together from, at any depth, itself included.
    """

    sources: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    size: int = 1

    def then(self, step: Step) -> Origin:
        """The same after one more step."""
        return Origin(self.sources, (*self.steps, step), self.size)

    def json(self) -> dict[str, Any]:
        """As it stands in a plan file."""
        steps = [dict(step) for step in self.steps]
        if len(self.sources) == 1:
            return {"source": self.sources[0], "steps": steps}
        return {"sources": list(self.sources), "steps": steps}

    def replay(self, start: Callable[[str], Array]) -> Array:
        """Do the steps again, on arrays that stand for the sources.

        Only movements are done: steps that compute leave each value where it is.

        Raises: NoReplay: there is a `fold` among them, or a step does not fit the arrays.
        """
        try:
            return self._replay(start, 0)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise NoReplay(f"the steps do not fit: {error}") from error

    def _replay(self, start: Callable[[str], Array], depth: int) -> Array:
        if depth > _MAX_SIZE:
            raise NoReplay("its origin is nested too deep")
        steps = list(self.steps)
        if steps and steps[0]["op"] == "Concat":
            parts = [parse(one)._replay(start, depth + 1) for one in steps[0]["of"]]
            array = np.concatenate(parts, axis=int(steps.pop(0)["axis"]))
        elif len(self.sources) == 1:
            array = start(self.sources[0])
        else:
            raise NoReplay("several sources were computed with each other")
        for step in steps:
            array = _move(array, step)
        return array


def parse(found: Mapping[str, Any]) -> Origin:
    """An origin as it stands in a plan file.

    Raises: ValueError: it is none.
    """
    sources = found.get("sources", [found.get("source")])
    steps = found.get("steps")
    if not isinstance(sources, list) or not all(isinstance(name, str) for name in sources):
        raise ValueError("an origin names its `source`, or a list of `sources`")
    if not isinstance(steps, list) or not all(
        isinstance(step, dict) and isinstance(step.get("op"), str) for step in steps
    ):
        raise ValueError("an origin has a list of `steps`, each with its `op`")
    if not all(_is_order(step.get("perm")) for step in steps if step["op"] == "Transpose"):
        raise ValueError("an origin's Transpose has a `perm`")
    return Origin(tuple(sources), tuple(steps))


def _is_order(perm: Any) -> bool:
    return isinstance(perm, list) and all(type(axis) is int for axis in perm)


def _move(array: Array, step: Step) -> Array:
    op = step["op"]
    if op == "Transpose":
        return array.transpose(step["perm"])
    if op == "Reshape":
        if math.prod(step["shape"]) != array.size or min(step["shape"], default=0) < 0:
            raise NoReplay(f"shape {step['shape']} does not hold {array.size} values")
        return array.reshape(step["shape"])
    if op == "Slice":
        return array[_slices(step, array.ndim)]
    if op == "Cast" or op in _IN_PLACE:
        return array
    raise NoReplay("its values were computed from others" if op == "fold" else f"unknown `{op}`")


def _slices(step: Step, rank: int) -> tuple[slice, ...]:
    """The numpy form of an ONNX Slice; both clamp bounds alike."""
    cuts = [slice(None)] * rank
    bounds = zip(step["axes"], step["starts"], step["ends"], step["steps"], strict=True)
    for axis, start, end, stride in bounds:
        cuts[axis] = slice(start, end, stride)
    return tuple(cuts)


def trace(
    node: Node,
    inputs: Sequence[Origin],
    shapes: Sequence[Shape | None],
    numbers: Callable[[str], list[int] | None],
    made: Shape | None,
) -> Origin:
    """The origin of a folded node's first output.

    Args:
        inputs: origins of the inputs that are there, in order; `shapes` likewise.
        numbers: the value of a small constant of integers.
        made: shape of the output.
    """
    size = 1 + sum(one.size for one in inputs)
    if node.op == "Concat" and size <= _MAX_SIZE:
        of = [one.json() for one in inputs]
        step = {"op": "Concat", "axis": node.attr("axis", 0), "of": of}
        return Origin(_union(inputs), (step,), size)
    moved = _step(node, shapes, numbers, made)
    return inputs[0].then(moved) if moved is not None else Origin(_union(inputs), (FOLD,))


def _union(inputs: Sequence[Origin]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in inputs for name in one.sources))


def _step(
    node: Node,
    shapes: Sequence[Shape | None],
    numbers: Callable[[str], list[int] | None],
    made: Shape | None,
) -> Step | None:
    """What a node does to its first input; None where others matter as much."""
    if node.op == "Transpose" and shapes[0] is not None:
        return {"op": "Transpose", "perm": node.attr("perm", [*range(len(shapes[0]))[::-1]])}
    if node.op in _RESHAPES and made is not None:
        return {"op": "Reshape", "shape": list(made)}
    if node.op == "Cast":
        to: int = node.attr("to", 0)
        return {"op": "Cast", "to": TensorProto.DataType.Name(to)}
    if node.op == "Slice" and shapes[0] is not None:
        return _slice(node, len(shapes[0]), numbers)
    others = shapes[1:]
    if node.op in _IN_PLACE and made is not None and shapes[0] == made:
        return {"op": node.op} if all(_is_number(shape) for shape in others) else None
    return None


def _is_number(shape: Shape | None) -> bool:
    return shape is not None and math.prod(shape) == 1


def _slice(node: Node, rank: int, numbers: Callable[[str], list[int] | None]) -> Step | None:
    words = ("starts", "ends", "axes", "steps")
    if len(node.inputs) == 1:  # before opset 10
        given = [node.attr(word) for word in words]
    else:
        given = [numbers(name) if name else None for name in node.inputs[1:]]
        if any(v is None and name for v, name in zip(given, node.inputs[1:], strict=True)):
            return None
    starts, ends, axes, steps = [*given, None, None, None][:4]
    if starts is None or ends is None:
        return None
    axes = [*range(len(starts))] if axes is None else [a + rank * (a < 0) for a in axes]
    steps = [1] * len(starts) if steps is None else steps
    return {"op": "Slice", "axes": axes, "starts": starts, "ends": ends, "steps": steps}
