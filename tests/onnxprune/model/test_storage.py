"""Files are read whole or refused with a reason, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.errors import FileError, ModelError, PruneError
from onnxprune.model import storage
from onnxprune.model.graph import Model
from onnxprune.model.storage import check_target, load, save, write_whole
from tests.builder import Builder
from tests.oracle import run

ROOT = Path(__file__).parents[3]
X = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}


def built(seed: int = 0) -> ModelProto:
    """A dense layer of 4 KB, a bias of 128 bytes, and weights in other forms."""
    b = Builder(seed)
    y = b.node("Add", b.node("MatMul", "x", b.weight(32, 32)), b.weight(32))
    values = b.rng.standard_normal(1024).tolist()
    b.weights.append(helper.make_tensor("typed", TensorProto.FLOAT, [32, 32], values))
    b.weights[-1].doc_string = "why"
    b.weights[-1].metadata_props.add(key="k", value="v")
    y = b.node("MatMul", y, "typed")
    held = numpy_helper.from_array(b.rng.standard_normal((32, 32)).astype(np.float32))
    b.nodes.append(helper.make_node("Constant", [], ["held"], value=held))
    return b.model({"x": ["n", 32]}, {b.node("MatMul", y, "held"): ["n", 32]})


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A saved model whose large weights lie beside it."""
    path = tmp_path / "m.onnx"
    save(load(built()), path, limit=0)
    return path


def edit(path: Path, key: str, value: str) -> None:
    """Change where the first external weight is said to lie."""
    proto = ModelProto.FromString(path.read_bytes())
    tensor = next(t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in entries.items():
        tensor.external_data.add(key=name, value=text)
    path.write_bytes(proto.SerializeToString())


# --- there and back ----------------------------------------------------------------------------


MODELS = sorted((ROOT / "models").glob("*/model.onnx"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_one_file_comes_back_field_by_field(path: Path, tmp_path: Path) -> None:
    """What was loaded and saved is equal, and saved again has the same bytes."""
    model = load(path)
    assert model.complete() == ModelProto.FromString(path.read_bytes())
    save(model, tmp_path / "a.onnx")
    again = load(tmp_path / "a.onnx")
    assert again.complete() == model.complete()
    save(again, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_proto_is_taken_as_it_is() -> None:
    """Without a copy, and never changed."""
    proto = built()
    before = proto.SerializeToString(deterministic=True)
    assert load(proto).proto is proto
    assert proto.SerializeToString(deterministic=True) == before


def test_large_weights_lie_beside(external: Path) -> None:
    """Beyond the limit; loaded they are inside again, and nothing else has changed."""
    raw = ModelProto.FromString(external.read_bytes())
    outside = [t.name for t in raw.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert outside == ["w0", "typed"]
    assert (external.parent / "m.onnx.data").stat().st_size == 2 * 4096
    found, source = load(external).complete(), built()
    for a, b in zip(found.graph.initializer, source.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
        assert (a.name, a.dims, a.doc_string, a.metadata_props) == (
            b.name, b.dims, b.doc_string, b.metadata_props)  # fmt: skip
    for proto in (found, source):
        del proto.graph.initializer[:]
    assert found == source


def test_other_readers_find_them(external: Path) -> None:
    """ONNX Runtime, from the path."""
    from onnxprune.backend.runtime import session

    (found,) = session(external).run(X)
    (wanted,) = run(built(), X)
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_proto_with_its_folder(external: Path) -> None:
    """The caller's proto keeps its references; without a folder they cannot be followed."""
    proto = ModelProto.FromString(external.read_bytes())
    before = proto.SerializeToString(deterministic=True)
    assert load(proto, folder=external.parent).complete() == load(external).complete()
    assert proto.SerializeToString(deterministic=True) == before
    with pytest.raises(ModelError, match="folder is not known"):
        load(proto)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    """At the limit all is inside, one byte below it is not."""
    weights = 2 * 4096 + 128
    save(load(built()), tmp_path / "in.onnx", limit=weights)
    save(load(built()), tmp_path / "out.onnx", limit=weights - 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "out.onnx.data"]


# --- external data that is broken or hostile ---------------------------------------------------


EDITS = {
    "missing": ("location", "none.data", "missing"),
    "unnamed": ("location", "", "names no file"),
    "absolute": ("location", "/etc/passwd", "absolute path"),
    "absolute on Windows": ("location", "C:\\secret", "absolute path"),
    "a share": ("location", "\\\\host\\share", "absolute path"),
    "above the folder": ("location", "../m.onnx.data", "outside"),
    "above, in the middle": ("location", "a/../../m.onnx.data", "outside"),
    "a folder": ("location", ".", "missing"),
    "a name too long": ("location", "x" * 5000, "names no file"),
    "a zero byte": ("location", "a\0b", "names no file"),
    "an offset past the end": ("offset", "999999", "ends too early"),
    "a negative offset": ("offset", "-8", "ends too early"),
    "an offset of text": ("offset", "first", "not a number"),
    "a long length": ("length", "999999", "ends too early"),
    "a short length": ("length", "4", "do not fit"),
    "a negative length": ("length", "-4", "ends too early"),
}


@pytest.mark.parametrize(("key", "value", "what"), EDITS.values(), ids=EDITS.keys())
def test_a_wrong_place_is_refused(external: Path, key: str, value: str, what: str) -> None:
    """With the weight's name."""
    edit(external, key, value)
    with pytest.raises(ModelError, match=what) as error:
        load(external)
    assert "`w0`" in error.value.where


def test_truncated_data_is_refused(external: Path) -> None:
    """A download that broke off."""
    data = external.parent / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match="ends too early"):
        load(external)


def test_links_must_stay_inside(external: Path, tmp_path: Path) -> None:
    """A link within the folder is followed, one out of it is not."""
    data = external.parent / "m.onnx.data"
    data.rename(data.with_name("real"))
    data.symlink_to("real")
    load(external)
    outside = tmp_path.parent / f"{tmp_path.name}.outside"
    data.with_name("real").rename(outside)
    data.unlink()
    data.symlink_to(outside)
    with pytest.raises(ModelError, match="outside"):
        load(external)
    outside.unlink()
    data.unlink()
    data.symlink_to("m.onnx.data")  # a loop: from Python 3.13 on a path that is just not there
    with pytest.raises(ModelError, match=r"names no file|is missing"):
        load(external)


# --- files that are no model -------------------------------------------------------------------

NO_MODEL: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "text": (b"<!DOCTYPE html><html></html>", "no ONNX model"),
    "a zip": (b"PK\x03\x04" + bytes(100), "no ONNX model"),
    "cut short": (built().SerializeToString()[:-5], "cut short"),
    "half": (built().SerializeToString()[:3000], "cut short"),
    "a huge record": (b"\x3a\xff\xff\xff\xff\x7f", "cut short"),
    "an endless number": (b"\xff" * 20, "cut short"),
    "a group": (b"\x0b" * 20, "no ONNX model"),
    "no graph": (ModelProto(ir_version=8).SerializeToString(), "no graph"),
}


@pytest.mark.parametrize(("content", "what"), NO_MODEL.values(), ids=NO_MODEL.keys())
def test_what_is_no_model_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    """Each with its own reason."""
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=what):
        load(path)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Whether protobuf refuses the file or hands out bytes for them."""
    raw = built().SerializeToString()
    assert raw.count(b"\x02w1") == 2
    (tmp_path / "a.onnx").write_bytes(raw.replace(b"\x02w1", b"\x02w\xff"))
    with pytest.raises(ModelError):
        load(tmp_path / "a.onnx")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, a pipe that would never end."""
    with pytest.raises(FileError, match="cannot read"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="a folder is no model"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_names(name: str, tmp_path: Path) -> None:
    """Are errors like any other."""
    with pytest.raises(PruneError):
        load(tmp_path / name)
    with pytest.raises(PruneError):
        save(load(built()), tmp_path / name)


# --- writing -------------------------------------------------------------------------------------


def _fails(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def _stops(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("broken", ["_write_proto", "_write_data"])
@pytest.mark.parametrize(
    ("how", "error"), [(_fails, FileError), (_stops, KeyboardInterrupt)], ids=["full", "interrupt"]
)
def test_a_failure_leaves_what_was_there(
    broken: str, how: Callable[..., None], error: type[BaseException], external: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Old model and old data, byte for byte, and no third file."""
    before = {path.name: path.read_bytes() for path in external.parent.iterdir()}
    monkeypatch.setattr(storage, broken, how)
    with pytest.raises(error):
        save(load(built(1)), external, overwrite=True, limit=0)
    assert {path.name: path.read_bytes() for path in external.parent.iterdir()} == before


def test_a_failure_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the data file was in its place already."""
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: _fails() if str(b).endswith(".onnx") else replace(a, b)
    )
    with pytest.raises(FileError, match="no space left") as error:
        save(load(built()), tmp_path / "a.onnx", limit=0)
    assert str(tmp_path / "a.onnx") in error.value.where
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    """Neither the model nor the data beside it."""
    for taken in ("a.onnx", "a.onnx.data"):
        path = tmp_path / taken
        path.write_text("mine")
        with pytest.raises(FileError, match="exists"):
            save(load(built()), tmp_path / "a.onnx", limit=0)
        assert [p.name for p in tmp_path.iterdir()] == [taken]
        assert path.read_text() == "mine"
        path.unlink()


def test_the_new_model_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """Where it may."""
    save(load(built()), tmp_path / "a.onnx")
    save(load(built(1)), tmp_path / "a.onnx", overwrite=True)
    assert load(tmp_path / "a.onnx").complete() == built(1)


def test_targets_are_checked_before_the_work(tmp_path: Path) -> None:
    """An input (by any name), a folder, a folder that is not there."""
    source = tmp_path / "in.onnx"
    source.write_text("in")
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    for name in ("in.onnx", "link.onnx", "hard.onnx", "../" + tmp_path.name + "/in.onnx"):
        with pytest.raises(FileError, match="also an input"):
            check_target(tmp_path / name, [source], overwrite=True)
    with pytest.raises(FileError, match="not a file"):
        check_target(tmp_path)
    with pytest.raises(FileError, match="folder does not exist"):
        check_target(tmp_path / "none" / "a.onnx")
    check_target(tmp_path / "new.onnx", [source])
    assert not (tmp_path / "new.onnx").exists()


def test_other_files_are_written_whole_too(tmp_path: Path) -> None:
    """A writer that fails leaves the old content."""
    path = tmp_path / "a.json"
    write_whole(path, lambda file: _put(file, b"old"))
    with pytest.raises(FileError):
        write_whole(path, _fails, overwrite=True)
    with pytest.raises(FileError, match="exists"):
        write_whole(path, lambda file: _put(file, b"new"))
    assert path.read_bytes() == b"old"
    write_whole(path, lambda file: _put(file, b"new"), overwrite=True)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.json", b"new")]


def _put(file: Any, content: bytes) -> None:
    file.write(content)


def test_packed_types_lie_beside_too(tmp_path: Path) -> None:
    """Two values to a byte, and types that numpy lacks."""
    kinds = {TensorProto.INT4: 7, TensorProto.BFLOAT16: 3, TensorProto.FLOAT8E4M3FN: 2}
    values = {kind: [i % most for i in range(4096)] for kind, most in kinds.items()}
    tensors = [helper.make_tensor(f"t{k}", k, [4096], v) for k, v in values.items()]
    graph = helper.make_graph([], "g", [], [], tensors)
    save(Model(helper.make_model(graph)), tmp_path / "a.onnx", limit=0)
    found = load(tmp_path / "a.onnx")
    for kind, wanted in values.items():
        assert found.array(f"t{kind}").astype(np.float32).tolist() == wanted
