"""The command line: what each command prints, exit codes, and files that stay as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnxprune import cli
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
                 "--data", model / "eval.npz", "--no-repair", "--json",
                 *LATENCY_OFF)  # fmt: skip
    metric = ended.json()["verify"]["metric"]
    assert metric["name"] == "accuracy"
    assert metric["before"] >= 0.98
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
    """The plan, applied to the original file, repeats the cut of the prune that wrote it."""
    out, again = tmp_path / "out.onnx", tmp_path / "again.onnx"
    call("prune", small, "-o", out, "--target", "macs=0.5", "--no-repair", *LATENCY_OFF)
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


def test_the_report_says_what_was_repaired(call: Call, tmp_path: Path) -> None:
    """How many layers and how; where it was not wanted, that nothing was tried."""
    folder = MODELS / "cancer_mlp"
    args = (folder / "model.onnx", "--target", "macs=0.6", *LATENCY_OFF)
    data = ("--data", folder / "calibration.npz")
    found = call("prune", *args, *data, "-o", tmp_path / "a.onnx", "--json").json()
    assert sum(found["repaired"].values()) > 0
    assert "layers repaired" in call("prune", *args, *data, "-o", tmp_path / "b.onnx").out
    plain = call("prune", *args, "--no-repair", "-o", tmp_path / "c.onnx", "--json").json()
    assert plain["repaired"] is None
