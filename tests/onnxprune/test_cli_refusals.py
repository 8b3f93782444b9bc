"""What the command line refuses: one clear message each, and files that stay as they were."""


from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from tests.command import LATENCY_OFF, Call, assert_refused, caller, mlp

MODELS = Path(__file__).resolve().parents[2] / "models"
RESNET = MODELS / "digits_resnet" / "model.onnx"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An MLP of two layers in a file."""
    path = tmp_path / "small.onnx"
    onnx.save(mlp(), str(path))
    return path


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["prun", "a.onnx"], ["no command", "`prune`"]),
        (["prune", "SMALL", "-o", "OUT", "--targt", "macs=0.5"], ["--targt", "--target"]),
        (["prune", "SMALL", "-o", "OUT", "--no-repar"], ["--no-repar", "`--no-repair`"]),
        (["prune", "SMALL", "-o", "OUT"], ["how much", "--target macs=0.5"]),
        (["prune", "SMALL", "--target", "macs=0.5"], ["where to write"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "mac=0.5"], ["`mac`", "`macs`"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=half"], ["NAME=NUMBER"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=50"], ["no share"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--score", "l3"], ["`l3`", "l2"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--shape", "x=8"], ["`x`"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--shape", "x=axb"], ["DIMS"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--shape", "y=1x8"], ["`y`"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--skip", "w9"], ["`w9`"]),
        (["prune", "SMALL", "-o", "OUT", "--exact-only", "--multiple", "0"], ["--multiple"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.01"], ["cannot keep", "raise"]),
        (["prune", "SMALL", "-o", "OUT", "--exact-only", "--target", "macs=0.5"], ["no budget"]),
        (["prune", "SMALL", "-o", "SMALL", "--target", "macs=0.5"], ["also an input"]),
        (["prune", "SMALL", "-o", "/nowhere/out.onnx", "--target", "macs=0.5"], ["folder"]),
        (["prune", "MISSING", "-o", "OUT", "--target", "macs=0.5"], ["cannot read"]),
        (["verify", "SMALL", "SMALL", "--metric", "acuracy"], ["`acuracy`", "`accuracy`"]),
        (["verify", "SMALL", "SMALL", "--provider", "gpu9"], ["`gpu9`"]),
        (["apply", "SMALL", "MISSING", "-o", "OUT"], ["cannot read"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_usage_is_refused_with_a_hint(
    call: Call, small: Path, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    """Each wrong option, name or value gets one message that says what to do; no file appears."""
    before = small.read_bytes()
    places = {"SMALL": small, "OUT": tmp_path / "out.onnx", "MISSING": tmp_path / "no"}
    assert_refused(call(*[places.get(a, a) for a in args]), *words)
    assert small.read_bytes() == before
    assert not (tmp_path / "out.onnx").exists()


def test_an_existing_output_stays(call: Call, small: Path, tmp_path: Path) -> None:
    """Without --overwrite nothing is replaced; with it the new model stands there."""
    out = tmp_path / "out.onnx"
    out.write_bytes(b"mine")
    assert_refused(call("prune", small, "-o", out, "--target", "macs=0.5"), "--overwrite")
    assert out.read_bytes() == b"mine"
    args = ("prune", small, "-o", out, "--target", "macs=0.5", "--overwrite", *LATENCY_OFF)
    assert call(*args).code == 0
    onnx.checker.check_model(str(out))


def test_an_existing_plan_stays(call: Call, small: Path, tmp_path: Path) -> None:
    """The plan's place is checked before any work is done."""
    plan = tmp_path / "out.plan.json"
    plan.write_text("{}")
    ended = call("prune", small, "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert_refused(ended, "out.plan.json")
    assert not (tmp_path / "out.onnx").exists()


def _broken(path: Path, kind: str) -> None:
    whole = mlp().SerializeToString()
    model = mlp()
    if kind == "empty":
        whole = b""
    elif kind == "noise":
        whole = bytes(range(256)) * 8
    elif kind == "truncated":
        whole = whole[: len(whole) // 2]
    elif kind in {"nan", "infinite"}:
        array = numpy_helper.to_array(model.graph.initializer[0]).copy()
        array[0, 0] = np.nan if kind == "nan" else np.inf
        name = model.graph.initializer[0].name
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, name))
        whole = model.SerializeToString()
    elif kind in {"missing data", "escaping data", "absolute data"}:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        places = {"missing data": "gone.bin", "escaping data": "../secret.bin",
                  "absolute data": "/etc/passwd"}  # fmt: skip
        tensor.external_data.add(key="location", value=places[kind])
        whole = model.SerializeToString()
    elif kind == "custom operator":
        model.graph.node[1].domain, model.graph.node[1].op_type = "my.ops", "Mystery"
        model.opset_import.append(helper.make_opsetid("my.ops", 1))
        whole = model.SerializeToString()
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", ["empty"]),
        ("noise", ["no ONNX model"]),
        ("truncated", ["cut short"]),
        ("nan", ["NaN", "`w0`"]),
        ("infinite", ["infinite", "`w0`"]),
        ("missing data", ["missing", "gone.bin"]),
        ("escaping data", ["outside"]),
        ("absolute data", ["absolute"]),
        ("custom operator", ["Mystery"]),
    ],
)
def test_broken_models_are_refused(
    call: Call, tmp_path: Path, kind: str, words: list[str]
) -> None:
    """Each gets its reason; the file stays and nothing is written."""
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(8 * 16 * 4))
    path = folder / "model.onnx"
    _broken(path, kind)
    before = path.read_bytes()
    assert_refused(call("prune", path, "-o", folder / "out.onnx", "--target", "macs=0.5"), *words)
    assert path.read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.zeros((4, 8), np.float32)}, ["`z`", "`x`"]),
        ({"x": np.zeros((4, 9), np.float32)}, ["`x`"]),
        ({"x": np.zeros((4, 8), np.int64)}, ["`x`", "int64"]),
        ({"x": np.full((4, 8), np.nan, np.float32)}, ["not finite"]),
        ({"x": np.zeros((4, 8), np.float32), "labels": np.zeros(3, np.int64)}, ["labels"]),
    ],
    ids=["name", "shape", "dtype", "nan", "labels"],
)
def test_data_that_does_not_fit_is_refused(
    call: Call, small: Path, tmp_path: Path, arrays: dict[str, Any], words: list[str]
) -> None:
    """Names, dtypes and shapes are checked against the graph before anything starts."""
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)
    args = ("-o", tmp_path / "out.onnx", "--target", "macs=0.5", "--data", data)
    ended = call("prune", small, *args)
    assert_refused(ended, *words)
    assert not (tmp_path / "out.onnx").exists()


def test_a_folder_without_write_permission_is_refused(
    call: Call, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is tried before any work is done."""
    import tempfile

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    ended = call("prune", small, "-o", tmp_path / "out.onnx", "--target", "macs=0.5")
    assert_refused(ended, "permission denied")


def test_a_full_disk_leaves_nothing_behind(call: Call, small: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """What could not be written whole is removed; one clear error."""
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = sorted(p.name for p in tmp_path.iterdir())
    ended = call("prune", small, "-o", tmp_path / "out.onnx", "--target", "macs=0.5", *LATENCY_OFF)
    assert_refused(ended, "no space left")
    assert sorted(p.name for p in tmp_path.iterdir()) == before




@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--plan", "OUT"], ["same file"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=.5", "--target", "macs=.6"], ["twice"]),
        (["prune", "SMALL", "-o", "OUT", "--exact-only", "--plan", "P"], ["no plan"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--limit", "3"], ["no data"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--seed", "-1"], ["--seed"]),
        (["prune", "SMALL", "-o", "OUT", "--keep", "w0=9999"], ["16 channels"]),
        (["prune", "SMALL", "-o", "OUT", "--keep", "w0=4.5"], ["whole number"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--score", "l2{"], ["brace"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--data", "numpy:zeros"],
         ["numpy:zeros", "without arguments"]),
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--image-size", "3x4x5"], ["HxW"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    call: Call, small: Path, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    """Nothing is taken silently for something else; no file appears."""
    places = {"SMALL": small, "OUT": tmp_path / "out.onnx", "P": tmp_path / "p.json"}
    assert_refused(call(*[places.get(a, a) for a in args]), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.onnx"]


def test_a_candidate_that_fails_exits_with_3(call: Call, small: Path, tmp_path: Path) -> None:
    """Another interface is a failure without any gate."""
    other = tmp_path / "other.onnx"
    model = mlp()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "renamed"
    onnx.save(model, str(other))
    assert call("verify", small, other, *LATENCY_OFF).code == 3


def test_the_python_functions_refuse_alike(small: Path) -> None:
    """One clear error for values of the wrong kind."""
    half = {"macs": 0.5}
    wrong: list[dict[str, Any]] = [
        {"target": 0.5}, {"target": {"macs": "x"}}, {"target": half, "score": 3}
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(onnxprune.PruneError):
            onnxprune.prune(small, **given)
    for model in (None, b"bytes", 3):
        with pytest.raises(onnxprune.PruneError, match="is no model"):
            onnxprune.prune(model, target={"macs": 0.5})


def test_the_plan_of_a_result_can_be_applied(small: Path) -> None:
    """As it is handed out, without a file."""
    found = onnxprune.prune(small, target={"macs": 0.5}, repair=False, latency_s=0)
    again = onnxprune.apply(small, found.plan)
    assert again.model == found.model
    assert onnxprune.prune(small, target={"macs": 0.5}, dry_run=True).model is None
