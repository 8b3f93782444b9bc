"""Checkpoints are read value for value, or refused; nothing in them is run."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.errors import FileError, UsageError
from onnxprune.model.store import Array
from onnxprune.records.tensorfile import read_tensors, write_tensors

ARRAYS: dict[str, Array] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "file": np.array(3, np.int64),
    "none": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False, True]),
}
KINDS = {"w": "F32", "file": "I64", "none": "F16", "flags": "BOOL"}
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def packed(header: Any, data: bytes = b"") -> bytes:
    """A .safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sample() -> bytes:
    """One of the arrays, with a note."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in ARRAYS.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": KINDS[name], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    return packed(header, data)


def test_safetensors_come_back(tmp_path: Path) -> None:
    """Read, written, read: names, order, types, values and notes; then the same bytes."""
    (tmp_path / "a.safetensors").write_bytes(sample())
    found = read_tensors(tmp_path / "a.safetensors")
    assert list(found.arrays) == list(ARRAYS)
    assert (dict(found.kinds), dict(found.metadata)) == (KINDS, {"format": "pt"})
    for name, array in ARRAYS.items():
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].shape == array.shape
    write_tensors(found, tmp_path / "b.safetensors")
    again = read_tensors(tmp_path / "b.safetensors")
    assert all(np.array_equal(again.arrays[name], array) for name, array in ARRAYS.items())
    assert (again.kinds, again.metadata) == (found.kinds, found.metadata)
    assert int.from_bytes((tmp_path / "b.safetensors").read_bytes()[:8], "little") % 8 == 0
    write_tensors(again, tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_types_that_numpy_lacks_keep_their_bytes(tmp_path: Path) -> None:
    """A bfloat16 weight is moved as it is."""
    raw = bytes(range(8))
    header = {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    (tmp_path / "a.safetensors").write_bytes(packed(header, raw))
    found = read_tensors(tmp_path / "a.safetensors")
    turned = found.having({"w": found.arrays["w"][::-1]})
    write_tensors(turned, tmp_path / "b.safetensors")
    again = read_tensors(tmp_path / "b.safetensors")
    assert again.kinds["w"] == "BF16"
    assert again.arrays["w"].tobytes() == raw[4:] + raw[:4]


def test_npz_comes_back(tmp_path: Path) -> None:
    """Also an array that is named as an argument of numpy's; twice the same bytes."""
    arrays = {name: array for name, array in ARRAYS.items() if name != "file"}
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_tensors(tmp_path / "a.npz").having(ARRAYS)
    for name in "bc":
        write_tensors(found, tmp_path / f"{name}.npz")
    again = read_tensors(tmp_path / "b.npz").arrays
    assert list(again) == list(ARRAYS)
    assert all(np.array_equal(again[name], array) for name, array in ARRAYS.items())
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()


BROKEN = {
    "empty": b"",
    "short": b"\x01\0",
    "a huge header": struct.pack("<Q", 2**63) + b"{}",
    "a header past the end": struct.pack("<Q", 3) + b"{}",
    "no JSON": packed(b"{"),
    "deep JSON": packed(b"[" * 100_000),
    "a list": packed([]),
    "a name twice": packed(b'{"w": {}, "w": {}}'),
    "an unknown type": packed({"w": F32 | {"dtype": "F3"}}, bytes(4)),
    "no shape": packed({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "a negative shape": packed({"w": F32 | {"shape": [-1]}}, bytes(4)),
    "a huge shape": packed({"w": F32 | {"shape": [2**62, 2**62]}}, bytes(4)),
    "offsets past the end": packed({"w": F32}, bytes(3)),
    "negative offsets": packed({"w": F32 | {"data_offsets": [-4, 0]}}, bytes(4)),
    "offsets that fall": packed({"w": F32 | {"data_offsets": [4, 0]}}, bytes(4)),
    "one offset": packed({"w": F32 | {"data_offsets": [4]}}, bytes(4)),
    "shared bytes": packed({"w": F32, "v": F32}, bytes(4)),
    "a gap": packed({"w": F32 | {"data_offsets": [4, 8]}}, bytes(8)),
    "bytes behind": packed({"w": F32}, bytes(5)),
    "notes that are no text": packed({"__metadata__": {"a": 1}, "w": F32}, bytes(4)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_broken_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    """With the file's name, before any value is read."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError) as error:
        read_tensors(path)
    assert error.value.where == str(path)


class Bomb:
    """Unpickling it would raise something else than a FileError."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it ran')",))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    """Neither inside an .npz nor in place of it."""
    np.savez(tmp_path / "a.npz", w=np.array([Bomb()], object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    for name in "ab":
        with pytest.raises(FileError, match=r"no \.npz"):
            read_tensors(tmp_path / f"{name}.npz")


def test_other_broken_npz_are_refused(tmp_path: Path) -> None:
    """Cut short, empty, or a single array."""
    np.savez(tmp_path / "a.npz", **{"w": ARRAYS["w"]})
    whole = (tmp_path / "a.npz").read_bytes()
    with (tmp_path / "b.npz").open("wb") as file:
        np.save(file, ARRAYS["w"])
    for content in (b"", whole[:-30], whole[:60] + b"\xff" * 40 + whole[100:]):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(FileError):
            read_tensors(tmp_path / "a.npz")
    with pytest.raises(FileError, match="single array"):
        read_tensors(tmp_path / "b.npz")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a", "a.pkl"])
def test_other_kinds_are_refused(name: str, tmp_path: Path) -> None:
    """Without being opened: pickles run code."""
    with pytest.raises(UsageError, match="cannot be read"):
        read_tensors(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    """Of either kind."""
    for suffix in ("npz", "safetensors"):
        with pytest.raises(FileError, match="cannot read the checkpoint"):
            read_tensors(tmp_path / f"none.{suffix}")
