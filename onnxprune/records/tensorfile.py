"""Checkpoints of frameworks: named arrays in an .npz or a .safetensors file, never a pickle."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onnxprune.errors import FileError, PruneError, UsageError
from onnxprune.identity.fields import Shape
from onnxprune.model.storage import write_whole
from onnxprune.model.store import Array
from onnxprune.records.untrusted import Found, parse_json

# The safetensors library's own limit.
MAX_HEADER_BYTES = 100_000_000

_METADATA = "__metadata__"
# Types that numpy lacks are kept as bytes of their size: they are moved, never computed with.
_KINDS = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
    "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4",
    "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_HINT = "save the checkpoint again"


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A checkpoint as it was read."""

    arrays: Mapping[str, Array]
    suffix: str
    """`.npz` or `.safetensors`."""
    kinds: Mapping[str, str]
    """Element types, as safetensors names them; empty for .npz."""
    metadata: Mapping[str, str]

    def having(self, arrays: Mapping[str, Array]) -> TensorFile:
        """The same file with other values."""
        return replace(self, arrays=arrays)


def read_tensors(path: str | Path) -> TensorFile:
    """Read a checkpoint; a .safetensors file stays on the disk until its values are used.

    Raises:
        UsageError: a file of another kind.
        FileError: it cannot be read, is broken, or holds Python objects.
    """
    path = Path(path)
    try:
        return _suffix(path)[0](path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(f"cannot read the checkpoint: {reason}", where=str(path)) from error
    except PruneError as error:
        raise type(error)(error.what, where=str(path), hint=error.hint) from error


def write_tensors(tensors: TensorFile, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a checkpoint of the kind it was read from.

    Raises: FileError: it cannot be written; what stood there before stays.
    """
    write = _FORMATS[tensors.suffix][1]
    write_whole(path, lambda file: write(tensors, file), overwrite=overwrite)


def _suffix(path: Path) -> tuple[Reader, Writer]:
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"a checkpoint named `*{path.suffix}` cannot be read",
            hint="save it as .safetensors or .npz; pickles run code when they are loaded",
        )
    return found


# --- .npz ----------------------------------------------------------------------------------------


def _read_npz(path: Path) -> TensorFile:
    broken = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with archive as found:
            arrays = {name: found[name] for name in found.files}
    except (*broken, MemoryError, RecursionError) as error:
        raise FileError(f"this is no .npz of numbers: {error}", hint=_HINT) from error
    return TensorFile(arrays, ".npz", {}, {})


def _write_npz(tensors: TensorFile, file: BinaryIO) -> None:
    # numpy's own stamps the time of day on each member and cannot store a name like `file`.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors.arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


# --- .safetensors --------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> TensorFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise FileError("this is no .safetensors file, or it is cut short", hint=_HINT)
        header = file.read(length)
    try:
        entries = Found(parse_json(header), "", FileError, _HINT).entries()
    except ValueError as error:
        raise FileError(f"its header is no JSON: {error}", hint=_HINT) from error
    notes = entries.pop(_METADATA, Found({}, kind=FileError, hint=_HINT)).entries()
    start = 8 + length
    data: Array = np.memmap(path, np.uint8, "r", start) if size > start else np.zeros(0, np.uint8)
    places = {name: _place(one, len(data)) for name, one in entries.items()}
    _check_cover(places, len(data))
    arrays = {
        name: data[begin:end].view(_KINDS[kind]).reshape(shape)
        for name, (kind, shape, begin, end) in places.items()
    }
    kinds = {name: place[0] for name, place in places.items()}
    metadata = {name: note.text() for name, note in notes.items()}
    return TensorFile(arrays, ".safetensors", kinds, metadata)


Place = tuple[str, Shape, int, int]
"""Element type, shape, first byte, byte behind the last."""


def _place(found: Found, size: int) -> Place:
    one = found.fields(("dtype", "shape", "data_offsets"))
    kind, shape = one["dtype"].text(), one["shape"].numbers()
    offsets = one["data_offsets"].numbers(size + 1)
    if kind not in _KINDS:
        one["dtype"].refuse(f"`{kind}` is not known")
    needed = math.prod(shape) * np.dtype(_KINDS[kind]).itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != needed:
        found.refuse(f"has offsets {list(offsets)}, its shape needs {needed} bytes")
    return kind, shape, offsets[0], offsets[1]


def _check_cover(places: Mapping[str, Place], size: int) -> None:
    """Values follow each other without gaps and without sharing bytes."""
    at = 0
    for _, _, begin, end in sorted(places.values(), key=lambda place: place[2:]):
        if begin != at:
            raise FileError("its tensors overlap, or leave gaps", hint=_HINT)
        at = end
    if at != size:
        raise FileError("there are bytes behind its last tensor", hint=_HINT)


def _write_safetensors(tensors: TensorFile, file: BinaryIO) -> None:
    header: dict[str, Any] = {_METADATA: dict(tensors.metadata)} if tensors.metadata else {}
    at = 0
    for name, array in tensors.arrays.items():
        place = {"dtype": tensors.kinds[name], "shape": list(array.shape)}
        header[name] = place | {"data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in tensors.arrays.values():
        file.write(np.ascontiguousarray(array).data if array.size else b"")


Reader = Callable[[Path], TensorFile]
Writer = Callable[[TensorFile, BinaryIO], None]
_FORMATS: dict[str, tuple[Reader, Writer]] = {
    ".npz": (_read_npz, _write_npz),
    ".safetensors": (_read_safetensors, _write_safetensors),
}
