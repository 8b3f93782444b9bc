"""Which nodes of a cut model are repaired, in which order, and towards what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.cleanup.linear import Linear, linear
from onnxprune.cutting.compact import Take, takes
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.model.graph import Model, Node, bodies, free_names
from onnxprune.repair.stats import Array, FloatArray, IntArray, Window
from onnxprune.shape.shapes import Shapes

# Inputs of a reader that are solved for together: their products are a matrix of this size.
WIDEST = 4608


@dataclass(frozen=True, eq=False)
class Stream:
    """The sum that a node's output joins: what is missing there is what the node can make up."""

    total: str
    other: str
    """The operand that does not come from the node."""
    bias: Array
    """Stored numbers that are added on the way."""


@dataclass(frozen=True, eq=False)
class Target:
    """A node to repair."""

    node: Node
    view: Linear | None
    """None for a BatchNormalization."""
    may_solve: bool
    """It sums over channels of which some are gone; else its channels are scaled only."""
    takes: list[Take]
    """What the cut took from its output."""
    stream: Stream | None

    @property
    def out(self) -> str:
        return self.node.outputs[0]

    @property
    def of_original(self) -> str:
        """The value of the original that it should give."""
        return self.out if self.stream is None else self.stream.total

    @property
    def of_pruned(self) -> str:
        """The value of the pruned net that is looked at: what is summed, or what is scaled."""
        return self.node.inputs[0] if self.may_solve else self.out

    @property
    def axis(self) -> int:
        """Channel axis of the output."""
        return 1 if self.view is None else self.view.out_axis

    def width(self) -> int:
        """Inputs that are solved for together; 0 where there is nothing to solve."""
        return int(np.prod(self.view.weights.shape[2:])) if self.view and self.may_solve else 0

    def wanted(self, before: Array, after: Mapping[str, Array]) -> Array:
        """What the node should give, from the original's value and the pruned net's."""
        for take in self.takes:
            before = take.apply(before)
        if self.stream is None:
            return before
        return before - after[self.stream.other] - self.stream.bias

    def rows(self, value: Array, at: IntArray) -> Array:
        """Some positions of an output, shape (positions, channels)."""
        moved = np.moveaxis(value, self.axis, -1)
        found: Array = moved[np.unravel_index(at, moved.shape[:-1])]
        return found

    def seen(self, value: Array, out: Sequence[int], at: IntArray) -> Array:
        """What enters the sum, or comes out of the scale, at some positions of the output.

        Args:
            out: shape of the output.
        """
        if not self.may_solve:
            return self.rows(value, at)
        if self.node.op != "Conv":
            return value.reshape(-1, value.shape[-1])[at]
        assert self.view is not None, "only a reader is solved for"
        window, area = _window(self.node, self.view, value.shape[2:]), int(np.prod(out[2:]))
        images = at // area
        found = [
            window.patches(value[i], out[2:], at[images == i] % area) for i in np.unique(images)
        ]
        return np.concatenate(found)


def _window(node: Node, view: Linear, lengths: Sequence[int]) -> Window:
    rank = len(lengths)
    kernel = view.model.dims(node.inputs[1])[2:]
    strides = tuple(node.attr("strides", [1] * rank))
    dilations = tuple(node.attr("dilations", [1] * rank))
    before = tuple(node.attr("pads", [0] * rank))[:rank]
    auto = node.attr("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        totals = [
            max((-(-n // s) - 1) * s + e - n, 0)
            for n, s, e in zip(lengths, strides, extents, strict=True)
        ]
        before = tuple((t + (auto == "SAME_LOWER")) // 2 for t in totals)
    return Window(kernel, strides, dilations, before)


def targets(
    original: Model, cut: Model, shapes: Shapes, dims: Dims, alive: BoolArray, known: Shapes
) -> list[list[Target]]:
    """The nodes to repair, wave by wave: those of a wave do not depend on each other.

    Args:
        alive: shape (identities,).
        shapes, known: of the cut model and of the original.
    """
    thinned = {
        reader.key
        for reader in dims.ties.readers
        if not (reader.beside or reader.alone) and not alive[reader.field.ids].all()
    }
    depth = dict.fromkeys((*cut.input_names, *cut.initializers), 0)
    waves: dict[int, list[Target]] = {}
    skipped: set[str] = set()
    for node in cut.nodes:
        here = max((depth.get(n, 0) for n in (*node.inputs, *_captured(node))), default=0)
        view = _view(cut, shapes, node)
        is_norm = _is_norm(cut, node) and node.inputs[0] not in skipped
        if node.key in original.producer and node.outputs[0] and (view or is_norm):
            stream = _stream(original, cut, shapes, node, depth)
            if view is not None and stream is not None:
                here = max(here, depth[stream.other])
            fields = dims.ties.fields.get(node.outputs[0], ())
            found = takes(fields, known.shape[node.outputs[0]], alive)
            may_solve = node.key in thinned and view is not None and _is_solvable(view)
            waves.setdefault(here, []).append(
                Target(node, view, may_solve, found, stream if view else None)
            )
            here += 1
            skipped.add(node.outputs[0])
        depth.update(dict.fromkeys(node.outputs, here))
    return [waves[level] for level in sorted(waves)]


def _captured(node: Node) -> Iterable[str]:
    return (name for body in bodies(node.proto) for name in free_names(body))


def _is_solvable(view: Linear) -> bool:
    return view.groups == 1 and int(np.prod(view.weights.shape[2:])) <= WIDEST


def _view(cut: Model, shapes: Shapes, node: Node) -> Linear | None:
    """A layer whose weights nothing else reads."""
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return None
    view = linear(cut, shapes, node)
    if view is None or len(cut.consumers[node.inputs[1]]) > 1 or node.inputs[1] in cut.captured:
        return None
    return view


def _is_norm(cut: Model, node: Node) -> bool:
    """A BatchNormalization that runs as it was trained."""
    stored = all(n in cut.initializers and n not in cut.overridable for n in node.inputs[1:])
    return node.op == "BatchNormalization" and not node.attr("training_mode", 0) and stored


def _stream(
    original: Model, cut: Model, shapes: Shapes, node: Node, depth: dict[str, int]
) -> Stream | None:
    """The residual sum behind a node, where all else that enters it is known before."""
    name, bias = node.outputs[0], np.zeros(1)
    for _ in range(2):
        readers = cut.consumers.get(name, ())
        if len(readers) != 1 or name in cut.captured or name in cut.output_names:
            return None
        (after, slot), shape = readers[0], shapes.shape.get(name)
        total = after.outputs[0]
        if after.op != "Add" or total not in original.producer or shape is None:
            return None
        other = after.inputs[1 - slot]
        if other in cut.initializers:
            bias = cut.array(other).astype(np.float64)
            name = total
        elif other in depth and other in cut.producer and shapes.shape.get(other) == shape:
            return Stream(total, other, bias)
        else:
            return None
    return None


def batches(wave: Sequence[Target], most_bytes: int) -> Iterator[list[Target]]:
    """A wave in parts whose sums fit into memory together."""
    part: list[Target] = []
    size = 0
    for one in wave:
        own = 4 * 8 * one.width() ** 2
        if part and size + own > most_bytes:
            yield part
            part, size = [], 0
        part.append(one)
        size += own
    if part:
        yield part


def sliced_weights(view: Linear) -> FloatArray:
    """A reader's weights as they stand, shape (outputs, inputs * taps)."""
    weights = np.asarray(view.weights[0], np.float64) * view.alpha
    found: FloatArray = weights.reshape(len(weights), -1)
    return found


def stored(target: Target, weights: FloatArray) -> Array:
    """Weights in the layout of the node.

    Args:
        weights: shape (outputs, inputs * taps), or the scale of each output.
    """
    view = target.view
    assert view is not None, "a BatchNormalization has no weights"
    old = view.model.array(target.node.inputs[1])
    by_rows = target.node.op == "Conv" or bool(target.node.attr("transB", 0))
    if weights.ndim == 1:
        shape = (-1, *[1] * (old.ndim - 1)) if by_rows else (1, -1)
        return old.astype(np.float64) * weights.reshape(shape)
    found = weights / view.alpha
    return (found if by_rows else found.T).reshape(old.shape)
