"""Samples and labels: read from files, folders, images or a function."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from onnx import ValueInfoProto

from onnxprune.backend.runtime import Array, Spec
from onnxprune.errors import DataError, FileError, UsageError, did_you_mean
from onnxprune.samples import images
from onnxprune.samples.dataset import Dataset, batch_axes, check
from onnxprune.samples.images import ImageOptions

__all__ = ["Dataset", "ImageOptions", "load", "named_function"]

Source = str | Path | Mapping[str, Array] | Iterable[Any]

LABELS = ("labels", "label", "y")

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load(
    source: Source,
    inputs: Sequence[Spec | ValueInfoProto],
    *,
    limit: int | None = None,
    seed: int = 0,
    image_options: ImageOptions | None = None,
) -> Dataset:
    """Read data and check it against the graph's inputs.

    Args:
        source: an .npz file; a folder of .npz files, of one .npy file per input, or of images;
            `module:function`, called for an iterable of `{input: array}` or pairs of it with
            labels; or the arrays or such an iterable themselves.
        limit: take so many samples, drawn by `seed`; from an iterable the first ones.

    Raises:
        DataError: it does not fit the graph.
        FileError: it cannot be read.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit} samples", hint="take at least 1")
    specs = [item if isinstance(item, Spec) else Spec.of(item) for item in inputs]
    options = image_options or ImageOptions()
    arrays, labels = _read(source, specs, options, limit, seed)
    return _limited(check(arrays, labels, specs), limit, seed)


def _limited(data: Dataset, limit: int | None, seed: int) -> Dataset:
    if limit is None or limit >= data.n:
        return data
    if data.batch and limit < data.batch:
        raise DataError(
            f"a limit of {limit} samples is less than the graph's batch of {data.batch}",
            hint=f"raise the limit to {data.batch}",
        )
    return data.subset(np.sort(np.random.default_rng(seed).choice(data.n, limit, replace=False)))


Read = tuple[dict[str, Array], Array | None]


def _read(
    source: Source, specs: list[Spec], options: ImageOptions, limit: int | None, seed: int
) -> Read:
    if isinstance(source, Mapping):
        return _unlabelled({name: np.asarray(a) for name, a in source.items()}, specs)
    if not isinstance(source, (str, Path)):
        return _from_iterable(source, specs, limit)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, specs, options, limit, seed)
    if path.is_file():
        return _unlabelled(_from_npz(path), specs)
    if _FUNCTION.fullmatch(str(source)):
        return _from_iterable(_called(str(source)), specs, limit)
    raise FileError(
        f"there is no data at `{source}`", hint="give a file, a folder, or `module:function`"
    )


def _called(spec: str) -> Iterable[Any]:
    """What a function of the user's gives."""
    function = named_function(spec)
    try:
        found = function()
        iter(found)
    except Exception as error:  # whatever the user's code raises
        raise DataError(
            f"`{spec}()` gives no samples: {type(error).__name__}: {error}",
            hint="it is called without arguments, for an iterable of {input: array}",
        ) from error
    return cast("Iterable[Any]", found)


def named_function(spec: str) -> Callable[..., Any]:
    """The function named `module:function`; the working folder is searched first.

    Raises: UsageError: there is none of that name.
    """
    module, _, name = spec.partition(":")
    with _working_folder_first():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"`{spec}`: {error}", hint="run it where the module lies") from error
    found = getattr(loaded, name, None)
    if not callable(found):
        public = [key for key, value in vars(loaded).items() if callable(value) and key[0] != "_"]
        hint = did_you_mean(name, public) if public else ""
        raise UsageError(f"`{module}` has no function `{name}`", hint=hint)
    function: Callable[..., Any] = found
    return function


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Console scripts do not search the working folder, where the user's module lies."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load_file(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise FileError(
            f"the data cannot be read: {error}",
            where=str(path),
            hint="write it with numpy.savez or numpy.save, without Python objects",
        ) from error


def _from_npz(path: Path) -> dict[str, Array]:
    opened = _load_file(path)
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise DataError(
            "one array does not say which input it is for",
            where=str(path),
            hint="give an .npz file, or the folder of .npy files named after the inputs",
        )
    with opened:
        try:
            return {name: opened[name] for name in opened.files}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise FileError(f"the data cannot be read: {error}", where=str(path)) from error


def _from_folder(
    folder: Path, specs: list[Spec], options: ImageOptions, limit: int | None, seed: int
) -> Read:
    single, packed = sorted(folder.glob("*.npy")), sorted(folder.glob("*.npz"))
    if single and packed:
        raise DataError("the folder holds .npy and .npz files", where=str(folder), hint="keep one")
    if single:
        return _unlabelled({path.stem: _load_file(path) for path in single}, specs)
    if packed:
        return _from_iterable((_from_npz(path) for path in packed), specs, None)
    found = images.find(folder)
    if not found:
        raise DataError(
            "the folder holds no .npz, .npy or image files",
            where=str(folder),
            hint=f"images end in {', '.join(sorted(images.SUFFIXES))}",
        )
    labels = images.class_numbers([name for _, name in found])
    rows = np.arange(len(found))
    if limit is not None and limit < len(found):
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    arrays = images.read([found[row][0] for row in rows], specs, options)
    return arrays, None if labels is None else labels[rows]


def _unlabelled(arrays: dict[str, Array], specs: list[Spec]) -> Read:
    """Arrays without the one that holds labels, and that one; an input may be named `y`."""
    names = {spec.name for spec in specs}
    found = next((name for name in LABELS if name in arrays and name not in names), None)
    rest = {name: array for name, array in arrays.items() if name != found}
    return rest, None if found is None else arrays[found]


def _from_iterable(items: Iterable[Any], specs: list[Spec], limit: int | None) -> Read:
    """Batches or single samples joined along the first axis."""
    parts: list[dict[str, Array]] = []
    labels: list[Array] = []
    axes = batch_axes(specs)[0]
    count = 0
    for item in items:
        arrays, given = _one(item, specs)
        parts.append(arrays)
        labels += [given] if given is not None else []
        sampled = [a for name, a in arrays.items() if axes.get(name) is not None and a.ndim]
        count += max(map(len, sampled), default=1)
        if limit is not None and count >= limit:
            break
    if not parts:
        raise DataError("the data is empty", hint="give at least one sample")
    if len({frozenset(part) for part in parts}) > 1 or len(labels) not in (0, len(parts)):
        raise DataError("some parts of the data name other arrays than the first part")
    joined = {
        name: _joined(name, [part[name] for part in parts], axes.get(name, 0)) for name in parts[0]
    }
    return joined, _concatenated("labels", labels) if labels else None


def _one(item: Any, specs: list[Spec]) -> Read:
    """One item of an iterable: a mapping, or a pair of it with labels."""
    pair = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(pair[0], Mapping):
        raise DataError(
            f"the data yields {type(item).__name__}, not `{{input: array}}`",
            hint="yield a dict of arrays by input name, or a pair of it with labels",
        )
    arrays, labels = _unlabelled({k: np.asarray(v) for k, v in pair[0].items()}, specs)
    rank = {spec.name: len(spec.shape) for spec in specs if spec.shape is not None}
    batched = {
        name: array[None] if array.ndim == rank.get(name, array.ndim) - 1 else array
        for name, array in arrays.items()
    }
    return batched, np.atleast_1d(np.asarray(pair[1])) if pair[1] is not None else labels


def _joined(name: str, parts: list[Array], axis: int | None) -> Array:
    if axis is None and all(np.array_equal(parts[0], part) for part in parts[1:]):
        return parts[0]
    return _concatenated(name, parts)


def _concatenated(name: str, parts: list[Array]) -> Array:
    if len({(part.shape[1:], part.dtype) for part in parts}) > 1 or not all(
        part.ndim for part in parts
    ):
        raise DataError(
            f"the parts of `{name}` differ in shape or dtype",
            where=", ".join(sorted({f"{p.shape[1:]} {p.dtype}" for p in parts})[:4]),
            hint="pad them to one shape",
        )
    return np.concatenate(parts)
