"""The command line: what each command prints, exit codes, and files that stay as they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import cli
from tests.builder import Builder

MODELS = Path(__file__).resolve().parents[2] / "models"
RESNET = MODELS / "digits_resnet" / "model.onnx"
LATENCY_OFF = ("--latency-seconds", "0")


class Ended:
    """How a call of the command line ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        """Standard output, which must be one JSON value."""
        return json.loads(self.out)


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["onnxprune", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        seen = capsys.readouterr()
        return Ended(code, seen.out, seen.err)

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An MLP of two layers in a file."""
    path = tmp_path / "small.onnx"
    onnx.save(mlp(), str(path))
    return path


def mlp(seed: int = 0) -> ModelProto:
    """x (N, 8) -> Gemm 16 -> Relu -> Gemm 4."""
    b = Builder(seed)
    h = b.node("Relu", b.node("Gemm", "x", b.weight(8, 16), b.weight(16)))
    y = b.node("Gemm", h, b.weight(16, 4), b.weight(4))
    return b.model({"x": ["N", 8]}, {y: ["N", 4]})


def assert_refused(ended: Ended, *words: str, code: int = 2) -> None:
    """One clear message, no traceback, nothing on standard output."""
    assert ended.code == code, ended.err
    assert ended.err.lstrip().startswith("error: ")
    assert "Traceback" not in ended.err
    assert ended.out == ""
    for word in words:
        assert word in ended.err, ended.err


# --- what works --------------------------------------------------------------------------------


def test_prune_writes_a_smaller_model_and_its_plan(call: Call, small: Path, tmp_path: Path) -> None:
    """Half the MACs are gone, the interface is the same, and a plan lies beside the model."""
    out = tmp_path / "out.onnx"
    ended = call("prune", small, "-o", out, "--target", "macs=0.5", *LATENCY_OFF)
    assert ended.code == 0, ended.err
    assert "written to" in ended.out
    made = onnx.load(str(out))
    onnx.checker.check_model(made, full_check=True)
    assert [i.name for i in made.graph.input] == ["x"]
    assert sum(np.prod(t.dims) for t in made.graph.initializer) < 212
    assert (tmp_path / "out.plan.json").is_file()


def test_prune_json_is_one_object_with_the_contract(
    call: Call, small: Path, tmp_path: Path
) -> None:
    """The keys that others build on are there, and standard output holds nothing else."""
    out = tmp_path / "out.onnx"
    ended = call("prune", small, "-o", out, "--target", "macs=0.5", "--json", *LATENCY_OFF)
    found = ended.json()
    assert {"schema", "model", "output", "cost", "dims", "prunable_params", "verify", "seconds",
            "warnings"} <= found.keys()  # fmt: skip
    assert found["cost"]["macs"]["ratio"] <= 0.5
    assert found["cost"]["macs"]["before"] == 8 * 16 + 16 * 4
    assert found["verify"]["structure"]["passed"]
    assert found["verify"]["run"]["passed"]
    assert "skipped" in found["verify"]["latency"]


def test_prune_measures_the_metric_where_data_holds_labels(call: Call, tmp_path: Path) -> None:
    """Accuracy before and after, with an interval."""
    model = MODELS / "digits_resnet"
    ended = call("prune", model / "model.onnx", "-o", tmp_path / "out.onnx", "--target", "macs=0.9",
                 "--data", model / "eval.npz", "--json", *LATENCY_OFF)  # fmt: skip
    metric = ended.json()["verify"]["metric"]
    assert metric["name"] == "accuracy"
    assert metric["before"] == pytest.approx(0.996)
    assert 0 <= metric["after"] <= 1


def test_dry_run_writes_nothing(call: Call, small: Path, tmp_path: Path) -> None:
    """Plan and cost are printed; no file appears."""
    before = sorted(tmp_path.iterdir())
    ended = call("prune", small, "--dry-run", "--target", "macs=0.5", "--json")
    assert ended.json()["cost"]["macs"]["ratio"] <= 0.5
    assert sorted(tmp_path.iterdir()) == before


def test_the_same_call_writes_the_same_bytes(call: Call, small: Path, tmp_path: Path) -> None:
    """Model and plan do not depend on the run."""
    for name in ("a", "b"):
        call("prune", small, "-o", tmp_path / f"{name}.onnx", "--target", "macs=0.5", *LATENCY_OFF)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_keep_names_the_width(call: Call, small: Path, tmp_path: Path) -> None:
    """A pattern with a number keeps so many channels."""
    ended = call("prune", small, "-o", tmp_path / "out.onnx", "--keep", "w0=5", "--json",
                 *LATENCY_OFF)  # fmt: skip
    assert [row["kept"] for row in ended.json()["widths"]] == [5]


def test_inspect_shows_what_is_pinned_and_why(call: Call, small: Path) -> None:
    """Each Dim has a size, shares and, where it cannot be cut, a reason."""
    found = call("inspect", small, "--json").json()
    by_size = {d["size"]: d for d in found["dims"]}
    assert by_size[16]["pinned"] is None
    assert by_size[16]["exact"]
    assert by_size[16]["macs_share"] == 1.0
    assert "graph output" in by_size[4]["pinned"]
    assert found["refused"] is None
    assert "graph output" in call("inspect", small).out


def test_normalize_keeps_interface_and_outputs(call: Call, tmp_path: Path) -> None:
    """The normalised model computes the same."""
    out = tmp_path / "normal.onnx"
    assert call("normalize", RESNET, "-o", out).code == 0
    ended = call("verify", RESNET, out, "--json", "--max-error", "1e-5", *LATENCY_OFF)
    assert ended.code == 0, ended.out
    assert all(gate["passed"] for gate in ended.json()["gates"])


def test_apply_gives_the_same_bytes(call: Call, small: Path, tmp_path: Path) -> None:
    """The plan, applied to the original file, repeats the prune that wrote it."""
    out, again = tmp_path / "out.onnx", tmp_path / "again.onnx"
    call("prune", small, "-o", out, "--target", "macs=0.5", *LATENCY_OFF)
    ended = call("apply", small, tmp_path / "out.plan.json", "-o", again)
    assert ended.code == 0, ended.err
    assert out.read_bytes() == again.read_bytes()


def test_verify_fails_its_gates_with_exit_code_3(call: Call, small: Path, tmp_path: Path) -> None:
    """Another model of the same interface is not within the error; the JSON says which gate."""
    other = tmp_path / "other.onnx"
    onnx.save(mlp(seed=1), str(other))
    ended = call("verify", small, other, "--max-error", "0.01", "--json", *LATENCY_OFF)
    assert ended.code == 3
    assert [g["name"] for g in ended.json()["gates"] if not g["passed"]] == ["max-error"]


def test_a_gate_that_was_not_measured_fails(call: Call, small: Path) -> None:
    """Without a latency measurement there is no speed-up."""
    ended = call("verify", small, small, "--min-speedup", "1.0", *LATENCY_OFF)
    assert ended.code == 3
    assert "not measured" in ended.out


@pytest.mark.parametrize("command", ["passes", "ops"])
def test_lists_name_what_is_installed(call: Call, command: str) -> None:
    """Both as text and as JSON."""
    word = {"passes": "score-l2", "ops": "ConvTranspose"}[command]
    assert word in call(command).out
    assert word in json.dumps(call(command, "--json").json())


def test_exact_only_keeps_outputs(call: Call, small: Path, tmp_path: Path) -> None:
    """Clean-ups alone need no budget and change no output."""
    out = tmp_path / "out.onnx"
    assert call("prune", small, "-o", out, "--exact-only", *LATENCY_OFF).code == 0
    assert call("verify", small, out, "--max-error", "1e-5", *LATENCY_OFF).code == 0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["prun", "a.onnx"], ["no command", "`prune`"]),
        (["prune", "SMALL", "-o", "OUT", "--targt", "macs=0.5"], ["--targt", "--target"]),
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
        (["prune", "SMALL", "-o", "OUT", "--target", "macs=0.5", "--multiple", "0"], ["--multiple"]),
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
    places = {"SMALL": str(small), "OUT": str(tmp_path / "out.onnx"), "MISSING": str(tmp_path / "no")}
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
    ended = call("prune", small, "-o", tmp_path / "out.onnx", "--target", "macs=0.5", "--data", data)
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


def test_a_defect_asks_to_be_reported(
    call: Call, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nobody foresaw becomes one message with exit code 1."""
    from onnxprune import api

    def fail(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(api, "inspect", fail)
    assert_refused(call("inspect", small), "KeyError", "report", code=1)


def test_an_interrupt_ends_with_130(
    call: Call, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half-written, no traceback."""
    from onnxprune import api

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "inspect", interrupt)
    assert_refused(call("inspect", small), "interrupted", code=130)


def test_help_of_every_command() -> None:
    """Each option says what it does."""
    runner = CliRunner()
    for name, command in cli.commands.commands.items():
        ended = runner.invoke(cli.commands, [name, "--help"])
        assert ended.exit_code == 0
        for param in command.params:
            if param.param_type_name == "option" and param.name not in {"seed", "help"}:
                assert getattr(param, "help", ""), f"{name} {param.name}"


def test_the_module_runs_as_a_program(small: Path) -> None:
    """`python -m onnxprune.cli` and the console script are the same."""
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune.cli", "inspect", str(small), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["refused"] is None
