"""Models tried in another process."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from onnxprune.backend import child
from onnxprune.backend.child import load_and_run, try_in_child
from tests.builder import Builder


def product() -> ModelProto:
    """One MatMul."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.weight(4, 3))
    return b.model({"x": ["N", 4]}, {y: ["N", 3]})


def pooled() -> ModelProto:
    """A window of 9 x 9, larger than an image of the smallest size."""
    b = Builder(0)
    y = b.node("MaxPool", "x", kernel_shape=[9, 9])
    return b.model({"x": [1, 1, "h", "w"]}, {y: [1, 1, "a", "b"]})


def test_a_child_loads_and_runs_what_is_sound(tmp_path: Path) -> None:
    """Sound files give no error, broken ones the reason."""
    onnx.save(product(), tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert try_in_child(tmp_path / "m.onnx") is None
    assert "could not load" in (try_in_child(tmp_path / "broken.onnx") or "")
    assert load_and_run(str(tmp_path / "m.onnx"), []) == ""
    assert "could not load" in load_and_run(str(tmp_path / "broken.onnx"), [])


def test_a_run_that_fails_cleanly_counts_where_asked(tmp_path: Path) -> None:
    """Sizes of dynamic axes are guesses: by default a model that loads is not to blame."""
    onnx.save(pooled(), tmp_path / "m.onnx")
    assert load_and_run(str(tmp_path / "m.onnx"), []) == ""
    assert "could not run" in load_and_run(str(tmp_path / "m.onnx"), [], must_run=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import time; time.sleep(60)", "within 0.5 s"),
        ("raise SystemExit('gone')", "exit code 1: gone"),
        ("pass", "no message"),
    ],
)
def test_a_crash_or_hang_of_the_child_becomes_words(
    code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the child, the parent lives and says so."""
    monkeypatch.setattr(child, "_CHILD", code)
    assert message in (try_in_child("m.onnx", timeout_s=0.5 if "sleep" in code else 30) or "")
