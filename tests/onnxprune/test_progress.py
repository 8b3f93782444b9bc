"""`--resume`: an interrupted run goes on from what it left, and makes the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import prune
from onnxprune.damage.curves import Study
from onnxprune.errors import (
    BudgetError,
    CurvesError,
    FileError,
    ProgressError,
    PruneError,
    UsageError,
)
from tests.command import LATENCY_OFF, Call, assert_refused, caller
from tests.measured import net, samples, written

OFF = {"latency_s": 0.0}
SEARCH: dict[str, Any] = {"max_drop": 0.1}
ROUNDS: dict[str, Any] = {"target": {"macs": 0.3}, "rounds": 4}


class Stopped(KeyboardInterrupt):
    """What stands for a key that was pressed."""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


def stop_at(name: str, number: int) -> Callable[[str], None]:
    """Progress that interrupts the run when a stage begins for the nth time."""
    seen: Counter[str] = Counter()

    def told(stage: str) -> None:
        seen[stage] += 1
        if stage == name and seen[stage] == number:
            raise Stopped

    return told


def begun(folder: Path, options: dict[str, Any], at: tuple[str, int]) -> tuple[Path, Path]:
    """Model and data, with an output that was interrupted."""
    model, data = written(folder)
    with pytest.raises(Stopped):
        prune(model, folder / "out.onnx", data=data, progress=stop_at(*at), **options, **OFF)
    assert not (folder / "out.onnx").exists()
    return model, data


def bytes_of(out: Path) -> tuple[bytes, bytes]:
    """Of a model and its plan."""
    return out.read_bytes(), out.with_suffix(".plan.json").read_bytes()


@pytest.mark.parametrize("at", [("decide", 1), ("decide", 3), ("repair-readers", 4),
                                ("verify-outputs", 1), ("save", 1)])  # fmt: skip
def test_an_interrupted_search_goes_on(
    at: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stopped: the same bytes and the same path, and no damage measured again."""
    model, data = begun(tmp_path, SEARCH, at)
    whole = prune(model, tmp_path / "whole.onnx", data=data, **SEARCH, **OFF)
    monkeypatch.setattr(Study, "run", None)
    stages: Counter[str] = Counter()
    found = prune(model, tmp_path / "out.onnx", data=data, resume=True,
                  progress=lambda name: stages.update([name]), **SEARCH, **OFF)  # fmt: skip
    assert bytes_of(tmp_path / "out.onnx") == bytes_of(tmp_path / "whole.onnx")
    assert found.json()["path"] == whole.json()["path"]
    assert not (tmp_path / "out.onnx.progress").exists()
    if at[0] in ("verify-outputs", "save"):
        assert stages["decide"] == 0, "every budget is known"


def test_interrupted_rounds_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last round that was done: only what is left is measured."""
    model, data = written(tmp_path)
    run, calls = Study.run, []

    def counted(self: Study) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped
        return run(self)

    monkeypatch.setattr(Study, "run", counted)
    with pytest.raises(Stopped):
        prune(model, tmp_path / "out.onnx", data=data, **ROUNDS, **OFF)
    prune(model, tmp_path / "out.onnx", data=data, resume=True, **ROUNDS, **OFF)
    assert len(calls) == 5, "curves, a round, one that was stopped, and two"
    monkeypatch.setattr(Study, "run", run)
    prune(model, tmp_path / "whole.onnx", data=data, **ROUNDS, **OFF)
    assert bytes_of(tmp_path / "out.onnx") == bytes_of(tmp_path / "whole.onnx")
    assert not (tmp_path / "out.onnx.progress").exists()


KILLED = """
import os, signal, sys
from onnxprune import prune
seen = []
def told(stage):
    seen.append(stage)
    if seen.count("decide") == 3:
        os.kill(os.getpid(), signal.SIGKILL)
model, data, out = sys.argv[1:]
prune(model, out, data=data, max_drop=0.1, latency_s=0.0, progress=told)
"""


def test_a_killed_process_goes_on(call: Call, tmp_path: Path) -> None:
    """What is kept lies in the files, not in the process."""
    model, data = written(tmp_path)
    out = tmp_path / "out.onnx"
    done = subprocess.run([sys.executable, "-c", KILLED, str(model), str(data), str(out)],
                          check=False, capture_output=True)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "out.onnx.progress" / "path.json").is_file()
    given = ["prune", model, "--data", data, "--max-drop", 0.1, *LATENCY_OFF]
    assert call(*given, "-o", out, "--resume").code == 0
    assert call(*given, "-o", tmp_path / "whole.onnx").code == 0
    assert bytes_of(out) == bytes_of(tmp_path / "whole.onnx")


def test_progress_is_never_written_over_unasked(tmp_path: Path) -> None:
    """A run that does not say --resume stops, unless it says --overwrite."""
    model, data = begun(tmp_path, SEARCH, ("decide", 2))
    out = tmp_path / "out.onnx"
    with pytest.raises(FileError, match="interrupted run left") as found:
        prune(model, out, data=data, **SEARCH, **OFF)
    assert "--resume" in found.value.hint
    prune(model, out, data=data, overwrite=True, **SEARCH, **OFF)
    assert not (tmp_path / "out.onnx.progress").exists()


OTHER = {
    "options": {"max_drop": 0.2},
    "data": {"data": samples(seed=3)},
    "labels": {"data": samples() | {"labels": np.arange(120) % 5}},
    "metric": {"metric": "cosine"},
    "shape": {"shape": {"x": (2, 12)}},
}


@pytest.mark.parametrize("other", OTHER.values(), ids=list(OTHER))
def test_another_run_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    """Other options or data: the path that was found is none of it."""
    model, data = begun(tmp_path, SEARCH, ("decide", 2))
    given = {"data": data, **SEARCH, **other}
    with pytest.raises(ProgressError, match="another run") as found:
        prune(model, tmp_path / "out.onnx", resume=True, **given, **OFF)
    assert "differs in: " + ("data" if "data" in other else "options") in found.value.where


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Its hash is another one."""
    _, data = begun(tmp_path, SEARCH, ("decide", 2))
    with pytest.raises(ProgressError) as found:
        prune(net(seed=1), tmp_path / "out.onnx", data=data, resume=True, **SEARCH, **OFF)
    assert "model" in found.value.where


@pytest.mark.parametrize("name", ["run.json", "path.json", "curves.json"])
@pytest.mark.parametrize("raw", ["", "{}", "[1]", '{"schema": 1, "path": [{}]}'])
def test_broken_progress_is_refused(name: str, raw: str, tmp_path: Path) -> None:
    """One error of this tool, whatever the files hold."""
    model, data = begun(tmp_path, SEARCH, ("decide", 2))
    (tmp_path / "out.onnx.progress" / name).write_text(raw)
    with pytest.raises((ProgressError, CurvesError)):
        prune(model, tmp_path / "out.onnx", data=data, resume=True, **SEARCH, **OFF)


@pytest.mark.parametrize(("key", "value"), [("share", 0.7), ("holds", 1), ("drop", "0"),
                                            ("cost", {})])  # fmt: skip
def test_a_broken_budget_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    """Another share than this search would try, and values that are none."""
    model, data = begun(tmp_path, SEARCH, ("decide", 2))
    path = tmp_path / "out.onnx.progress" / "path.json"
    content = json.loads(path.read_text())
    content["path"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ProgressError):
        prune(model, tmp_path / "out.onnx", data=data, resume=True, **SEARCH, **OFF)


@pytest.mark.parametrize(("key", "value"), [("removed", [10**6]), ("levels", [[0]]),
                                            ("levels", [[0, 999]]), ("number", 4),
                                            ("scores", [1.0])])  # fmt: skip
def test_a_broken_round_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    """Positions, levels and numbers that this model does not have."""
    model, data = begun(tmp_path, ROUNDS, ("run-original", 1))
    path = tmp_path / "out.onnx.progress" / "round.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))
    with pytest.raises(ProgressError):
        prune(model, tmp_path / "out.onnx", data=data, resume=True, **ROUNDS, **OFF)


def test_nothing_is_left_where_no_budget_holds(tmp_path: Path) -> None:
    """That is an answer; a search that allows more starts anew."""
    model, data = written(tmp_path)
    np.savez(data, **samples(count=300))
    with pytest.raises(BudgetError):
        prune(model, tmp_path / "out.onnx", data=data, max_drop=0.0, repair=False,
              allocate="uniform", **OFF)  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "net.onnx"]


@pytest.mark.parametrize("given", [{"metric": "accuracy"}, {"skip": ("none",)}, {"skip": ("*",)}])
def test_what_is_refused_leaves_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    """Before anything was measured there is nothing to go on from."""
    model, data = written(tmp_path)
    with pytest.raises(PruneError):
        prune(model, tmp_path / "out.onnx", data=data, **SEARCH, **given, **OFF)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "net.onnx"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file of that name stands there: it stays."""
    model, data = written(tmp_path)
    (tmp_path / "out.onnx.progress").write_text("mine")
    with pytest.raises(FileError, match="folder for the progress"):
        prune(model, tmp_path / "out.onnx", data=data, **SEARCH, **OFF)
    assert (tmp_path / "out.onnx.progress").read_text() == "mine"


def test_resume_without_progress_begins(tmp_path: Path) -> None:
    """So that a script may always say it."""
    model, data = written(tmp_path)
    prune(model, tmp_path / "out.onnx", data=data, resume=True, **SEARCH, **OFF)
    assert (tmp_path / "out.onnx").is_file()


def test_what_is_short_leaves_no_progress(call: Call, tmp_path: Path) -> None:
    """A plain prune writes its files only, and has nothing to resume."""
    model, data = written(tmp_path)
    out = tmp_path / "out.onnx"
    given = ["prune", model, "--data", data, "--target", "macs=0.5", "-o", out]
    assert_refused(call(*given, "--resume"), "nothing to resume", "--max-drop")
    with pytest.raises(UsageError, match="beside the output"):
        prune(model, data=data, resume=True, **SEARCH, **OFF)
    assert call(*given, *LATENCY_OFF).code == 0
    assert not (tmp_path / "out.onnx.progress").exists()
