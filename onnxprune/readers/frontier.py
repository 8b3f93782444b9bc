"""Runs a model part by part over all samples; what later parts need waits on a shelf.

A walk that looks at one layer after the other costs about one forward in all, not one a layer:
each part starts from the values that the part before it left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Model, Node, bodies, free_names
from onnxprune.model.storage import copy_fields
from onnxprune.readers.stats import Array, IntArray
from onnxprune.samples.dataset import Dataset
from onnxprune.verification.trials import data_trials

# What waits in memory; the rest lies in files of a temporary folder.
IN_MEMORY = 2**29
# Samples that run together.
BATCH = 8


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples of one fold."""

    feeds: Mapping[str, Array]
    samples: IntArray
    """Number of each sample in the user's data."""
    fold: int


def batches(folds: Sequence[Dataset], size: int = BATCH) -> list[Batch]:
    """The samples of all folds; no batch has some of two."""
    found = []
    for number, data in enumerate(folds):
        start = 0
        for trial in data_trials(data, size):
            rows = data.rows[start : start + trial.samples]
            start += trial.samples
            found.append(Batch(trial.feeds, rows, number))
    return found


def sample(
    values: Mapping[str, Array], names: Iterable[str], at: int, count: int, axes: Mapping[str, int]
) -> dict[str, Array]:
    """One sample's part of some values; the first gets all of one that has no batch axis.

    Args:
        axes: the batch axis of values in which it is not the first.
    """
    return {name: _slice(values[name], at, count, axes.get(name, 0)) for name in names}


def held(values: Mapping[str, Array], name: str, count: int, axes: Mapping[str, int]) -> int:
    """How many samples the first part of a value holds: all where it has no batch axis."""
    return 1 if _each(values[name], count, axes.get(name, 0)) else count


def _slice(array: Array, at: int, count: int, axis: int) -> Array:
    each = _each(array, count, axis)
    if not each:
        return array if at == 0 or not array.ndim else array[:0]
    found: Array = array[(slice(None),) * axis + (slice(at * each, (at + 1) * each),)]
    return found


def _each(array: Array, count: int, axis: int) -> int:
    """Positions of a sample along the batch axis; 0 where that is none."""
    return array.shape[axis] // count if array.ndim and array.shape[axis] % count == 0 else 0


@dataclass(frozen=True)
class Spilled:
    """An array in a file, read anew each time: a mapped file would count as memory in use."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def write(self, array: Array) -> None:
        """Put these numbers into the file."""
        np.ascontiguousarray(array).tofile(self.path)

    def read(self) -> Array:
        """The numbers."""
        return np.fromfile(self.path, self.dtype).reshape(self.shape)


class Shelf:
    """Arrays by name and batch, in memory up to a limit, beyond it in files."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, int], Array | Spilled] = {}
        self._folder: TemporaryDirectory[str] | None = None
        self._bytes = self._files = 0

    def __contains__(self, name: str) -> bool:
        return (name, 0) in self._arrays

    def put(self, name: str, batch: int, array: Array) -> None:
        """Keep an array."""
        if self._bytes + array.nbytes > IN_MEMORY and array.dtype != np.object_ and array.size:
            self._arrays[name, batch] = self._spilled(array)
        else:
            self._bytes += array.nbytes
            self._arrays[name, batch] = array

    def _spilled(self, array: Array) -> Spilled:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="onnxprune-")
        made = Spilled(Path(self._folder.name) / str(self._files), array.dtype, array.shape)
        self._files += 1
        made.write(array)
        return made

    def get(self, name: str, batch: int) -> Array:
        """An array that was kept."""
        kept = self._arrays[name, batch]
        return kept.read() if isinstance(kept, Spilled) else kept

    def change(self, name: str, by: Callable[[Array], Array]) -> None:
        """Put something else, of the same shape, in the place of all batches of a value."""
        for key in [k for k in self._arrays if k[0] == name]:
            kept = self._arrays[key]
            if isinstance(kept, Spilled):
                kept.write(by(kept.read()))
            else:
                self._arrays[key] = by(kept)

    def drop(self, names: Iterable[str]) -> None:
        """Forget all batches of some values."""
        gone = set(names)
        for key in [k for k in self._arrays if k[0] in gone]:
            kept = self._arrays.pop(key)
            if isinstance(kept, Spilled):
                kept.path.unlink(missing_ok=True)
            else:
                self._bytes -= kept.nbytes

    def names(self) -> set[str]:
        """What is kept."""
        return {name for name, _ in self._arrays}

    def close(self) -> None:
        """Remove the files."""
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()


@dataclass(eq=False)
class Walk:
    """A model on its way from inputs to outputs, over all batches at once.

    Args:
        later: for each step to come, the values it will ask for.
    """

    batches: Sequence[Batch]
    later: list[set[str]]
    custom_ops: Sequence[str] = ()
    shelf: Shelf = field(default_factory=Shelf)
    _done: set[str] = field(default_factory=set)
    """Keys of nodes that ran."""

    def step(
        self, model: Model, names: Sequence[str], again: Collection[str] = ()
    ) -> Iterator[dict[str, Array]]:
        """Values of each batch, in order; the model may have other weights behind what ran.

        The values that nothing asks for later are forgotten once the last batch is through.

        Args:
            again: keys of nodes whose outputs are looked at only: a later step runs them again.
        """
        if self.later:
            self.later.pop(0)
        shelved = self.shelf.names()
        known = shelved | {*model.input_names}
        wanted = [n for n in dict.fromkeys(names) if n not in known]
        nodes = needed(model, wanted, known)
        done = [node for node in nodes if node.key not in again]
        made = {name for node in done for name in names_of(node)}
        self._done |= {node.key for node in done}
        kept = self._still_read(model, made | shelved)
        outputs = [*dict.fromkeys([*wanted, *sorted(kept & made)])]
        run, read = None, {*names}
        if outputs:
            first = {n: self.shelf.get(n, 0) for n in shelved}
            proto = part(model, nodes, outputs, first)
            run = session(proto, custom_ops=self.custom_ops)
            read |= {*run.input_names}
        for number, batch in enumerate(self.batches):
            values = {n: a for n, a in batch.feeds.items() if n in model.input_names}
            values |= {n: self.shelf.get(n, number) for n in sorted(shelved & read)}
            if run is not None:
                feeds = {n: values[n] for n in run.input_names}
                values |= dict(zip(outputs, run.run(feeds, outputs), strict=True))
            for name in kept & made:
                self.shelf.put(name, number, values[name])
            yield values
        self.shelf.drop(shelved - kept)

    def _still_read(self, model: Model, names: set[str]) -> set[str]:
        """Values that a node that has not run reads, or that a later step asks for."""
        found = set().union(*self.later) & names
        for node in model.nodes:
            if node.key not in self._done:
                found |= names.intersection(reads(node))
        return found


def reads(node: Node) -> set[str]:
    """What a node needs, its bodies included."""
    inner = (name for body in bodies(node.proto) for name in free_names(body))
    return {*filter(None, node.inputs), *inner}


def nth(node: Node, slot: int) -> str:
    """What an output is called; one that the node does not hand out can be asked for, too."""
    return node.outputs[slot] or f"{node.key}/output {slot}"


def names_of(node: Node) -> list[str]:
    """What all outputs are called."""
    return [nth(node, slot) for slot in range(len(node.outputs))]


def needed(model: Model, names: Iterable[str], known: set[str]) -> list[Node]:
    """Nodes that make these values from known ones, in order."""
    wanted, found = set(names), []
    for node in reversed(model.nodes):
        if wanted.intersection(names_of(node)):
            wanted |= reads(node) - known
            found.append(node)
    return found[::-1]


def part(
    model: Model, nodes: Sequence[Node], outputs: Sequence[str], known: Mapping[str, Array]
) -> ModelProto:
    """A model of some nodes; known values that they read are its inputs."""
    read = {name for node in nodes for name in reads(node)}
    proto, source = ModelProto(), model.proto
    copy_fields(source, proto, {"graph"})
    copy_fields(source.graph, proto.graph, {"node", "initializer", "input", "output", "value_info"})
    proto.graph.node.extend(node.proto for node in nodes)
    for node, made in zip(nodes, proto.graph.node, strict=True):
        for slot, name in enumerate(names_of(node)):
            made.output[slot] = name if name in outputs else node.outputs[slot]
    proto.graph.initializer.extend(t for t in source.graph.initializer if t.name in read)
    inputs = [info for info in source.graph.input if info.name in read]
    proto.graph.input.extend(inputs)
    own = {info.name for info in inputs} | model.initializers.keys()
    for name in sorted((read & known.keys()) - own):
        info = ValueInfoProto(name=name)
        kind = helper.np_dtype_to_tensor_dtype(known[name].dtype)
        info.type.tensor_type.elem_type = kind
        proto.graph.input.append(info)
    proto.graph.output.extend(ValueInfoProto(name=n) for n in outputs)
    return proto
