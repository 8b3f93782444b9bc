"""Which layers of a cut model are repaired, in which order, and towards what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from onnxprune.cleanup.linear import Linear, linear
from onnxprune.cutting.compact import Take, takes
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.model.graph import Model, Node, bodies, free_names
from onnxprune.readers.find import find_cut_views, find_views
from onnxprune.readers.narrow import MOST_TOGETHER, Narrowing, narrowed
from onnxprune.readers.stats import Array, FloatArray, IntArray
from onnxprune.readers.stream import Stream, stream
from onnxprune.readers.view import Changes, View, channel_rows
from onnxprune.repair.solve import Affine
from onnxprune.repair.turned import Turned
from onnxprune.shape.shapes import Shapes


@dataclass(frozen=True, eq=False)
class Target:
    """Something to repair: a sum that lost inputs, or channels to be scaled one by one."""

    @property
    def key(self) -> str:
        """Names it in a model."""
        raise NotImplementedError

    @property
    def is_full(self) -> bool:
        """True where all inputs are looked at with each other."""
        raise NotImplementedError

    @property
    def may_shrink(self) -> bool:
        """True where the least error is worth more than the variance."""
        return False

    @property
    def of_original(self) -> tuple[str, ...]:
        """Values of the original that are looked at."""
        raise NotImplementedError

    @property
    def of_pruned(self) -> tuple[str, ...]:
        """Values of the pruned net that are looked at."""
        raise NotImplementedError

    @property
    def axes(self) -> Mapping[str, int]:
        """The batch axis of these values, where it is not the first."""
        return {}

    def count(self, before: Mapping[str, Array]) -> int:
        """Positions in one sample."""
        raise NotImplementedError

    def rows(
        self, before: Mapping[str, Array], after: Mapping[str, Array], at: IntArray
    ) -> tuple[Array, Array]:
        """What it sees, and what it should give, at some positions."""
        raise NotImplementedError

    @property
    def is_apart(self) -> bool:
        """True where the loss of inputs can be told from errors upstream."""
        return False

    def rows_apart(self, before: Mapping[str, Array], at: IntArray) -> tuple[Array, Array]:
        """As `rows`, were nothing lost upstream: the original's values of the inputs that stay,
        and what the original gave."""
        raise NotImplementedError

    @property
    def is_moved(self) -> bool:
        """True where it is to be stored even if nothing better is found."""
        return False

    def within(self, live: Model) -> Target:
        """The same with the weights of now, where what it sees depends on them."""
        return self

    def sliced(self) -> Affine:
        """What it computes before anything is fitted."""
        raise NotImplementedError

    def write(self, changes: Changes, line: Affine) -> None:
        """Store what was found."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Solvable(Target):
    """A reader of the cut model that lost inputs."""

    view: View
    origin: View
    """The same reader of the original."""
    kept: BoolArray
    """Shape (outputs of the original,)."""
    stays: BoolArray
    """Shape (inputs of the original,)."""
    stream: Stream | None
    """The sum it joins: what is missing there is what it can make up."""
    turned: Turned | None = None
    """Where heads beside it keep directions instead of channels."""
    lead: BoolArray | None = None
    """Which identities are alive, shape (identities,), where states of the original are to take
    the place of the pruned net's: those it has before its cells are repaired tell little."""

    @property
    def key(self) -> str:
        return self.view.key

    @property
    def is_full(self) -> bool:
        return True

    @property
    def of_original(self) -> tuple[str, ...]:
        more = () if self.stream is None else (self.stream.total,)
        seen = self.origin.seen if self.is_apart else ()
        return (*self.origin.given, *seen, *more)

    @property
    def of_pruned(self) -> tuple[str, ...]:
        more = () if self.stream is None else (self.stream.other,)
        led = () if self.lead is None else self.view.own
        return (*(name for name in self.view.seen if name not in led), *more)

    @property
    def may_shrink(self) -> bool:
        return self.stream is not None or bool(self.view.own)

    @property
    def axes(self) -> Mapping[str, int]:
        return {**self.origin.axes, **self.view.axes}

    def count(self, before: Mapping[str, Array]) -> int:
        return self.origin.count(before)

    def rows(
        self, before: Mapping[str, Array], after: Mapping[str, Array], at: IntArray
    ) -> tuple[Array, Array]:
        if self.lead is not None:
            after = {**after, **self.origin.led(before, self.lead)}
        return self._parted(self.view.inputs(after, at, before), self._wanted(before, after, at))

    def _wanted(
        self, before: Mapping[str, Array], after: Mapping[str, Array], at: IntArray
    ) -> Array:
        """What it should give."""
        if self.stream is None:
            given = self.origin.outputs(before, at)
            return self.turned.wanted(given) if self.turned else given[:, self.kept]
        total = channel_rows(before[self.stream.total], self.stream.axis, at)[:, self.kept]
        other = channel_rows(after[self.stream.other], self.stream.axis, at)
        return self.stream.share(total, other)

    def _parted(self, inputs: Array, wanted: Array) -> tuple[Array, Array]:
        """What is solved for, and what it is to give beside what else the inputs give."""
        return self.view.narrow(inputs), wanted - self.view.beside(inputs)

    @property
    def is_apart(self) -> bool:
        fits = int(self.stays.sum()) == self.view.size
        return fits and not self.stays.all() and self.turned is None and not self.view.own

    def rows_apart(self, before: Mapping[str, Array], at: IntArray) -> tuple[Array, Array]:
        inputs = self.origin.inputs(before, at, before)[:, self.stays]
        return self._parted(inputs, self.origin.outputs(before, at)[:, self.kept])

    @property
    def is_moved(self) -> bool:
        return self.turned is not None

    def within(self, live: Model) -> Target:
        return replace(self, view=self.view.within(live))

    def sliced(self) -> Affine:
        return self.turned.start if self.turned else Affine(self.view.weights, self.view.bias)

    def write(self, changes: Changes, line: Affine) -> None:
        self.view.write(changes, line.weights, line.bias)


@dataclass(frozen=True, eq=False)
class Scalable(Target):
    """A layer whose channels are scaled and shifted one by one."""

    node: Node
    linear: Linear | None
    """None for a BatchNormalization."""
    takes: list[Take]
    """What the cut took from its output."""
    model: Model

    @property
    def key(self) -> str:
        return self.node.key

    @property
    def is_full(self) -> bool:
        return False

    @property
    def of_original(self) -> tuple[str, ...]:
        return (self.out,)

    @property
    def of_pruned(self) -> tuple[str, ...]:
        return (self.out,)

    @property
    def out(self) -> str:
        """What it gives."""
        return self.node.outputs[0]

    @property
    def axis(self) -> int:
        """Channel axis of the output."""
        return 1 if self.linear is None else self.linear.out_axis

    def count(self, before: Mapping[str, Array]) -> int:
        value = before[self.out]
        return int(value.size // max(value.shape[self.axis], 1))

    def rows(
        self, before: Mapping[str, Array], after: Mapping[str, Array], at: IntArray
    ) -> tuple[Array, Array]:
        wanted = before[self.out]
        for take in self.takes:
            wanted = take.apply(wanted)
        seen = channel_rows(after[self.out], self.axis, at)
        return seen, channel_rows(wanted, self.axis, at)

    def sliced(self) -> Affine:
        channels = self.linear.bias.shape if self.linear else self._vector(1).shape
        return Affine(np.ones(channels), np.zeros(channels))

    def _vector(self, slot: int) -> FloatArray:
        assert self.linear is None, "of a BatchNormalization"
        return self.model.array(self.node.inputs[slot]).astype(np.float64)

    def write(self, changes: Changes, line: Affine) -> None:
        if self.linear is None:
            for slot, more in ((1, 0.0), (2, line.bias)):
                stored = changes.array(self.node, slot)
                stored[...] = stored * line.weights + more
            return
        stored = changes.array(self.node, 1)
        by_rows = self.node.op == "Conv" or bool(self.node.attr("transB", 0))
        scale = line.weights.reshape(-1, *[1] * (stored.ndim - 1)) if by_rows else line.weights
        stored *= scale
        bias = self.linear.bias * line.weights + line.bias - self.linear.bias
        changes.add_bias(self.linear, bias, slice(None))


def targets(
    original: Model,
    cut: Model,
    shapes: Shapes,
    dims: Dims,
    alive: BoolArray,
    known: Shapes,
    turns: Mapping[str, Turned],
    less: Mapping[str, Narrowing],
) -> list[list[Target]]:
    """What to repair, wave by wave: targets of a wave do not depend on each other.

    Args:
        alive: shape (identities,).
        shapes, known: of the cut model and of the original.
        turns: readers around heads that keep directions, by key.
        less: of the original's readers that are too wide, by key.
    """
    finder = _Finder(original, cut, shapes, dims, alive, known, turns, less)
    depth = dict.fromkeys((*cut.input_names, *cut.initializers), 0)
    waves: dict[int, list[Target]] = {}
    for node in cut.nodes:
        here = max((depth.get(n, 0) for n in (*node.inputs, *_captured(node))), default=0)
        rounds = finder.of(node, depth)
        for one in chain.from_iterable(rounds):
            if isinstance(one, Solvable) and one.stream is not None:
                here = max(here, depth[one.stream.other])
        for found in rounds:
            waves.setdefault(here, []).extend(found)
            here += 1
        depth.update(dict.fromkeys(node.outputs, here))
    return [waves[level] for level in sorted(waves)]


class _Finder:
    """Targets of one cut, node by node."""

    def __init__(
        self, original: Model, cut: Model, shapes: Shapes, dims: Dims, alive: BoolArray,
        known: Shapes, turns: Mapping[str, Turned], less: Mapping[str, Narrowing],
    ) -> None:  # fmt: skip
        self._turns, self._less = turns, less
        self._original, self._cut, self._shapes, self._known = original, cut, shapes, known
        self._dims, self._alive = dims, alive
        self._views: dict[str, list[View]] = {}
        self._origins = find_views(original, known, dims.ties)
        for view in find_cut_views(cut, shapes, dims.ties, self._origins, alive).values():
            self._views.setdefault(view.node.key, []).append(self._narrowed(view))
        self._thinned = {
            reader.key
            for reader in dims.ties.readers
            if not reader.beside and not alive[reader.field.ids].all()
        }
        self._scaled = set[str]()

    def of(self, node: Node, depth: Mapping[str, int]) -> list[list[Target]]:
        """The targets of a node, round by round."""
        if node.key not in self._original.producer:
            return []
        views = self._views.get(node.key, [])
        is_cut = node.key in self._thinned or any(v.key in self._turns for v in views)
        if views and is_cut and self._is_solvable(views):
            self._scaled.add(node.outputs[0])
            return self._rounds([self._solvable(view, depth) for view in views])
        one = self._scalable(node) if node.outputs[0] else None
        return [[one]] if one else []

    def _rounds(self, found: list[Solvable]) -> list[list[Target]]:
        """What sees its own states sees those of the original first."""
        led = [replace(one, lead=self._alive) if one.view.own else one for one in found]
        return [[*led], [*found]] if any(one.view.own for one in found) else [[*found]]

    def _is_solvable(self, views: list[View]) -> bool:
        return all(v.key in self._origins and len(v.columns) <= MOST_TOGETHER for v in views)

    def _narrowed(self, view: View) -> View:
        """The reader in fewer directions, if it is one to see so."""
        if view.key not in self._less or view.key in self._turns:
            return view
        stays = self._stays(self._origins[view.key].columns)
        fits = int(stays.sum()) == view.size
        return narrowed(view, self._less[view.key].kept(stays)) if fits else view

    def _stays(self, ids: IntArray) -> BoolArray:
        found: BoolArray = np.where(ids >= 0, self._alive[ids], True)
        return found

    def _solvable(self, view: View, depth: Mapping[str, int]) -> Solvable:
        origin = self._origins[view.key]
        kept, stays = self._stays(origin.rows), self._stays(origin.columns)
        found = stream(self._cut, self._shapes, view)
        if found is not None and not (
            found.total in self._original.producer and found.other in depth
        ):
            found = None
        return Solvable(view, origin, kept, stays, found, self._turns.get(view.key))

    def _scalable(self, node: Node) -> Target | None:
        view = None
        if node.op in ("Conv", "Gemm", "MatMul") and not node.domain:
            view = linear(self._cut, self._shapes, node, looks_through=True)
            if view is None or view.is_shared:
                return None
        elif not self._is_norm(node) or node.inputs[0] in self._scaled:
            return None
        self._scaled.add(node.outputs[0])
        fields = self._dims.ties.fields.get(node.outputs[0], ())
        found = takes(fields, self._known.shape[node.outputs[0]], self._alive)
        return Scalable(node, view, found, self._cut)

    def _is_norm(self, node: Node) -> bool:
        """A BatchNormalization that runs as it was trained."""
        cut = self._cut
        stored = all(n in cut.initializers and n not in cut.overridable for n in node.inputs[1:])
        return node.op == "BatchNormalization" and not node.attr("training_mode", 0) and stored


def _captured(node: Node) -> Iterable[str]:
    return (name for body in bodies(node.proto) for name in free_names(body))
