"""Which parts of the inputs are features: the columns of a table, the channels of a signal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.backend.feeds import Array
from onnxprune.model.graph import Model, Node
from onnxprune.samples.dataset import Dataset

# With more, a position is a moment of a signal or a pixel rather than a column.
MOST_FEATURES = 8192

# The first of these that an input meets tells on which axis its channels lie.
_SECOND = frozenset(
    """AveragePool BatchNormalization Conv ConvInteger ConvTranspose GlobalAveragePool
    GlobalMaxPool GroupNormalization InstanceNormalization LRN MaxPool PRelu QLinearConv""".split()
)
_LAST = frozenset("GRU Gemm LSTM LayerNormalization MatMul MatMulInteger RNN".split())
# What leaves every axis where it was; the input is their first operand.
_PASSING = frozenset(
    """Add Cast Clip DequantizeLinear Div Identity Mul Pad QuantizeLinear Relu Sub""".split()
)


@dataclass(frozen=True)
class Feature:
    """One position along the feature axis of an input."""

    input: str
    index: int
    axis: int
    """Where samples are on axis 0; 0: each sample is one number."""

    def of(self, samples: Array) -> Array:
        """Its values, a view: samples on axis 0, then the input's other axes."""
        if not self.axis:
            return samples[:]
        found: Array = np.moveaxis(samples, self.axis, 0)[self.index]
        return found


def features(model: Model, data: Dataset) -> tuple[list[Feature], list[str]]:
    """Every feature of the inputs, in order, and notes on inputs that have none."""
    found: list[Feature] = []
    sequences = [f"`{name}`" for name, array in data.arrays.items() if _is_sequence(array)]
    notes = [f"`{name}` is the same for every sample: it is not ranked" for name in data.constants]
    for name, array in data.arrays.items():
        if _is_sequence(array):
            continue
        axis = _feature_axis(model, name, array.ndim, data.axes[name])
        count = array.shape[axis] if axis else 1
        if count > MOST_FEATURES:
            notes.append(f"`{name}` has {count} features, more than {MOST_FEATURES}: "
                         "it is not ranked")  # fmt: skip
            continue
        found += [Feature(name, index, axis) for index in range(count)]
    if sequences:
        notes.append("whole numbers in sequence (token ids, a mask) have no columns; not ranked: "
                     + ", ".join(sequences))  # fmt: skip
    return found, notes


def _is_sequence(samples: Array) -> bool:
    """Whole numbers, several a sample, and no image: pixels are bytes."""
    is_image = samples.ndim >= 3 and samples.dtype.itemsize == 1 and samples.dtype.kind != "b"
    is_single = int(np.prod(samples.shape[1:])) == 1
    return samples.dtype.kind in "biu" and not is_image and not is_single


def _feature_axis(model: Model, name: str, rank: int, batch_axis: int) -> int:
    """The axis of the features, samples being on axis 0."""
    if rank < 3:
        return rank - 1
    axis = _channel_axis(model, name, rank)
    if axis is None or axis == batch_axis:
        return 1
    return axis + 1 if axis < batch_axis else axis


def _channel_axis(model: Model, name: str, rank: int) -> int | None:
    """The axis of a graph's input that its first layer takes for channels; None: not known."""
    at: list[tuple[str, tuple[int, ...]]] = [(name, tuple(range(rank)))]
    for value, axes in at:  # grows while it is walked
        for node in _first_readers(model, value):
            if node.op in _SECOND:
                return axes[1]
            if node.op in _LAST:
                return axes[-1]
            if node.op in _PASSING:
                at.append((node.outputs[0], axes))
            elif node.op == "Transpose":
                order = node.attr("perm", tuple(reversed(range(rank))))
                at.append((node.outputs[0], tuple(axes[i] for i in order)))
    return None


def _first_readers(model: Model, value: str) -> Iterator[Node]:
    """Nodes whose first operand is the value."""
    return (node for node, at in model.consumers.get(value, ()) if at == 0)
