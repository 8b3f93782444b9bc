"""Models in files: read whole or refused with a reason, written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from google.protobuf.message import (  # type: ignore[import-untyped, unused-ignore]
    DecodeError,
    EncodeError,
)
from onnx import ModelProto, TensorProto

from onnxprune.errors import FileError, ModelError
from onnxprune.model.checks import check
from onnxprune.model.graph import Model, needed_bytes, tensors
from onnxprune.model.store import INLINE_BYTES, Array, described, held, put
from onnxprune.model.surgeon import is_graph, to_proto
from onnxprune.model.wire import read_model, tensor_bytes, write_model

# protobuf's own limit is 2 GiB; some room is left for nodes and names.
LIMIT_BYTES = 2**31 - 2**26
# Memory maps of single weights start at page boundaries.
ALIGNMENT = 4096

_LFS_POINTER = b"version https://git-lfs"


def load(source: str | Path | ModelProto | Any, *, folder: str | Path | None = None) -> Model:
    """Read a model, with its external data, and check that it can be worked on.

    A ModelProto is taken as it is, without a copy of its weights, and never changed. An
    `onnx_graphsurgeon.Graph` is exported first.

    Args:
        folder: where the external data of a ModelProto lies.
    Raises:
        FileError: the file is not there or may not be read.
        ModelError: it is no model, is cut short, or its weights are missing or broken.
    """
    kept: list[Array] = []  # until the model holds them
    if is_graph(source):
        source = to_proto(source)
    if isinstance(source, ModelProto):
        proto, base = source, Path(folder) if folder is not None else None
        if any(_is_elsewhere(t) for _, t in tensors(source)):
            proto = ModelProto()
            proto.CopyFrom(source)
    else:
        proto, base = _read(Path(source), kept), Path(source).parent
    if not proto.HasField("graph"):
        raise ModelError("the model has no graph", hint="export it again")
    for name, tensor in tensors(proto):
        if _is_elsewhere(tensor):
            _load_external(name or tensor.name, tensor, base)
    check(proto)
    return Model(proto, base)


def _is_elsewhere(tensor: TensorProto) -> bool:
    """True for a tensor whose values lie in a file."""
    return tensor.data_location == TensorProto.EXTERNAL and held(tensor) is None


def _read(path: Path, kept: list[Array]) -> ModelProto:
    def keep(array: Array, like: TensorProto) -> TensorProto:
        made, apart = put(array, like)
        kept.extend([] if apart is None else [apart])
        return made

    hint = "export or download it again"
    try:
        if path.is_dir():
            raise ModelError("a folder is no model", where=str(path), hint="name the .onnx file")
        if path.exists() and not path.is_file():
            raise ModelError("this is not a regular file", where=str(path))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ModelError("the model file is empty", where=str(path), hint=hint)
            if file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
                raise ModelError(
                    "a Git LFS pointer is no model", where=str(path), hint="git lfs pull"
                )
            proto = read_model(file, size, keep)
    except OSError as error:
        raise FileError(f"cannot read the model: {_reason(error)}", where=str(path)) from error
    except ValueError as error:
        raise ModelError(str(error), where=str(path)) from error
    except DecodeError as error:
        what = "this is no ONNX model, or it is cut short"
        raise ModelError(what, where=str(path), hint=hint) from error
    return proto


def _load_external(name: str, tensor: TensorProto, folder: Path | None) -> None:
    """Take a weight out of its file into the proto."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"weight `{name}`, location `{entries.get('location', '')}`"
    if folder is None:
        raise ModelError(
            "the weights lie in another file, and its folder is not known",
            where=where,
            hint="give the path of the model",
        )
    path = _inside(folder, entries.get("location", ""), where)
    try:
        offset, size = int(entries.get("offset") or 0), path.stat().st_size
        length = int(entries.get("length") or size - offset)
    except ValueError as error:
        raise ModelError("offset or length is not a number", where=where) from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"the external data ends too early: bytes {offset} to {offset + length} of {size}",
            where=where,
            hint="copy the data file again, whole",
        )
    if length != needed_bytes(name, tensor):
        raise ModelError(
            f"{length} bytes of external data do not fit the shape {list(tensor.dims)}",
            where=where,
        )
    try:
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except OSError as error:
        raise FileError(f"cannot read external data: {_reason(error)}", where=where) from error
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file of external data, which must lie in the model's folder."""
    if not location:
        raise ModelError("the external data names no file", where=where)
    foreign = PureWindowsPath(location)
    if Path(location).is_absolute() or foreign.drive or foreign.root:
        raise ModelError(
            "the external data has an absolute path",
            where=where,
            hint="save the model again with a path relative to it",
        )
    try:
        path = (folder / location).resolve()
        is_inside, is_file = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a loop of links
        raise ModelError(f"the external data names no file: {error}", where=where) from error
    if not is_inside:
        raise ModelError(
            "the external data lies outside the model's folder",
            where=where,
            hint="copy the data file beside the model",
        )
    if not is_file:
        raise ModelError(
            "the external data is missing", where=where, hint="copy it beside the model"
        )
    return path


def check_target(
    path: str | Path, inputs: Iterable[str | Path] = (), overwrite: bool = False
) -> None:
    """Refuse a place that cannot be written, before any work is done for it.

    Args:
        inputs: files that are read, which the output must not replace.
    Raises: FileError: it exists, is an input, or its folder cannot be written.
    """
    path = Path(path)
    try:
        if any(_is_same(path, Path(source)) for source in inputs):
            raise FileError(
                "the output is also an input", where=str(path), hint="give the output another name"
            )
        if path.exists() and not path.is_file():
            raise FileError("the output is not a file", where=str(path), hint="name a file")
        if path.exists() and not overwrite:
            raise FileError("the output exists", where=str(path), hint="add --overwrite")
        if not path.parent.is_dir():
            raise FileError(
                "the output's folder does not exist",
                where=str(path.parent),
                hint="make it, or name another",
            )
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, ValueError) as error:
        raise FileError(f"cannot write the output: {_reason(error)}", where=str(path)) from error


def _is_same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))


def save(
    model: Model,
    path: str | Path,
    *,
    overwrite: bool = False,
    limit: int = LIMIT_BYTES,
    beside: Mapping[Path, Callable[[BinaryIO], None]] | None = None,
) -> None:
    """Write a model; what stood there before stays until the new file is whole.

    Args:
        limit: bytes of weights from which on they go to `<name>.data` beside the model.
        beside: writers of files that belong to it: all are written, or none.
    Raises: FileError: it cannot be written; nothing is left behind.
    """
    path = Path(path)
    others = dict(beside or {})
    for target in (path, *others):
        check_target(target, overwrite=overwrite)
    proto = model.proto
    if sum(needed_bytes(t.name, t) for t in proto.graph.initializer) <= limit:
        _replace(others | {path: lambda file: _write_proto(proto, file)}, overwrite)
        return
    data_path = data_file(path)
    moved = [t for t in proto.graph.initializer if _is_moved(t)]
    stubs = {t.name: t for t in _stubs(moved, data_path.name)}
    light = without_weights(proto, lambda t: stubs.get(t.name, t))
    writers = {
        data_path: lambda file: _write_data(moved, file),
        path: lambda file: _write_proto(light, file),
    }
    _replace(others | writers, overwrite)


def data_file(path: Path) -> Path:
    """Where the weights of a large model go."""
    return path.with_name(path.name + ".data")


def write_whole(
    path: str | Path, write: Callable[[BinaryIO], None], *, overwrite: bool = False
) -> None:
    """Write a file of any kind; what stood there before stays until the new one is whole.

    Raises: FileError: it cannot be written; nothing is left behind.
    """
    check_target(path, overwrite=overwrite)
    _replace({Path(path): write}, overwrite)


def without_weights(
    proto: ModelProto, replace: Callable[[TensorProto], TensorProto | None]
) -> ModelProto:
    """A copy of a model with each initializer replaced, or left out, before it is copied."""
    made = ModelProto()
    copy_fields(proto, made, {"graph"})
    copy_fields(proto.graph, made.graph, {"initializer"})
    for tensor in proto.graph.initializer:
        if (kept := replace(tensor)) is not None:
            made.graph.initializer.append(kept)
    return made


def copy_fields(source: Any, target: Any, skip: Container[str]) -> None:
    """Copy a message but for some of its fields, which may be too large to copy."""
    target.SetInParent()
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _is_moved(tensor: TensorProto) -> bool:
    is_text = tensor.data_type == TensorProto.STRING
    return not is_text and needed_bytes(tensor.name, tensor) >= INLINE_BYTES


def _stubs(moved: Iterable[TensorProto], location: str) -> Iterator[TensorProto]:
    """The tensors with a place in the data file instead of their values."""
    offset = 0
    for tensor in moved:
        offset += -offset % ALIGNMENT
        length = needed_bytes(tensor.name, tensor)
        stub = described(tensor)
        stub.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            stub.external_data.add(key=key, value=str(value))
        offset += length
        yield stub


def _write_proto(proto: ModelProto, file: BinaryIO) -> None:
    write_model(file, proto, copy_fields)


def _write_data(moved: Iterable[TensorProto], file: BinaryIO) -> None:
    for tensor in moved:
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.write(tensor_bytes(tensor))


def _replace(writers: dict[Path, Callable[[BinaryIO], None]], overwrite: bool) -> None:
    """Write each file beside its target, then move all of them into place, in order.

    Raises: FileError: a file cannot be written; new files are removed again.
    """
    done: dict[Path, Path] = {}
    placed: list[Path] = []
    target = next(iter(writers))
    try:
        for target, write in writers.items():
            if target.exists() and not overwrite:
                raise FileError("the output exists", where=str(target), hint="add --overwrite")
            done[target] = _write_beside(target, write)
        for target, temporary in done.items():
            is_new = not target.exists()
            os.replace(temporary, target)
            placed += [target] if is_new else []
        placed.clear()
    except (OSError, ValueError, EncodeError) as error:
        raise FileError(f"cannot write: {_reason(error)}", where=str(target)) from error
    finally:
        for leftover in [*done.values(), *placed]:
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def _write_beside(target: Path, write: Callable[[BinaryIO], None]) -> Path:
    """A temporary file in the target's folder."""
    path = target.with_name(f".onnxprune-{secrets.token_hex(8)}.tmp")
    try:
        with path.open("xb") as file:
            write(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the disk"
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:] if text else type(error).__name__
