"""Looks before a pooling that a reader sees the result of.

A mean over positions commutes with a sum over channels. Few samples give few pooled rows (300
photos for 1,280 channels): their moments are singular, those of the positions are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import Array, positions
from onnxprune.readers.view import LinearView, View, channel_rows
from onnxprune.shape.shapes import Shapes

MOVES = frozenset("Flatten Reshape Squeeze Unsqueeze Identity Dropout".split())


@dataclass(frozen=True)
class Unpooled:
    """The value that is averaged, and where its channels are."""

    name: str
    axis: int

    def rows(self, values: Mapping[str, Array], seed: int, number: int) -> Array:
        """Some positions of a sample, shape (positions, channels)."""
        value = values[self.name]
        at = positions(value.size // max(value.shape[self.axis], 1), seed, number)
        return channel_rows(value, self.axis, at)


def unpooled(model: Model, shapes: Shapes, view: View) -> Unpooled | None:
    """What a reader's input is the mean of; None where it is none."""
    if not isinstance(view, LinearView) or view.linear.groups > 1:
        return None
    name, channels = view.node.inputs[0], view.size
    while (node := model.producer.get(name)) is not None and not node.domain:
        if _is_global(model, shapes, node, channels):
            found = node.inputs[0]
            shape = shapes.shape.get(found)
            is_plain = shape is not None and shape.count(channels) == 1
            return Unpooled(found, shape.index(channels)) if shape and is_plain else None
        if node.op not in MOVES or _rows(shapes, node.inputs[0]) != channels:
            return None
        name = node.inputs[0]
    return None


def _rows(shapes: Shapes, name: str) -> int:
    """Numbers of one sample of a value; -1 where its shape is unknown."""
    shape = shapes.shape.get(name)
    return int(np.prod(shape[1:])) if shape else -1


def _is_global(model: Model, shapes: Shapes, node: Node, channels: int) -> bool:
    """True for a mean over all positions that leaves the channels."""
    before, after = shapes.shape.get(node.inputs[0]), _rows(shapes, node.outputs[0])
    if node.op not in ("GlobalAveragePool", "ReduceMean", "AveragePool") or not before:
        return False
    return after == channels and len(before) > 2
