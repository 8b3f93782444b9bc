"""Models whose streams are turned, so that the channels which stay are the best directions.

The turned original computes what it did. Where a cut keeps k of d channels, these hold the k best
directions; where layer norms take the mean away, the k - 1 best, and what they have in common is
nothing that a norm would see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.backend.threads import one_thread
from onnxprune.cleanup.cleaning import with_weights
from onnxprune.cutting.compact import takes
from onnxprune.damage.directions import directions, folded, helmert
from onnxprune.damage.follow import find_streams
from onnxprune.damage.streams import Kind, Sight, Turnable
from onnxprune.damage.sums import Sums, gather
from onnxprune.identity.dims import BoolArray, Dims
from onnxprune.identity.ties import Slot
from onnxprune.model.graph import Model
from onnxprune.readers.stats import Array, FloatArray, total
from onnxprune.readers.view import View
from onnxprune.samples.dataset import Dataset
from onnxprune.shape.shapes import Shapes


@dataclass(frozen=True, eq=False)
class Rotation:
    """A stream with the matrix that turns it."""

    stream: Turnable
    matrix: FloatArray
    """Shape (channels, channels): orthogonal, and true to the mean where that is taken away."""
    scales: tuple[float, ...]
    """What each sight is to multiply what stays by, as the cut model normalises it."""


def rotated(
    original: Model,
    thin: Model,
    shapes: Shapes,
    dims: Dims,
    alive: BoolArray,
    views: Mapping[str, View],
    folds: Sequence[Dataset],
    seed: int,
    custom_ops: Sequence[str] = (),
) -> tuple[Model, Model]:
    """The original and its cut form, with the streams turned that lost channels.

    Args:
        alive: shape (channels,).
        views: readers of the original.
    """
    streams = [
        stream
        for index, stream in find_streams(original, dims, views).items()
        if 1 < alive[dims.dims[index].channels].sum() < len(dims.dims[index].channels)
        and _lines_up(original, thin, dims, alive, stream)
    ]
    keys = [key for stream in streams for key in stream.keys]
    if not keys:
        return original, thin
    with one_thread():
        sums = gather(original, shapes, [views[k] for k in keys], folds, seed, custom_ops)
        turned = [
            _rotation(stream, alive[dims.dims[stream.dim].channels], sums)
            for stream in streams
            if sums.keys() >= {*stream.keys}
        ]
        whole = dict[Slot, Array]()
        for one in turned:
            _turn(original, one, whole)
    cut = {slot: _sliced(dims, alive, slot, array) for slot, array in whole.items()}
    for one in turned:
        factors = dict[Slot, float]()
        for sight, scale in zip(one.stream.sights, one.scales, strict=True):
            at = [sight.scale_at] if sight.scale_at else [use.slot for use in sight.reads]
            factors = dict.fromkeys(at, scale) | factors  # two sights may share a scale
        cut |= {slot: cut[slot] * factor for slot, factor in factors.items()}
    return with_weights(original, whole), with_weights(thin, cut)


def _slots(stream: Turnable) -> list[Slot]:
    """All uses of stored tensors that a turn changes."""
    found = [use.slot for use in stream.writes]
    for sight in stream.sights:
        found += [at for at in (sight.scale_at, sight.shift_at) if at]
        found += [use.slot for use in sight.reads]
    return found


def _lines_up(
    original: Model, thin: Model, dims: Dims, alive: BoolArray, stream: Turnable
) -> bool:
    """True where the cut model's tensors are the original's, in their order."""
    before, after = _arrays(original, _slots(stream)), _arrays(thin, _slots(stream))
    return before.keys() == after.keys() and all(
        np.array_equal(_sliced(dims, alive, slot, array), after[slot])
        for slot, array in before.items()
    )


def _arrays(model: Model, slots: Sequence[Slot]) -> dict[Slot, Array]:
    """Stored tensors by their uses."""
    wanted = {*slots}
    return {
        (node.key, slot): model.array(name)
        for node in model.nodes
        for slot, name in enumerate(node.inputs)
        if (node.key, slot) in wanted and name in model.initializers
    }


def _sliced(dims: Dims, alive: BoolArray, slot: Slot, array: Array) -> Array:
    """What a cut leaves of a stored tensor."""
    for take in takes(dims.ties.sources[slot].fields, array.shape, alive[dims.of]):
        array = take.apply(array)
    return array


# --- the matrix -----------------------------------------------------------------------------------


def _rotation(stream: Turnable, kept: BoolArray, sums: Mapping[str, Sums]) -> Rotation:
    weights = {key: sums[key].weights for key in stream.keys}
    found, left = directions(stream, weights, sums), int(kept.sum())
    best = found[:, : left - stream.spare]
    scales = [_scale(sight, best, left, sums) for sight in stream.sights]
    if stream.spare:
        return Rotation(stream, frame(kept) @ found.T + 1 / len(kept), tuple(scales))
    matrix = np.empty_like(found)
    matrix[kept], matrix[~kept] = best.T, found[:, left:].T
    return Rotation(stream, matrix, tuple(scales))


def _scale(sight: Sight, best: FloatArray, left: int, sums: Mapping[str, Sums]) -> float:
    """What makes up for a norm that sees less, in fewer channels."""
    seen = folded(sight.plain(total(sums[sight.keys[0]].folds)).aa, len(sight.scale))
    if sight.kind is Kind.PLAIN or not seen.any():
        return 1.0
    stays = float(np.einsum("ck,cd,dk->", best, seen, best, optimize=True))
    return float(np.sqrt(stays / np.trace(seen) * len(seen) / left))


def frame(kept: BoolArray) -> FloatArray:
    """An orthonormal basis of what has no mean, which puts its first vectors into kept channels.

    The last one tells the kept channels from the others: it is the same in all of them.

    Returns: shape (channels, channels - 1).
    """
    count, left = len(kept), int(kept.sum())
    found = np.zeros((count, count - 1))
    found[kept, : left - 1] = helmert(left)
    found[~kept, left - 1 : count - 2] = helmert(count - left)
    found[:, -1] = np.where(kept, 1 / left, -1 / (count - left))
    found[:, -1] /= np.linalg.norm(found[:, -1])
    return found


def _turn(model: Model, one: Rotation, found: dict[Slot, Array]) -> None:
    """Note what tensors hold in the turned original."""
    stream, matrix = one.stream, one.matrix
    stored = _arrays(model, _slots(stream)) | found
    own = matrix - matrix.mean(axis=1, keepdims=True) if stream.spare else matrix
    for use in stream.writes:
        found[use.slot] = _along(own, stored[use.slot], use.axis)
    for sight in stream.sights:
        if sight.scale_at:
            found[sight.scale_at] = np.ones_like(stored[sight.scale_at])
        if sight.shift_at:
            moved = matrix @ (sight.shift / sight.scale)
            found[sight.shift_at] = moved.reshape(stored[sight.shift_at].shape)
        for use in sight.reads:
            found[use.slot] = _along(matrix * sight.scale, stored[use.slot], use.axis)


def _along(matrix: FloatArray, array: Array, axis: int) -> Array:
    """A tensor with one axis multiplied by a matrix."""
    made: Array = np.moveaxis(np.tensordot(matrix, array.astype(np.float64), (1, axis)), 0, axis)
    return made
