"""What is known of the values that carry a stream, while it is followed node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from onnxprune.damage.streams import Kind, Sight, Use
from onnxprune.identity.dims import Dim, Dims
from onnxprune.identity.fields import Field
from onnxprune.identity.flow import FLOATS
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model, Node
from onnxprune.readers.stats import FloatArray
from onnxprune.readers.view import View

Axes = Mapping[int, int]
"""Which axis is the stream, by input slot of a node."""


class Form(Enum):
    """What a value holds of the stream."""

    RAW = "raw"
    """Itself, a term of it, or sums and moves of such."""
    CENTRED = "centred"
    """What is left of it without its mean."""
    SQUARE = "square"
    NORMED = "normed"


@dataclass(frozen=True)
class Carried:
    """What a value holds: of a norm also what was multiplied and added since."""

    form: Form
    of: str = ""
    """Of squares, which value; of what is normed, by which node."""
    kind: Kind = Kind.PLAIN
    scale_at: Slot | None = None
    shift_at: Slot | None = None


RAW = Carried(Form.RAW)


class Trail:
    """A stream as far as it has been followed."""

    def __init__(self, model: Model, dims: Dims, views: Mapping[str, View], dim: Dim) -> None:
        self.model = model
        self.carried: dict[str, Carried] = {}
        """By the names of values."""
        self.stored: dict[str, Use] = {}
        """Values that are a stored tensor in another form."""
        self.writes: dict[Use, None] = {}
        """Stored tensors that are terms of the stream, in order."""
        self.sizes = set[str]()
        """Means of squares that nothing was found to be divided by, by the key of the node."""
        self.count = len(dim.channels)
        self._reads: dict[Carried, list[tuple[Use, str]]] = {}
        self._dims, self._views = dims, views
        self._place = np.full(dims.count + 1, -1, np.int64)
        self._place[dim.channels] = np.arange(self.count)
        self._vectors: dict[Slot, FloatArray] = {}

    # --- where the stream is ----------------------------------------------------------------------

    def fields(self, name: str) -> Sequence[Field]:
        """The identities of a value."""
        return self._dims.ties.fields.get(name, ())

    def slots(self, node: Node) -> dict[int, int]:
        """Inputs that hold the stream, each with its axis; -1 where it is not there as a whole."""
        found = {s: self._axis(self._at(node, s)) for s in range(len(node.inputs))}
        return {s: axis for s, axis in found.items() if axis is not None}

    def outs(self, node: Node) -> dict[str, int]:
        """The same of outputs, by name."""
        found = {name: self._axis(self.fields(name)) for name in node.outputs}
        return {name: axis for name, axis in found.items() if axis is not None}

    def _at(self, node: Node, slot: int) -> Sequence[Field]:
        name = node.inputs[slot]
        if name not in self.model.initializers:
            return self.fields(name)
        source = self._dims.ties.sources.get((node.key, slot))
        return source.fields if source else ()

    def _axis(self, fields: Sequence[Field]) -> int | None:
        own = [(f, self._place[self._dims.of[f.ids]]) for f in fields]
        own = [(f, place) for f, place in own if (place >= 0).any()]
        if not own:
            return None
        (one, place), count = own[0], self.count
        is_whole = len(own) == 1 and len(one.axes) == 1
        return one.axes[0] if is_whole and np.array_equal(place.ravel(), np.arange(count)) else -1

    # --- stored tensors ---------------------------------------------------------------------------

    def tensor(self, node: Node, slot: int, axis: int) -> Use | None:
        """The stored tensor behind an input; None where there is none that may change alone."""
        name, model = node.inputs[slot], self.model
        if name in self.stored:
            return self.stored[name]
        if name not in model.initializers or name in model.overridable | model.captured:
            return None
        is_shared = len(model.consumers.get(name, ())) > 1 and len(model.dims(name)) > 1
        is_real = model.initializers[name].data_type in FLOATS
        return Use((node.key, slot), axis) if is_real and not is_shared else None

    def vector(self, node: Node, slot: int, axes: Axes) -> Slot | None:
        """Where a node has a stored number for each channel; None for anything else."""
        name = node.input(slot)
        if slot not in axes or name in self.stored or self.tensor(node, slot, 0) is None:
            return None
        made = self.model.array(name).astype(np.float64)
        is_vector = made.size == self.count == made.shape[axes[slot]]
        if not is_vector or not np.isfinite(made).all():
            return None
        self._vectors[node.key, slot] = made.ravel()
        return node.key, slot

    # --- what was found ---------------------------------------------------------------------------

    def of(self, node: Node, slot: int) -> Carried | None:
        """What an input holds."""
        return self.carried.get(node.inputs[slot])

    def gives(self, node: Node, what: Carried) -> bool:
        """Notes what the outputs of a node hold."""
        self.carried |= dict.fromkeys(filter(None, node.outputs), what)
        return True

    def joins(self, node: Node, axes: Axes) -> bool:
        """Notes a sum of terms of the stream, stored ones too; False where others are in it."""
        for slot, axis in axes.items():
            if self.of(node, slot) == RAW:
                continue
            use = None if self.of(node, slot) else self.tensor(node, slot, axis)
            if use is None:
                return False
            self.writes[use] = None
        return self.gives(node, RAW)

    def reads(self, node: Node, axes: Axes) -> bool:
        """Notes a weight that sums over the stream, or over what a norm gives."""
        what, view = self.of(node, 0), self._views.get(node.key)
        is_plain = what is not None and what.form in (Form.RAW, Form.NORMED)
        if what is None or not is_plain or view is None or [*axes] != [0, 1]:
            return False
        place = self._place[np.where(view.columns >= 0, self._dims.of[view.columns], -1)]
        taps = len(place) // self.count
        use = self.tensor(node, 1, axes[1])
        if use is None or not np.array_equal(place, np.repeat(np.arange(self.count), taps)):
            return False
        self._reads.setdefault(what, []).append((use, node.key))
        return True

    @property
    def sights(self) -> tuple[Sight, ...]:
        """What sees the stream."""
        return tuple(
            Sight(
                what.kind,
                self._numbers(what.scale_at, 1.0),
                self._numbers(what.shift_at, 0.0),
                what.scale_at,
                what.shift_at,
                tuple(use for use, _ in reads),
                tuple(key for _, key in reads),
            )
            for what, reads in self._reads.items()
        )

    def _numbers(self, at: Slot | None, absent: float) -> FloatArray:
        return np.full(self.count, absent) if at is None else self._vectors[at]
