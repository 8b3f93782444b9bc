"""Which channels nothing depends on: found backwards, from what leaves the graph.

A channel is live where some node reads it, its data there are not zeros or a constant that can be
added to the reader's bias, and the weights that meet it and lead to a live channel are not zero.
Channels that are not live may all go at once: what the mask oracle would silence is silent
already, unread, or added elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.cleanup.knowledge import Knowledge
from onnxprune.cleanup.known import Array
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.fields import Field, IntArray
from onnxprune.identity.flow import FLOATS
from onnxprune.identity.ties import Reader
from onnxprune.model.graph import Model, Node

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(eq=False)
class _Search:
    """One search from what is held."""

    known: Knowledge
    uses_data: bool
    live: BoolArray

    @property
    def dims(self) -> Dims:
        return self.known.dims

    @property
    def model(self) -> Model:
        return self.known.model

    # --- one node --------------------------------------------------------------------------

    def read(self, node: Node, readers: list[Reader]) -> IntArray:
        """Channels that a node makes live."""
        outs = self._outputs(node)
        if outs is not None and not self.live[outs].any():
            return np.zeros(0, np.int64)
        covered = np.zeros(self.dims.count, np.bool_)
        mute, beside = covered.copy(), covered.copy()
        for number, reader in enumerate(readers):
            channels, loud = self._through(node, number, reader, outs)
            through = np.zeros(self.dims.count, np.bool_)
            through[channels[loud]] = True
            if reader.beside:
                beside |= through
                continue
            covered[channels] = True
            mute[channels] |= ~through[channels]
        found = np.flatnonzero((covered & ~mute) | beside)
        return self._in_living_rows(found, outs)

    def _outputs(self, node: Node) -> IntArray | None:
        """Channels on the outputs of a node; None where an output is live as a whole."""
        found = []
        for name in node.outputs:
            if not name or (name not in self.model.consumers and name not in self.known.leaving):
                continue
            fields = self.dims.ties.fields.get(name, ())
            if not fields or name in self.known.leaving:
                return None
            alive = [self.live[self.dims.of[f.ids]].any() for f in fields]
            if all(alive):
                found += [self.dims.of[f.ids].ravel() for f in fields]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _in_living_rows(self, channels: IntArray, outs: IntArray | None) -> IntArray:
        """Without channels of a row (a head) that is on the output and dead."""
        if outs is None:
            return channels
        parent = self.dims.parent[channels]
        dead = (parent >= 0) & ~self.live[parent] & np.isin(parent, outs)
        return channels[~dead]

    def _through(
        self, node: Node, number: int, reader: Reader, outs: IntArray | None
    ) -> tuple[IntArray, BoolArray]:
        """Channels of an operand, position by position, and whether they get through."""
        is_weight = node.inputs[reader.slot] in self.model.initializers
        partly = is_weight and outs is not None and not self.live[outs].all()
        key = (node.key, number, self.uses_data)
        loud = self.known.loud.get(key) if not partly else None
        if loud is None:
            find = self._weight_is_loud if is_weight else self._data_is_loud
            loud = find(node, reader, partly)
            if not partly:
                self.known.loud[key] = loud
        return self.dims.of[reader.field.ids].ravel(), loud.ravel()

    # --- operands --------------------------------------------------------------------------

    def _weight_is_loud(self, node: Node, reader: Reader, partly: bool) -> BoolArray:
        """Positions along the read axes at which a weight is not zero.

        Args:
            partly: weights that lead to dead channels count as zero.
        """
        name, one = node.inputs[reader.slot], reader.field
        if self.model.initializers[name].data_type not in FLOATS or name in self.model.overridable:
            return np.ones(one.ids.shape, np.bool_)  # a quantised zero may stand for a number
        array, loud = self.model.array(name), self._recurs(node, reader)
        rows = self._rows(node, reader) if partly else []
        if not rows:
            return loud & _any_over(array, one.axes)
        axes = sorted({*one.axes, *(a for r in rows for a in r.axes)})
        table = _any_over(array, axes)
        for row in rows:
            table = table & self.live[self.dims.of[row.ids]]
        rest = tuple(a for a in axes if a not in one.axes)
        return np.asarray(loud & table.any(axis=rest, keepdims=True))

    def _rows(self, node: Node, reader: Reader) -> list[Field]:
        """Fields of a weight whose channels the node makes."""
        source = self.dims.ties.sources.get((node.key, reader.slot))
        read = {id(r.field) for r in self.known.readers[node.key]}
        return [f for f in (source.fields if source else ()) if id(f) not in read]

    def _recurs(self, node: Node, reader: Reader) -> BoolArray:
        """False for units that are fed back as zeros."""
        made = self.known.values.get(node.outputs[0])
        if not self.uses_data or node.op not in RECURRENT or reader.slot != 2 or made is None:
            return np.ones(reader.field.ids.shape, np.bool_)
        zero = (made.kind == 0) & (made.factor == 0)  # (1, directions, 1, units)
        return np.broadcast_to(~zero.reshape(zero.shape[1], 1, -1), reader.field.ids.shape)

    def _data_is_loud(self, node: Node, reader: Reader, partly: bool = False) -> BoolArray:
        """Positions at which data are neither zero nor a number that a bias can take up."""
        one = reader.field
        if not self.uses_data:
            return np.ones(one.ids.shape, np.bool_)
        constants = self.known.constants(node.inputs[reader.slot], one)
        view = self.known.linear.get(node.key)
        if view is None or view.padded or one.axes != (view.axis,) or reader.slot != 0:
            return np.asarray(constants != 0)
        return np.isnan(constants)


def _any_over(array: Array, axes: IntArray | list[int] | tuple[int, ...]) -> BoolArray:
    """True where anything along the other axes is not zero; they stay with length 1."""
    others = tuple(a for a in range(array.ndim) if a not in axes)
    if array.dtype == np.float32 and array.flags.c_contiguous:  # many times faster than any()
        bits = np.bitwise_or.reduce(array.view(np.uint32), axis=others, keepdims=True)
        return np.asarray((bits << 1) != 0)
    return np.asarray((array != 0).any(axis=others, keepdims=True))


def find_live(known: Knowledge, *, uses_data: bool) -> BoolArray:
    """The least set of live channels that explains itself.

    Args:
        uses_data: count constant data as dead ends; else only weights are looked at.
    Returns: shape (channels,).
    """
    dims = known.dims
    search = _Search(known, uses_data, _held(dims))
    nodes = [n for n in reversed(known.model.nodes) if n.key in known.readers]
    while True:
        before = int(search.live.sum())
        for node in nodes:
            search.live[search.read(node, known.readers[node.key])] = True
            _lift(dims, search.live)
        if int(search.live.sum()) == before:
            return search.live


def _held(dims: Dims) -> BoolArray:
    """Channels that cannot go, or whose going is not the same as their silence.

    Nothing is known of a channel that no sum reads, unless it is a row of others.
    """
    held = np.ones(dims.count, np.bool_)
    for reader in dims.ties.readers:
        held[dims.of[reader.field.ids]] = False
    held[list(dims.children)] = False
    for dim in dims.dims:
        if dim.pinned or not dim.is_exact:
            held[dim.channels] = True
    _lift(dims, held)
    return held


def _lift(dims: Dims, live: BoolArray) -> None:
    """A row is live if any channel in it is."""
    while True:
        parents = dims.parent[live & (dims.parent >= 0)]
        if live[parents].all():
            return
        live[parents] = True
