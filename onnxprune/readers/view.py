"""A reader: at each position of its output a sum over channels with stored weights.

y = W z + b. Convolutions see patches, products of matrices see rows, recurrent cells see their
input beside their own state: behind a view they are all alike. The same node of the original and
of its cut form have views of their own; positions mean the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.cleanup.cleaning import add_biases, with_weights
from onnxprune.cleanup.linear import Linear
from onnxprune.cleanup.weight import stored, weight
from onnxprune.identity.dims import BoolArray
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import Array, FloatArray, IntArray
from onnxprune.readers.window import window

Values = Mapping[str, Array]
"""Activations of one sample, by name."""


@dataclass(eq=False)
class Changes:
    """New numbers for the weights of a model, gathered view by view."""

    model: Model
    arrays: dict[Slot, Array] = field(default_factory=dict)
    """In float64, as the node sees them."""
    biases: dict[str, FloatArray] = field(default_factory=dict)
    """What nodes must add, by key."""
    linear: dict[str, Linear] = field(default_factory=dict)

    def array(self, node: Node, slot: int, absent: tuple[int, ...] = ()) -> Array:
        """The numbers that a node sees, to be changed in place.

        Args:
            absent: shape of the zeros that stand for an input that is left out.
        """
        found = self.arrays.get((node.key, slot))
        if found is None:
            seen = weight(self.model, node.inputs[slot]) if node.input(slot) else None
            found = np.zeros(absent) if seen is None else seen.values.astype(np.float64)
            self.arrays[node.key, slot] = found
        return found

    def add_bias(self, view: Linear, change: FloatArray, at: slice) -> None:
        """Add to some outputs of a layer."""
        key = view.node.key
        self.linear[key] = view
        self.biases.setdefault(key, np.zeros(len(view.bias)))[at] += change

    def apply(self) -> Model:
        """The changed model; the model itself where nothing is."""
        if not (self.arrays or self.biases):
            return self.model
        arrays, biases = dict(self.arrays), dict(self.biases)
        for key, view in self.linear.items():
            bias = view.bias_weight
            if bias is not None and bias.steps:
                total = (view.bias + biases.pop(key)) / view.beta
                arrays[key, 2] = total.reshape((*bias.dims[:-1], -1))
        made = with_weights(self.model, stored(self.model, arrays))
        return add_biases(made, self.linear, biases)


@dataclass(frozen=True, eq=False)
class View:
    """One sum of a node; a node may have several (groups, directions, gates)."""

    node: Node
    label: str
    """Tells the sums of a node apart; empty where there is one."""
    rows: IntArray
    """Shape (outputs,): the identity of each output; -1 where it has none."""
    columns: IntArray
    """Shape (inputs,): the identity of each input; -1 where it has none."""

    @property
    def key(self) -> str:
        """Names the sum in every form of the model."""
        return f"{self.node.key} {self.label}".rstrip()

    @property
    def size(self) -> int:
        """How many inputs the node has; `columns` may be fewer directions of them."""
        return len(self.columns)

    @property
    def weights(self) -> FloatArray:
        """Shape (outputs, columns)."""
        raise NotImplementedError

    @property
    def bias(self) -> FloatArray:
        """Shape (outputs,)."""
        raise NotImplementedError

    @property
    def seen(self) -> tuple[str, ...]:
        """Values that its inputs are made of."""
        raise NotImplementedError

    @property
    def given(self) -> tuple[str, ...]:
        """Values that tell what it gives."""
        raise NotImplementedError

    @property
    def axes(self) -> Mapping[str, int]:
        """The batch axis of what is seen and given, where it is not the first."""
        return {}

    @property
    def own(self) -> tuple[str, ...]:
        """Values of `seen` that the node itself makes: its states."""
        return ()

    def within(self, live: Model) -> View:
        """The view in a model with other weights, where what is seen depends on them."""
        return self

    def led(self, values: Values, alive: BoolArray) -> Values:
        """States as they should be in a cut net: those of the original, less what went.

        Args:
            values: of the original.
            alive: shape (identities,).
        """
        return {}

    def count(self, values: Values) -> int:
        """Positions in what it gives."""
        raise NotImplementedError

    def inputs(self, values: Values, at: IntArray, made: Values) -> Array:
        """What enters the sum at some positions.

        Args:
            values: those of `seen`; the net may be a cut one.
            made: those of `given`, of any form of the net: they tell where positions lie.
        Returns: shape (positions, inputs).
        """
        raise NotImplementedError

    def narrow(self, rows: Array) -> Array:
        """What `weights` are multiplied by, shape (positions, columns), of such inputs."""
        return rows

    def beside(self, rows: Array) -> Array | float:
        """What inputs give that `weights` do not tell of, shape (positions, outputs)."""
        return 0.0

    def outputs(self, values: Values, at: IntArray) -> Array:
        """What the sum gives. Returns: shape (positions, outputs)."""
        raise NotImplementedError

    def write(self, changes: Changes, weights: FloatArray, bias: FloatArray) -> None:
        """Store other weights."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class LinearView(View):
    """A Conv, ConvTranspose, Gemm or MatMul, or one of its groups."""

    linear: Linear
    group: int

    @property
    def weights(self) -> FloatArray:
        found = np.asarray(self.linear.weights[self.group], np.float64) * self.linear.alpha
        return found.reshape(len(found), -1)

    @property
    def bias(self) -> FloatArray:
        return self.linear.bias[self._outputs]

    @property
    def _outputs(self) -> slice:
        each = len(self.rows)
        return slice(self.group * each, (self.group + 1) * each)

    @property
    def _inputs(self) -> slice:
        each = self.linear.weights.shape[2]
        return slice(self.group * each, (self.group + 1) * each)

    @property
    def seen(self) -> tuple[str, ...]:
        return (self.node.inputs[0],)

    @property
    def given(self) -> tuple[str, ...]:
        return (self.node.outputs[0],)

    def count(self, values: Values) -> int:
        value = values[self.given[0]]
        return int(value.size // max(value.shape[self.linear.out_axis], 1))

    def inputs(self, values: Values, at: IntArray, made: Values) -> Array:
        value = values[self.seen[0]]
        if "Conv" not in self.node.op:
            return value.reshape(-1, value.shape[-1])[at]
        if not len(at):
            return np.zeros((0, self.size), value.dtype)
        out = made[self.given[0]].shape[2:]
        kernel = self.linear.weight.dims[2:]
        frame, area = window(self.node, kernel, value.shape[2:]), int(np.prod(out))
        images = at // area
        found = [
            frame.patches(value[i, self._inputs], out, at[images == i] % area)
            for i in np.unique(images)
        ]
        return np.concatenate(found)

    def outputs(self, values: Values, at: IntArray) -> Array:
        return channel_rows(values[self.given[0]], self.linear.out_axis, at)[:, self._outputs]

    def write(self, changes: Changes, weights: FloatArray, bias: FloatArray) -> None:
        node, view = self.node, self.linear
        stored = changes.array(node, 1)
        made = weights / view.alpha
        if node.op == "Conv":
            part = stored[self._outputs]
            part[...] = made.reshape(part.shape)
        elif node.op == "ConvTranspose":
            part = stored[self._inputs]
            part[...] = made.reshape(part.shape[1], part.shape[0], *part.shape[2:]).swapaxes(0, 1)
        else:
            stored[...] = made if node.attr("transB", 0) else made.T
        changes.add_bias(view, bias - self.bias, self._outputs)


def channel_rows(value: Array, axis: int, at: IntArray) -> Array:
    """Some positions of a value, shape (positions, channels)."""
    moved = np.moveaxis(value, axis, -1)
    found: Array = moved[np.unravel_index(at, moved.shape[:-1])]
    return found
