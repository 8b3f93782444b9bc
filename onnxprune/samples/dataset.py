"""Samples and labels that fit a graph: checked, batched, and split into fit, decide, report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.backend.runtime import Array, Spec
from onnxprune.errors import DataError, did_you_mean

IntArray = npt.NDArray[np.int64]

# The rest is for the report.
FIT, DECIDE = 0.6, 0.2

# With fewer, what is fitted holds for no other sample.
LEAST_SAMPLES = 20

# Rows looked at together for numbers that are not finite: the data may be larger than memory.
ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples that fit the graph's inputs.

    Args:
        arrays: per input, first axis = samples; shared by all subsets.
        constants: inputs that are the same for every sample, as fed.
        axes: per input of `arrays`, where its batch axis lies.
        rows: the samples that belong to this set.
        all_labels: one per sample of `arrays`.
        batch: the graph's batch size where it is fixed; `n` is then a multiple of it.
        is_seeded: drawn, not given: it tells nothing of what the model is for.
    """

    arrays: Mapping[str, Array]
    constants: Mapping[str, Array]
    axes: Mapping[str, int]
    rows: IntArray
    all_labels: Array | None = None
    batch: int | None = None
    warnings: tuple[str, ...] = ()
    is_seeded: bool = False

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def labels(self) -> Array | None:
        """One per sample, or None."""
        return None if self.all_labels is None else self.all_labels[self.rows]

    def subset(self, indices: Sequence[int] | IntArray) -> Dataset:
        """Some of the samples, by position; only whole batches where the graph fixes them."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        whole = len(rows) - len(rows) % (self.batch or 1)
        warnings = self.warnings
        if whole < len(rows):
            dropped = f"{len(rows) - whole} of {len(rows)} samples are left out: the graph takes "
            warnings += (f"{dropped}batches of {self.batch}",)
        return replace(self, rows=rows[:whole], warnings=warnings)

    def batches(
        self, size: int, indices: Sequence[int] | IntArray | None = None
    ) -> Iterator[dict[str, Array]]:
        """Feeds of `size` samples each, the last may be smaller.

        Where the graph fixes the batch, its size is taken instead.
        """
        chosen = self if indices is None else self.subset(indices)
        step = self.batch or size
        for start in range(0, chosen.n, step):
            yield self._feeds(chosen.rows[start : start + step])

    def _feeds(self, rows: IntArray) -> dict[str, Array]:
        feeds = dict(self.constants)
        for name, array in self.arrays.items():
            taken = np.asarray(array[rows])
            axis = self.axes[name]
            feeds[name] = np.ascontiguousarray(np.moveaxis(taken, 0, axis)) if axis else taken
        return feeds

    def shapes(self, size: int = 1) -> dict[str, tuple[int, ...]]:
        """Shape of every input at a batch of `size` (or the graph's own)."""
        rows = np.resize(self.rows, self.batch or size)
        return {name: array.shape for name, array in self._feeds(rows).items()}

    def feed_hash(self, found: Any, *, labels: bool) -> None:
        """Give the samples, in their order, to a hash."""
        for name, array in sorted(self.constants.items()):
            found.update(f"{name}:{array.dtype}{array.shape};".encode() + array.tobytes())
        parts = dict(self.arrays)
        if labels and self.all_labels is not None:
            parts[""] = self.all_labels  # no input has this name
        for name, array in sorted(parts.items()):
            for start in range(0, self.n, ROWS_AT_ONCE):
                part = np.asarray(array[self.rows[start : start + ROWS_AT_ONCE]])
                found.update(f"{name}:{part.dtype}{part.shape};".encode() + part.tobytes())

    def split(self, seed: int) -> tuple[Dataset, Dataset, Dataset]:
        """Fit (60%), decide (20%) and report (20%), disjoint, drawn by seed.

        Raises: DataError: fewer than 3 samples (or batches, where the graph fixes them).
        """
        unit = self.batch or 1
        count = self.n // unit
        if count < 3:
            raise DataError(
                f"{self.n} samples are too few to split into fit, decide and report",
                where=f"the graph takes batches of {unit}" if unit > 1 else "",
                hint=f"give at least {3 * unit} samples, better some hundred",
            )
        order = np.random.default_rng(seed).permutation(self.n)[: count * unit]
        decide = max(1, round(count * DECIDE)) * unit
        fit = max(unit, round(count * FIT) * unit)
        fit = min(fit, count * unit - decide - unit)
        parts = np.split(order, [fit, fit + decide])
        first, second, third = (self.subset(np.sort(part)) for part in parts)
        return first, second, third

    def with_rows_of(self, other: Dataset) -> Dataset:
        """These samples and those of another set of the same arrays, in their order."""
        return replace(self, rows=np.sort(np.concatenate([self.rows, other.rows])))


def fingerprint(parts: Sequence[Dataset], *, labels: bool = False) -> str:
    """SHA-256 of some sets of samples, as hexadecimal text."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part.n} samples;".encode())
        part.feed_hash(found, labels=labels)
    return found.hexdigest()


def batch_axes(specs: Sequence[Spec]) -> tuple[dict[str, int | None], int | None]:
    """Where the batch axis of each input lies (None: it has none), and its size if fixed."""
    firsts = [spec.shape[0] for spec in specs if spec.shape]
    if firsts and all(isinstance(first, int) for first in firsts):
        fixed = int(firsts[0] or 0)
        return {s.name: 0 if s.shape and s.shape[0] == fixed else None for s in specs}, fixed
    names = [a for spec in specs for a in spec.shape or () if isinstance(a, str)]
    named = [name for name in names if "batch" in name.lower()]
    symbol = next(iter([*named, *(first for first in firsts if isinstance(first, str))]), None)
    return {spec.name: _batch_axis(spec, symbol) for spec in specs}, None


def _batch_axis(spec: Spec, symbol: str | None) -> int | None:
    if spec.shape is None:
        return 0
    if symbol is not None and symbol in spec.shape:
        return spec.shape.index(symbol)
    return 0 if spec.shape and not isinstance(spec.shape[0], int) else None


def check(arrays: Mapping[str, Array], labels: Array | None, specs: Sequence[Spec]) -> Dataset:
    """A dataset of arrays that fit the graph's inputs.

    Raises: DataError: names, dtypes, shapes or sample counts do not fit, numbers are not
        finite, or there is nothing.
    """
    _check_names(arrays, specs)
    axes, fixed = batch_axes(specs)
    sampled: dict[str, Array] = {}
    constants: dict[str, Array] = {}
    most = max(
        (len(arrays[n]) for n, axis in axes.items() if axis is not None and arrays[n].ndim),
        default=1,
    )
    for spec in specs:
        array, axis = _cast(arrays[spec.name], spec), axes[spec.name]
        if axis is None or _is_constant(array, most, fixed):
            constants[spec.name] = _constant(array, spec)
        else:
            sampled[spec.name] = _samples(array, spec, axis)
    n = _count(sampled, labels)
    for name, array in (sampled | constants).items():
        _check_finite(name, array)
    if fixed and n < fixed:
        raise DataError(
            f"{n} samples do not fill the graph's batch of {fixed}",
            hint=f"give at least {fixed} samples",
        )
    where = {name: axes[name] or 0 for name in sampled}
    made = Dataset(sampled, constants, where, np.arange(n), labels, fixed)
    return made.subset(np.arange(n))


def _check_names(arrays: Mapping[str, Array], specs: Sequence[Spec]) -> None:
    names = {spec.name for spec in specs}
    missing = sorted(names - set(arrays))
    unknown = sorted(set(arrays) - names)
    if missing:
        raise DataError(
            f"the data has no array for {_listed(missing)}",
            where=f"its arrays: {_listed(sorted(arrays))}",
            hint="name the arrays after the graph's inputs",
        )
    if unknown:
        raise DataError(
            f"the graph has no input {_listed(unknown)}",
            where=f"its inputs: {_listed(sorted(names))}",
            hint=did_you_mean(unknown[0], names) + "; arrays of labels are named `labels`",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _cast(array: Array, spec: Spec) -> Array:
    """The array in the input's dtype; only floats for a smaller float are converted."""
    if spec.dtype is None:
        raise DataError(f"the input `{spec.name}` takes text, sequences or maps, not arrays")
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind == "f" and spec.dtype.name in ("float16", "bfloat16"):
        with np.errstate(over="ignore"):  # what overflows is found as not finite
            return array.astype(spec.dtype)
    raise DataError(
        f"the data for `{spec.name}` is {array.dtype}, the graph takes {spec.dtype}",
        hint=f'convert it: `array.astype("{spec.dtype}")`, if that is what the model means',
    )


def _is_constant(array: Array, most: int, fixed: int | None) -> bool:
    """One row beside many, where one row is what the graph takes each time."""
    return fixed == 1 and array.ndim > 0 and len(array) == 1 < most


def _constant(array: Array, spec: Spec) -> Array:
    """An input without a batch axis, given as it is or as one row."""
    shape = spec.shape or ()
    if array.ndim == len(shape) + 1 and len(array) == 1:
        array = array[0]
    if not _fits(array.shape, shape):
        raise DataError(
            f"the data for `{spec.name}` has shape {array.shape}, the graph takes {_text(shape)}",
            hint="it has no batch axis: give it once, or as one row",
        )
    return array


def _samples(array: Array, spec: Spec, axis: int) -> Array:
    if spec.shape is None and array.ndim:
        return array
    shape = spec.shape or ()
    rest = shape[:axis] + shape[axis + 1 :]
    if not array.ndim or not _fits(array.shape[1:], rest):
        raise DataError(
            f"the data for `{spec.name}` has shape {array.shape}, "
            f"the graph takes {_text(('samples', *rest))}",
            hint="the first axis counts samples; shape or pad the others as the model expects",
        )
    return array


def _fits(shape: tuple[int, ...], asked: Sequence[int | str | None]) -> bool:
    return len(shape) == len(asked) and all(
        size == want for size, want in zip(shape, asked, strict=True) if isinstance(want, int)
    )


def _text(shape: Sequence[int | str | None]) -> str:
    return f"({', '.join(str(axis or '?') for axis in shape)})"


def _count(sampled: Mapping[str, Array], labels: Array | None) -> int:
    """The number of samples, which all arrays and the labels share."""
    counts = {name: len(array) for name, array in sampled.items()}
    if labels is not None:
        if labels.dtype.kind not in "biuf" or not labels.ndim:
            raise DataError(
                f"the labels are {labels.dtype} of shape {labels.shape}",
                hint="give one number per sample: the class, or the value to predict",
            )
        counts["labels"] = len(labels)
        _check_finite("labels", labels)
    if len(set(counts.values())) > 1:
        raise DataError(
            "the arrays differ in their number of samples",
            where=", ".join(f"`{name}` {count}" for name, count in counts.items()),
            hint="the first axis of every array counts samples",
        )
    n = max(counts.values(), default=1)
    if n == 0:
        raise DataError("the data is empty", hint="give at least one sample")
    return n


def _check_finite(name: str, array: Array) -> None:
    if array.dtype.kind in "biu":
        return
    for start in range(0, len(array) if array.ndim else 1, ROWS_AT_ONCE):
        part = np.atleast_1d(array[start : start + ROWS_AT_ONCE] if array.ndim else array)
        bad = ~np.isfinite(part.astype(np.float64))
        if bad.any():
            row = start + int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
            raise DataError(
                f"the data for `{name}` holds numbers that are not finite in {array.dtype}",
                where=f"first in sample {row}",
                hint="leave out such samples, or scale them to the dtype's range",
            )
