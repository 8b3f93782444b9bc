"""Damage curves and orders of all Dims, from one look at the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
from scipy.linalg import LinAlgError

from onnxprune.backend.threads import default_workers, one_thread
from onnxprune.damage.ahead import reads_ahead, root
from onnxprune.damage.bases import Basis, choices, find_bases, losses
from onnxprune.damage.directions import directions
from onnxprune.damage.directions import losses as stream_losses
from onnxprune.damage.follow import find_streams
from onnxprune.damage.obs import RIDGES, Problem, eliminate, lost
from onnxprune.damage.streams import Turnable
from onnxprune.damage.sums import WIDEST, Sums, gather, memory
from onnxprune.identity.dims import BoolArray, Dim, Dims
from onnxprune.model.graph import Model
from onnxprune.planning.damage import Curve
from onnxprune.readers.find import find_views
from onnxprune.readers.narrow import narrowed_views
from onnxprune.readers.stats import FloatArray, IntArray
from onnxprune.readers.view import View
from onnxprune.samples.dataset import Dataset
from onnxprune.shape.shapes import Shapes

# Shares of a Dim's channels that are taken away.
CUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEW_CUTS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.9)
# Readers of more inputs are measured at fewer widths and ridges.
WIDE = 768
MOST_BYTES = 2**30
# Dims with readers of more inputs, or directions of them, are not measured: a matrix of their
# products takes half a gigabyte.
MOST_INPUTS = 8192

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found about one Dim."""

    order: FloatArray
    """Per channel of the Dim: larger is worth more."""
    curve: Curve


@dataclass(eq=False)
class Study:
    """The original, and the samples to study it on."""

    model: Model
    shapes: Shapes
    dims: Dims
    folds: Sequence[Dataset]
    seed: int = 0
    custom_ops: Sequence[str] = ()
    alive: BoolArray | None = None
    """Shape (channels,): what is left in a model that was cut; its views know their columns."""
    views: dict[str, View] = field(default_factory=dict)
    is_ahead: bool = False
    """Errors count by what the next readers make of them, where that is known."""
    workers: int = 0
    """Threads that measure Dims side by side; 0: as many as there are cores, at most 4."""
    _bases: dict[int, list[Basis]] = field(default_factory=dict)
    _streams: dict[int, Turnable] = field(default_factory=dict)
    _behind: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> dict[int, Measured]:
        """Orders and curves of the free Dims that readers were found for, by Dim index."""
        found = self._each(self._study, turns=True)
        return {i: made for i, made in found.items() if np.isfinite(made.curve.damage).all()}

    def orders(self) -> dict[int, FloatArray]:
        """Orders alone, by Dim index: per channel of the Dim, larger is worth more.

        Channels of heads are taken as they are stored, not turned.
        """
        return self._each(self._order, turns=False)

    def _each(self, study: Callable[[Dim, Mapping[str, Sums]], T | None], *, turns: bool) -> (
        dict[int, T]
    ):  # fmt: skip
        self._views = self.views or find_views(self.model, self.shapes, self.dims.ties)
        reads = {d.index: self._reading(d) for d in self.dims.free}
        if self.alive is None and turns:
            self._bases = find_bases(self.model, self.dims, self._views)
            self._streams = find_streams(self.model, self.dims, self._views)
            for index, bases in self._bases.items():
                reads[index] = sorted({*reads[index]}.union(*(b.keys for b in bases)))
        self._looks = self._narrowed()
        reads = {index: keys for index, keys in reads.items() if self._may_be_held(keys)}
        if self.is_ahead:
            reads = {index: self._with_later(keys) for index, keys in reads.items()}
        found: dict[int, T] = {}
        with one_thread():
            for group in self._groups(reads):
                keys = dict.fromkeys(k for index in group for k in reads[index])
                views = [self._looks[k] for k in keys]
                sums = gather(
                    self.model, self.shapes, views, self.folds, self.seed, self.custom_ops
                )
                found |= self._side_by_side(
                    study, {i: [k for k in reads[i] if k in sums] for i in group}, sums
                )
        return found

    def _may_be_held(self, keys: Sequence[str]) -> bool:
        """True where products of all inputs of each reader fit into memory."""
        return all(len(self._looks[key].columns) <= MOST_INPUTS for key in keys)

    def _narrowed(self) -> dict[str, View]:
        """The readers, those that are too wide in fewer directions; a stream's turn as they are."""
        turned = {key for stream in self._streams.values() for key in stream.keys}
        own = {key: view for key, view in self._views.items() if key not in turned}
        return self._views | narrowed_views(
            self.model, own, WIDEST, self.folds, self.seed, self.custom_ops
        )

    def _side_by_side(
        self,
        study: Callable[[Dim, Mapping[str, Sums]], T | None],
        reads: Mapping[int, Sequence[str]],
        sums: Mapping[str, Sums],
    ) -> dict[int, T]:
        """Some Dims; each is measured by itself, so the number of workers changes no figure."""

        def one(index: int) -> T | None:
            return study(self.dims.dims[index], {k: sums[k] for k in reads[index]})

        with ThreadPoolExecutor(self.workers or default_workers()) as pool:
            made = zip(reads, pool.map(one, reads), strict=True)
            return {index: m for index, m in made if m is not None}

    def _reading(self, dim: Dim) -> list[str]:
        return [k for k, v in self._views.items() if (self._owner(dim, v) >= 0).any()]

    def _with_later(self, keys: list[str]) -> list[str]:
        """Readers, and those behind them that read what they give."""
        return [*dict.fromkeys([*keys, *(later for key in keys for later in self._later(key))])]

    def _later(self, key: str) -> list[str]:
        """Keys of the readers behind a reader that read what it gives."""
        if key not in self._behind:
            place, view = self._place, self._views[key]
            self._behind[key] = [
                other
                for other, by in self._views.items()
                if place[by.node.key] > place[view.node.key]
                and reads_ahead(self.dims, view, by)
                and self._may_be_held([other])
            ]
        return self._behind[key]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {node.key: at for at, node in enumerate(self.model.nodes)}

    def _owner(self, dim: Dim, view: View) -> IntArray:
        """Which channel of a Dim each input belongs to, itself or as a row of it."""
        place = np.full(self.dims.count + 1, -1, np.int64)
        place[dim.channels] = np.arange(len(dim.channels))
        columns = view.columns
        channel = np.where(columns >= 0, self.dims.of[columns], -1)
        owner = place[channel]
        while (channel >= 0).any():
            channel = np.where(channel >= 0, self.dims.parent[channel], -1)
            owner = np.where(owner >= 0, owner, place[channel])
        return owner

    def _groups(self, reads: dict[int, list[str]]) -> Iterator[list[int]]:
        """Dims in groups whose readers' moments fit into memory together."""
        group: list[int] = []
        keys = set[str]()
        for index, own in reads.items():
            if not own:
                continue
            size = sum(memory(self._looks[k], len(self.folds)) for k in keys | {*own})
            if group and size > MOST_BYTES:
                yield group
                group, keys = [], set()
            group.append(index)
            keys |= {*own}
        if group:
            yield group

    def _parts(self, dim: Dim) -> list[IntArray]:
        """What is left of each part, as counted in the Dim."""
        ends = np.cumsum([0, *map(len, dim.parts)])
        found = [np.arange(a, b) for a, b in pairwise(ends.tolist())]
        if self.alive is None:
            return found
        stays = self.alive[dim.channels]
        return [part[stays[part]] for part in found if stays[part].any()]

    def _problems(self, dim: Dim, sums: Mapping[str, Sums]) -> list[Problem]:
        owners = {key: self._owner(dim, one.view) for key, one in sums.items()}
        return [
            Problem(self._weighed(one, sums), owners[key], one.folds)
            for key, one in sums.items()
            if (owners[key] >= 0).any()
        ]

    def _weighed(self, one: Sums, sums: Mapping[str, Sums]) -> FloatArray:
        """A reader's weights in units of the damage that its errors do."""
        if self.is_ahead:
            later = [sums[key] for key in self._later(one.view.key) if key in sums]
            if (found := root(self.dims, one.view, later)) is not None:
                made: FloatArray = found @ one.view.weights
                return made
        return one.weights

    def _order(self, dim: Dim, sums: Mapping[str, Sums]) -> FloatArray | None:
        problems = self._problems(dim, sums)
        return _ordered(problems, self._parts(dim), len(dim.channels)) if problems else None

    def _study(self, dim: Dim, sums: Mapping[str, Sums]) -> Measured | None:
        problems = self._problems(dim, sums)
        bases = self._bases.get(dim.index, [])
        if bases and all(basis.keys <= sums.keys() for basis in bases):
            return self._turned(dim, bases, sums)
        if not problems:
            return None
        parts = self._parts(dim)
        order = _ordered(problems, parts, len(dim.channels))
        if order is None:
            return None
        wide = max(len(p.owner) for p in problems) > WIDE
        cuts = FEW_CUTS if wide else CUTS
        gone = [_gone(parts, order, cut) for cut in cuts]
        ridges = RIDGES[1::2] if wide else RIDGES
        left = sum(map(len, parts))
        stream = self._streams.get(dim.index)
        if stream is not None and sums.keys() >= {*stream.keys}:
            damage = self._streamed(stream, sums, [left - len(g) for g in gone], ridges)
        else:
            damage = [sum(lost(p, g, ridges) for p in problems) for g in gone]
        shares = [(left - len(g)) / len(order) for g in gone]
        return Measured(order, Curve(np.array(shares), np.maximum.accumulate(damage)))

    def _streamed(
        self, stream: Turnable, sums: Mapping[str, Sums], kept: Sequence[int],
        ridges: Sequence[float],
    ) -> list[float]:  # fmt: skip
        """Damage where the best directions of a stream stay, whichever channels stand for them."""
        weights = {key: self._weighed(sums[key], sums) for key in stream.keys}
        best = directions(stream, weights, sums)
        return stream_losses(stream, best, weights, sums, kept, ridges)

    def _turned(self, dim: Dim, bases: list[Basis], sums: Mapping[str, Sums]) -> Measured | None:
        """Damage where the best directions stay; which channels stand for them is all the same."""
        parts = self._parts(dim)
        order = 1.0 + np.concatenate([np.arange(len(part))[::-1] for part in parts])
        gone = [_gone(parts, order, cut) for cut in CUTS]
        counts = list(choices(gone, parts))
        try:
            damage = losses(self.model, bases, sums, counts)
        except np.linalg.LinAlgError:
            return None
        shares = [1 - len(g) / len(order) for g in gone]
        return Measured(order, Curve(np.array(shares), np.maximum.accumulate(damage)))


def _ordered(
    problems: Sequence[Problem], parts: Sequence[IntArray], count: int
) -> FloatArray | None:
    """The order in which channels go, largest last; None where the inputs do not vary."""
    try:
        return eliminate(problems, parts, count)
    except LinAlgError:
        return None


def _gone(parts: Sequence[IntArray], order: FloatArray, cut: float) -> IntArray:
    """Channels that a cut of this share takes: the first to go of each part."""
    found = [
        part[np.argsort(order[part], kind="stable")][: round(cut * len(part))] for part in parts
    ]
    return np.concatenate(found)
