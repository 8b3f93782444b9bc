"""Repairs a cut model from its inputs to its outputs, wave by wave.

Each reader sees what the pruned net gives it now, repairs upstream included, and aims at what
the original gave: errors do not add up from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from onnxprune.backend.threads import one_thread
from onnxprune.cutting.cut import Cut
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.manager import Subject
from onnxprune.model.graph import Model
from onnxprune.readers.find import find_cut_views, find_views
from onnxprune.readers.frontier import Batch, Walk, batches, held, sample
from onnxprune.readers.narrow import MOST_TOGETHER, narrowings
from onnxprune.readers.stats import (
    POSITIONS,
    Array,
    Gatherer,
    IntArray,
    Moments,
    portions,
    positions,
)
from onnxprune.readers.view import Changes
from onnxprune.repair.copies import apart, copied, together
from onnxprune.repair.rotated import rotated
from onnxprune.repair.solve import Affine, Repair, held_out, refit, repair
from onnxprune.repair.targets import Scalable, Solvable, Target, targets
from onnxprune.repair.turned import turned
from onnxprune.samples.dataset import Dataset

# Sums that are gathered together.
MOST_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class Repaired:
    """How many readers were repaired, by what was done to them."""

    kinds: dict[str, int]


def repaired(
    original: Subject,
    made: Cut,
    dims: Dims,
    alive: BoolArray,
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str] = (),
    *,
    copies: bool = False,
) -> tuple[Model, dict[str, Repair]]:
    """A cut model refit to give what the original gave, and what was done to each reader.

    Args:
        alive: shape (channels,).
        copies: a node may get a copy of a small weight that it shares.
    """
    known, slots = original.shapes[0], copied(made.model, original.model) if copies else []
    model, thin = apart(original.model, slots), apart(made.model, slots)
    views = find_views(model, known, dims.ties)
    whole, thin = rotated(model, thin, known, dims, alive, views, folds, seed, custom_ops)
    if whole is not model:
        model, views = whole, find_views(whole, known, dims.ties)
    cut = find_cut_views(thin, made.first, dims.ties, views, alive[dims.of])
    turns = turned(model, known, dims, alive, views, cut, folds, seed, custom_ops)
    less = narrowings(model, views, MOST_TOGETHER, folds, seed, custom_ops)
    waves = targets(model, thin, made.first, dims, alive[dims.of], known, turns, less)
    sweep = Sweep(model, thin, folds, seed, custom_ops)
    return together(sweep.run(waves), made.model, thin), sweep.done


@dataclass(frozen=True, eq=False)
class Seen:
    """Moments of a target, fold by fold."""

    folds: list[Moments]
    apart: list[Moments]
    """Were nothing lost upstream; empty where that cannot be told."""

    def repair(self, target: Target) -> Repair:
        """What becomes of it.

        Errors upstream are noise that a solution shrinks for, its pull strong in the last layers;
        what went is known exactly. It is made up for first, with a pull of its own, and the rest
        pulled towards that (a mobile net at 0.7, 0.6, 0.5 of the MACs: 0.768, 0.664, 0.460; pulled
        towards the sliced reader 0.756, 0.642, 0.438).
        """
        sliced = target.sliced()
        start = refit(self.apart, sliced) if self.apart else None
        return repair(
            self.folds, sliced, may_solve=target.is_full, joins=target.may_shrink, start=start
        )


class Gathered:
    """Sums of a target while samples are looked at, of folds that nobody holds out together."""

    def __init__(self, target: Target, folds: int) -> None:
        self._target = target
        count = min(held_out(_width(target)) + 1, folds)
        self._joined = folds - count
        self._folds = [Gatherer(target.is_full) for _ in range(count)]
        self._apart = [Gatherer(True) for _ in range(count if target.is_apart else 0)]

    def add(
        self, fold: int, before: Mapping[str, Array], after: Mapping[str, Array], at: IntArray
    ) -> None:
        """Some positions of one sample."""
        own = max(fold - self._joined, 0)
        self._folds[own].add(*self._target.rows(before, after, at))
        if self._apart:
            self._apart[own].add(*self._target.rows_apart(before, at))

    def finish(self) -> Seen:
        """Moments of all samples."""
        return Seen(*([one.finish() for one in sums] for sums in (self._folds, self._apart)))


@dataclass(eq=False)
class Sweep:
    """A model under repair."""

    original: Model
    cut: Model
    folds: Sequence[Dataset]
    """Disjoint samples; the last are held out to decide."""
    seed: int = 0
    custom_ops: Sequence[str] = ()
    done: dict[str, Repair] = field(default_factory=dict)
    """What was chosen, by the key of the reader."""

    def run(self, waves: Sequence[Sequence[Target]]) -> Model:
        """The repaired model; the cut one itself where nothing became better."""
        parts = [part for wave in waves for part in portions(wave, _bytes, MOST_BYTES)]
        known = batches(self.folds)
        walks = [
            Walk(known, [{*_names(part, side)} for part in parts], self.custom_ops)
            for side in ("of_original", "of_pruned")
        ]
        changes = Changes(self.cut)
        try:
            with one_thread():
                for part in parts:
                    self._part(part, walks, changes, known)
        finally:
            for walk in walks:
                walk.shelf.close()
        return changes.apply()

    def _part(
        self, part: Sequence[Target], walks: list[Walk], changes: Changes, known: list[Batch]
    ) -> None:
        live = changes.apply()
        now = [target.within(live) for target in part]
        before = walks[0].step(self.original, _names(part, "of_original"))
        again = {t.view.node.key for t in part if isinstance(t, Solvable) and t.view.own}
        after = walks[1].step(live, _names(part, "of_pruned"), again)
        for target, seen in zip(part, self._gather(now, before, after, known), strict=True):
            found = seen.repair(target)
            if found.kind == "sliced" and not target.is_moved:
                self.done.setdefault(target.key, found)
                continue
            self.done[target.key] = found
            target.write(changes, found.line)
            if isinstance(target, Scalable):  # it ran with the old numbers
                walks[1].shelf.change(target.out, partial(_scaled, target.axis, found.line))

    def _gather(
        self,
        part: Sequence[Target],
        before: Iterator[dict[str, Array]],
        after: Iterator[dict[str, Array]],
        known: list[Batch],
    ) -> list[Seen]:
        """What is seen of each target."""
        sums = [Gathered(target, len(self.folds)) for target in part]
        for batch, *values in zip(known, before, after, strict=True):
            count = len(batch.samples)
            for i, number in enumerate(batch.samples.tolist()):
                for target, own in zip(part, sums, strict=True):
                    one = sample(values[0], target.of_original, i, count, target.axes)
                    other = sample(values[1], target.of_pruned, i, count, target.axes)
                    share = held(values[0], target.of_original[0], count, target.axes)
                    at = positions(target.count(one), self.seed, number, share * POSITIONS)
                    if len(at):
                        own.add(batch.fold, one, other, at)
        return [own.finish() for own in sums]


def _names(part: Sequence[Target], side: str) -> list[str]:
    return list(dict.fromkeys(name for target in part for name in getattr(target, side)))


def _scaled(axis: int, line: Affine, array: Array) -> Array:
    shape = [-1 if a == axis else 1 for a in range(array.ndim)]
    scale, shift = (v.reshape(shape).astype(np.float32) for v in (line.weights, line.bias))
    return (array * scale + shift).astype(array.dtype)


def _width(target: Target) -> int:
    """Inputs that are looked at with each other."""
    return len(target.view.columns) if isinstance(target, Solvable) else 0


def _bytes(target: Target) -> int:
    """Of the sums of a target, while they are gathered and solved for."""
    width = _width(target)
    sums = (held_out(width) + 1) * (2 if target.is_apart else 1)
    return (sums + 2) * 8 * width**2
