"""Damage measured by several workers is the damage measured by one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from onnxprune import prune, sensitivity
from onnxprune.backend.threads import MOST_WORKERS, default_workers
from onnxprune.damage import curves
from onnxprune.damage.curves import Study
from onnxprune.errors import UsageError
from tests.command import LATENCY_OFF, Call, caller
from tests.measured import net, samples, written

OFF = {"latency_s": 0.0}
MODELS = Path(__file__).resolve().parents[3] / "models"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


@pytest.mark.parametrize("name", ["digits_transformer", "digits_depthwise"])
def test_curves_do_not_depend_on_workers(name: str, tmp_path: Path) -> None:
    """The same file for any number of them, on nets with heads, streams and groups."""
    model = MODELS / name
    made = set()
    for workers in (1, 2, 5):
        out = tmp_path / f"{workers}.json"
        sensitivity(model / "model.onnx", out, data=model / "calibration.npz", limit=80,
                    workers=workers)  # fmt: skip
        made.add(out.read_bytes())
    assert len(made) == 1


def test_a_prune_does_not_depend_on_workers(call: Call, tmp_path: Path) -> None:
    """Model and plan, with rounds that measure again."""
    model, data = written(tmp_path)
    made = set()
    for workers in (1, 3):
        out = tmp_path / f"{workers}.onnx"
        ended = call("prune", model, "--data", data, "-o", out, "--target", "macs=0.4",
                     "--rounds", 2, "--workers", workers, *LATENCY_OFF)  # fmt: skip
        assert ended.code == 0, ended.err
        made.add((out.read_bytes(), out.with_suffix(".plan.json").read_bytes()))
    assert len(made) == 1


def test_dims_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Dims meet at a barrier, which one worker alone would wait at for ever."""
    barrier, study = threading.Barrier(2, timeout=20), Study._study

    def meeting(self: Study, *given: Any) -> Any:
        barrier.wait()
        return study(self, *given)

    monkeypatch.setattr(Study, "_study", meeting)
    assert len(sensitivity(net(), data=samples(), workers=2).json()["dims"]) == 2


def test_an_error_of_a_worker_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost in a thread."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(curves, "_ordered", broken)
    with pytest.raises(ZeroDivisionError):
        sensitivity(net(), data=samples(), workers=2)


def test_workers_are_as_many_as_cores() -> None:
    """But few: sums wait for memory, not for cores."""
    assert 1 <= default_workers() <= MOST_WORKERS


def test_fewer_than_none_are_refused() -> None:
    """By both commands."""
    with pytest.raises(UsageError, match="workers"):
        sensitivity(net(), data=samples(), workers=-1)
    with pytest.raises(UsageError, match="workers"):
        prune(net(), data=samples(), target={"macs": 0.5}, workers=-1, **OFF)
