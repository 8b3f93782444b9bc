"""Channels that are multiples of each other wherever they are read: one can stand for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.cleanup.knowledge import Knowledge
from onnxprune.cleanup.known import Array, FloatArray, mix
from onnxprune.identity.dims import BoolArray
from onnxprune.identity.fields import Field, IntArray
from onnxprune.identity.flow import FLOATS
from onnxprune.identity.ties import Reader, Slot
from onnxprune.model.graph import Node

# Nodes whose result is linear in the weight that meets the data.
LINEAR = frozenset("Conv ConvTranspose Gemm MatMul Einsum LSTM GRU RNN".split())


@dataclass(frozen=True, eq=False)
class Use:
    """A sum over channels of data, with a stored weight to meet them."""

    node: Node
    data: Reader
    weight: Reader
    factor: FloatArray
    """Multiples that stand at the positions of the data's field."""


@dataclass(eq=False)
class Twins:
    """Which channel stands for which, and what its readers must add up."""

    known: Knowledge
    stands_for: dict[int, int] = field(default_factory=dict)
    """The channel that stays, for each that may go."""
    uses: list[Use] = field(default_factory=list)

    @cached_property
    def may_go(self) -> BoolArray:
        """Shape (channels,)."""
        found = np.zeros(self.known.dims.count, np.bool_)
        found[list(self.stands_for)] = True
        return found

    def weights(self, removed: BoolArray) -> dict[Slot, Array]:
        """Readers' weights with the columns of removed channels added to those that stay."""
        found: dict[Slot, Array] = {}
        for use in self.uses:
            slot = (use.node.key, use.weight.slot)
            here = set(self._channels(use.weight.field))
            pairs = [(a, b) for b, a in self.stands_for.items() if removed[b] and b in here]
            if not pairs:
                continue
            old = found.get(slot, self.known.model.array(use.node.inputs[use.weight.slot]))
            found[slot] = self._added(use, np.asarray(old, np.float64), pairs)
        return found

    def _added(self, use: Use, array: FloatArray, pairs: list[tuple[int, int]]) -> FloatArray:
        axes = use.weight.field.axes
        moved = np.moveaxis(array, axes, range(len(axes)))
        count = int(np.prod(moved.shape[: len(axes)]))
        columns = moved.reshape(count, -1).copy()
        own, data = self._channels(use.weight.field), self._channels(use.data.field)
        for kept, gone in pairs:
            ratio = use.factor[data == gone] / use.factor[data == kept]
            columns[own == kept] += ratio[:, None] * columns[own == gone]
        return np.moveaxis(columns.reshape(moved.shape), range(len(axes)), axes)

    def _channels(self, one: Field) -> IntArray:
        found: IntArray = self.known.dims.of[one.ids.ravel()]
        return found


def find_twins(known: Knowledge) -> Twins:
    """Every channel that is a multiple of another one of its part, at all its readers."""
    dims = known.dims
    twins = Twins(known)
    signs = np.zeros(dims.count, np.uint64)
    size = np.zeros(dims.count)
    alone = np.ones(dims.count, np.bool_)
    for dim in dims.free:
        alone[dim.channels] = not dim.is_exact
    for node in known.model.nodes:
        for use in _uses(known, node, alone):
            twins.uses.append(use)
            _sign(known, use, len(twins.uses), signs)
            own = dims.of[use.data.field.ids.ravel()]
            size[own] = np.where(size[own] > 0, size[own], np.abs(use.factor))
    for dim in dims.free:
        for part in dim.parts:
            _group(part[~alone[part] & (size[part] > 0)], signs, size, twins)
    return twins


def _uses(known: Knowledge, node: Node, alone: BoolArray) -> Iterator[Use]:
    """Sums that can be merged; channels of all others are marked as standing alone."""
    readers = known.readers.get(node.key, ())
    weights = [r for r in readers if node.inputs[r.slot] in known.model.initializers]
    for reader in readers:
        own = known.dims.of[reader.field.ids.ravel()]
        others = weights if reader not in weights else [r for r in readers if r not in weights]
        met = [r for r in others if np.isin(own, known.dims.of[r.field.ids]).all()]
        use = None
        if len(met) == 1 and node.op in LINEAR and not reader.beside:
            pair = (met[0], reader) if reader in weights else (reader, met[0])
            use = _described(known, node, *pair)
        if use is None:
            alone[own] = True
        elif reader not in weights:
            yield use


def _is_float(known: Knowledge, name: str) -> bool:
    tensor = known.model.initializers[name]
    return tensor.data_type in FLOATS and name not in known.model.overridable


def _described(known: Knowledge, node: Node, data: Reader, weight: Reader) -> Use | None:
    """A use; None where nothing is known, or weights repeat what data do not."""
    value = known.along(node.inputs[data.slot], data.field.axes)
    if value is None or not _is_float(known, node.inputs[weight.slot]):
        return None
    a, b = (known.dims.of[r.field.ids.ravel()] for r in (data, weight))
    times = [np.bincount(x, minlength=known.dims.count) for x in (a, b)]
    if ((times[0] > 1) & (times[0] != times[1])).any():
        return None
    return Use(node, data, weight, value.factor)


def _sign(known: Knowledge, use: Use, number: int, signs: Array) -> None:
    """Mix into each channel's hash what it is at this use, and in which rows."""
    value = known.along(use.node.inputs[use.data.slot], use.data.field.axes)
    assert value is not None, "only described uses are kept"
    for one, kinds in ((use.data.field, value.kind), (use.weight.field, np.uint64(1))):
        channels = known.dims.of[one.ids.ravel()]
        zero = (value.factor == 0) if one is use.data.field else np.zeros(len(channels), np.bool_)
        kinds = np.where(zero, mix(channels), kinds)  # a zero stands for nothing
        rows = np.broadcast_to(_rows(one), one.ids.shape).ravel()
        order = np.argsort(channels, kind="stable")
        starts = np.searchsorted(channels[order], channels[order])
        place = np.empty(len(channels), np.int64)
        place[order] = np.arange(len(channels)) - starts
        with np.errstate(over="ignore"):
            np.add.at(signs, channels, mix(np.uint64(number), place, kinds, rows))


def _rows(one: Field) -> Array:
    """A number for each row of a field: what is in different rows cannot be merged."""
    shape = [n if a in one.rows else 1 for a, n in enumerate(one.ids.shape)]
    return np.arange(int(np.prod(shape)), dtype=np.uint64).reshape(shape)


def _group(channels: IntArray, signs: Array, size: FloatArray, twins: Twins) -> None:
    """Of channels with equal hashes the one with the largest factor stands for the others."""
    parents = twins.known.dims.parent[channels].astype(np.uint64)
    keys = mix(signs[channels], parents)
    order = np.argsort(keys, kind="stable")
    if not (np.diff(keys[order]) == 0).any():
        return
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(channels[order], bounds):
        if len(group) > 1:
            kept = int(group[np.argmax(size[group])])
            twins.stands_for |= {int(c): kept for c in group if c != kept}
