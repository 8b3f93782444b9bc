"""Cuts a framework's checkpoint as a plan cut the model that was exported from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from onnxprune.cutting.compact import Take
from onnxprune.errors import UsageError
from onnxprune.identity.dims import BoolArray
from onnxprune.identity.fields import Shape
from onnxprune.model.graph import Model, needed_bytes
from onnxprune.model.storage import check_target
from onnxprune.model.store import Array, values
from onnxprune.normal.normalize import stored_weights
from onnxprune.normal.origin import NoReplay, Origin
from onnxprune.records.planrecord import PlanFile, WeightEntry
from onnxprune.records.tensorfile import read_tensors, write_tensors

# Axes in another order: convolutions of other frameworks have their channels last.
_MAX_PERMUTED_RANK = 4


@dataclass(frozen=True)
class Match:
    """The tensor of a checkpoint that a source of the model was exported from."""

    tensor: str
    perm: tuple[int, ...]
    """The tensor's axes, in the source's order."""


@dataclass(frozen=True, eq=False)
class Recut:
    """A checkpoint after the cut."""

    arrays: Mapping[str, Array]
    cut: tuple[str, ...]
    """Tensors that lost something."""
    missing: tuple[str, ...]
    """Cut vectors and constants of the model that the checkpoint does not hold."""


def apply_to_file(
    written: PlanFile,
    weights: str | Path,
    out: str | Path,
    *,
    model: Model | None = None,
    overwrite: bool = False,
) -> Recut:
    """Cut a checkpoint file and write one of the same kind.

    Args:
        model: the original; where given, tensors of other names are found by their values.
    Raises:
        UsageError: a cut weight has no counterpart, or the checkpoint cannot be cut alike.
        FileError: a file cannot be read or written.
    """
    check_target(out, [weights], overwrite)
    found = read_tensors(weights)
    if Path(out).suffix.lower() != found.suffix:
        raise UsageError(f"the output is a `{found.suffix}` file", where=str(out))
    made = cut_checkpoint(written, found.arrays, model)
    write_tensors(found.having(made.arrays), out, overwrite=overwrite)
    return made


def cut_checkpoint(
    written: PlanFile, tensors: Mapping[str, Array], model: Model | None = None
) -> Recut:
    """Cut the tensors of a checkpoint.

    Args:
        tensors: by name, as the framework knows them.
        model: the original; where given, tensors of other names are found by their values.
    Raises: UsageError: a cut weight has no counterpart, or the checkpoint cannot be cut alike.
    """
    uses = [_Use(name, entry) for name, entry in written.weights.items()]
    matches = _matches(uses, tensors, model)
    by_tensor: dict[str, list[_Use]] = defaultdict(list)
    for use in uses:
        for name in dict.fromkeys(matches[n].tensor for n in use.names if n in matches):
            by_tensor[name].append(use)
    made = {name: _cut(name, tensors, own, matches) for name, own in by_tensor.items()}
    lost = [use for use in uses if use.entry.takes and not use.is_in(matches)]
    _refuse_lost([use.entry.source for use in lost if use.is_matrix], model)
    cut = tuple(name for name, array in made.items() if array.shape != tensors[name].shape)
    return Recut({**tensors, **made}, cut, tuple(use.entry.source for use in lost))


@dataclass(frozen=True, eq=False)
class _Use:
    """A weight of the cut model."""

    name: str
    entry: WeightEntry

    @property
    def origin(self) -> Origin:
        return self.entry.origin or Origin((self.entry.source,))

    @property
    def names(self) -> tuple[str, ...]:
        return self.origin.sources

    def is_in(self, matches: Mapping[str, Match]) -> bool:
        return all(name in matches for name in self.names)

    @property
    def is_matrix(self) -> bool:
        """True for what a checkpoint must hold: no vector, no constant."""
        return sum(n > 1 for n in self.entry.shape) > 1

    def perm(self, matches: Mapping[str, Match]) -> tuple[int, ...] | None:
        """The tensor's axes in the weight's order; None where it is more than transposed."""
        if len(self.names) != 1:
            return None
        perm = matches[self.names[0]].perm
        for step in self.origin.steps:
            if step["op"] in ("Reshape", "Slice", "Concat", "fold"):
                return None
            if step["op"] == "Transpose":
                if sorted(step["perm"]) != list(range(len(perm))):
                    return None  # the replay says what is wrong
                perm = tuple(perm[axis] for axis in step["perm"])
        return perm


def _refuse_lost(names: Sequence[str], model: Model | None) -> None:
    if not names:
        return
    listed = ", ".join(f"`{name}`" for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise UsageError(
        f"{len(names)} cut weights are not in the checkpoint",
        where=listed,
        hint="give the original model too: tensors are then found by their values"
        if model is None
        else "the export changed these weights (fused a normalisation, say): export without it",
    )


# --- which tensor is which ----------------------------------------------------------------------


def _matches(
    uses: Sequence[_Use], tensors: Mapping[str, Array], model: Model | None
) -> dict[str, Match]:
    """Tensors by name of the source, else by value."""
    wanted = dict.fromkeys(name for use in uses for name in use.names)
    plain = {use.names[0]: use.entry.shape for use in uses if not use.origin.steps}
    found = {
        name: Match(name, _perm(tensors[name].shape, plain.get(name)))
        for name in wanted
        if name in tensors
    }
    if model is None:
        return found
    stored = stored_weights(model)
    left = {name: array for name, array in tensors.items() if name not in found}
    for name in wanted:
        if name in found or name not in stored or needed_bytes(name, stored[name]) == 0:
            continue
        equal = list(_equal(values(stored[name]), left))
        if len({match.tensor for match in equal}) == 1:
            found[name] = equal[0]
    return found


def _perm(shape: Shape, wanted: Shape | None) -> tuple[int, ...]:
    """The order of a tensor's axes; a matrix may be stored transposed."""
    axes = tuple(range(len(shape)))
    return axes[::-1] if len(shape) == 2 and shape != wanted and shape[::-1] == wanted else axes


def _equal(array: Array, tensors: Mapping[str, Array]) -> Iterator[Match]:
    """Tensors that hold the same values, as they are or with their axes in another order."""
    for name, tensor in tensors.items():
        if sorted(tensor.shape) != sorted(array.shape) or tensor.itemsize != array.itemsize:
            continue
        for perm in permutations(range(tensor.ndim)) if tensor.ndim <= _MAX_PERMUTED_RANK else ():
            turned = tensor.transpose(perm)
            if turned.shape == array.shape and _same(turned, array):
                yield Match(name, perm)
                break


def _same(a: Array, b: Array) -> bool:
    """Equal bit by bit; a look at the first row settles most."""
    unsigned = f"u{a.itemsize}"
    if a.ndim > 1 and not _same(a[0], b[0]):
        return False
    return np.array_equal(
        np.ascontiguousarray(a).view(unsigned), np.ascontiguousarray(b).view(unsigned)
    )


# --- one tensor ---------------------------------------------------------------------------------


def _cut(
    tensor: str,
    tensors: Mapping[str, Array],
    uses: Sequence[_Use],
    matches: Mapping[str, Match],
) -> Array:
    """What stays of a tensor.

    Raises: UsageError: its uses want different things, or none that is an array again.
    """
    uses = [use for use in uses if use.is_in(matches)]
    if not any(use.entry.takes for use in uses):
        return tensors[tensor]
    try:
        perms = {use.perm(matches) for use in uses}
        alike = len(perms) == 1 and len({_key(use.entry.takes) for use in uses}) == 1
        if alike and (perm := perms.pop()) is not None:
            return _turned(tensors[tensor], uses[0].entry, perm)
        return _followed(tensor, tensors, uses, matches)
    except NoReplay as error:
        raise UsageError(
            f"`{tensor}` cannot be cut as the model was: {error}",
            where="used as " + ", ".join(f"`{use.name}`" for use in uses),
            hint="export the model again with its weights as they are in the checkpoint",
        ) from error


def _key(takes: Sequence[Take]) -> tuple[tuple[int, tuple[int, ...], bytes], ...]:
    return tuple((take.axis, take.rows, take.kept.tobytes()) for take in takes)


def _turned(array: Array, entry: WeightEntry, perm: Sequence[int]) -> Array:
    """The cut of a tensor that is the weight but for the order of its axes."""
    turned = array.transpose(perm)
    _check_shape(turned, entry)
    for take in entry.takes:
        turned = take.apply(turned)
    return turned.transpose(np.argsort(perm))


def _check_shape(array: Array, entry: WeightEntry) -> None:
    if array.shape != entry.shape:
        what = f"it has the shape {list(array.shape)}, the model's weight {list(entry.shape)}"
        raise NoReplay(what)


def _followed(
    tensor: str, tensors: Mapping[str, Array], uses: Sequence[_Use], matches: Mapping[str, Match]
) -> Array:
    """The cut of a tensor whose values were put together to other weights.

    Each value's position is followed to where the plan takes it or leaves it.
    """
    array = tensors[tensor]
    read, kept = np.zeros(array.size, np.bool_), np.zeros(array.size, np.bool_)

    def start(name: str) -> Array:
        """Positions of this tensor; -1 for those of others."""
        match = matches[name]
        shape = tensors[match.tensor].shape
        own = match.tensor == tensor
        ids = np.arange(array.size).reshape(shape) if own else np.full(shape, -1)
        return ids.transpose(match.perm)

    for use in uses:
        ids = use.origin.replay(start)
        _check_shape(ids, use.entry)
        own_read = _marked(ids, array.size)
        for take in use.entry.takes:
            if (np.diff(take.kept, axis=-1) <= 0).any():
                raise NoReplay("its channels go into another order")
            ids = take.apply(ids)
        own_kept = _marked(ids, array.size)
        if (kept[own_read & read] != own_kept[own_read & read]).any():
            raise NoReplay("layers that share it are cut in different ways")
        read, kept = read | own_read, kept | own_kept
    return _box(array, (kept | ~read).reshape(array.shape))


def _marked(ids: Array, size: int) -> BoolArray:
    found = np.zeros(size, np.bool_)
    found[ids[ids >= 0]] = True
    return found


def _box(array: Array, mask: BoolArray) -> Array:
    """The positions of a mask that is a product of one mask for each axis."""
    axes = range(array.ndim)
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    if not mask[np.ix_(*lines)].all():
        raise NoReplay("what stays is no array")
    return array[np.ix_(*lines)]
