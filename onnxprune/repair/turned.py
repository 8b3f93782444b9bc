"""Readers around heads that keep directions instead of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.backend.threads import one_thread
from onnxprune.damage.bases import Basis, Turn, added, find_bases, turn
from onnxprune.damage.sums import gather
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.model.graph import Model
from onnxprune.readers.stats import FloatArray
from onnxprune.readers.view import View
from onnxprune.repair.solve import Affine
from onnxprune.samples.dataset import Dataset
from onnxprune.shape.shapes import Shapes


@dataclass(frozen=True, eq=False)
class Turned:
    """A reader of the original in the directions that a cut keeps."""

    mix: FloatArray
    """Shape (outputs kept, outputs): what the cut reader should give, from what it gave."""
    start: Affine
    """What the cut reader computes before anything is fitted."""
    offset: FloatArray
    """Shape (outputs kept,): to be added to what the original's mixed outputs are."""

    def wanted(self, outputs: FloatArray) -> FloatArray:
        """What the cut reader should give. Args: outputs: shape (positions, outputs)."""
        found: FloatArray = outputs @ self.mix.T + self.offset
        return found


def turned(
    model: Model,
    shapes: Shapes,
    dims: Dims,
    alive: BoolArray,
    views: Mapping[str, View],
    cut: Mapping[str, View],
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str] = (),
) -> dict[str, Turned]:
    """Readers to turn, by key, for all heads that lost channels and not all of them.

    Args:
        alive: shape (channels,).
        views, cut: readers of the original and of the cut model.
    """
    bases = [
        basis
        for own in find_bases(model, dims, views).values()
        for basis in own
        if 0 < _kept(dims, basis, alive).sum() < len(dims.dims[basis.dim].parts[basis.part])
    ]
    stays = alive[dims.of]
    lined = {k for b in bases for k in b.keys if k in cut and _lines_up(views[k], cut[k], stays)}
    bases = [basis for basis in bases if basis.keys <= lined]
    keys = sorted({key for basis in bases for key in basis.keys})
    with one_thread():
        sums = gather(model, shapes, [views[k] for k in keys], folds, seed, custom_ops)
        whole = [basis for basis in bases if basis.keys <= sums.keys()]
        turns = [(basis, turn(model, basis, sums)) for basis in whole]
    touched = sorted({key for basis in whole for key in basis.keys})
    return {key: _turned(model, dims, alive, views[key], turns) for key in touched}


def _kept(dims: Dims, basis: Basis, alive: BoolArray) -> BoolArray:
    found: BoolArray = alive[dims.dims[basis.dim].parts[basis.part]]
    return found


def _masks(view: View, stays: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Rows and columns that stay. Args: stays: shape (identities,)."""
    rows = np.where(view.rows >= 0, stays[view.rows], True)
    columns = np.where(view.columns >= 0, stays[view.columns], True)
    return rows, columns


def _lines_up(view: View, cut: View, stays: BoolArray) -> bool:
    """True where the cut reader's weights are the original's, in their order."""
    found = view.weights[np.ix_(*_masks(view, stays))]
    return found.shape == cut.weights.shape and bool(np.array_equal(found, cut.weights))


def _turned(
    model: Model,
    dims: Dims,
    alive: BoolArray,
    view: View,
    turns: Sequence[tuple[Basis, Turn]],
) -> Turned:
    mix, back = np.eye(len(view.rows)), np.eye(len(view.columns))
    for basis, found in turns:
        kept = _kept(dims, basis, alive)
        count = int(kept.sum())
        for (key, rows), forward in zip(basis.made, found.forward, strict=True):
            if key == view.key:
                mix[np.ix_(rows[kept], rows)] = forward[:count]
        if basis.read is not None and basis.read[0] == view.key:
            columns = basis.read[1]
            back[np.ix_(columns, columns[kept])] = found.back[:, :count]
    stays = _masks(view, alive[dims.of])
    behind = added(model, view)
    mix, back = mix[stays[0]], back[:, stays[1]]
    offset = mix @ behind - behind[stays[0]]
    start = Affine(mix @ view.weights @ back, mix @ view.bias + offset)
    return Turned(mix, start, offset)
