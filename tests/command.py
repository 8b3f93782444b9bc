"""What tests of the command line share: a call in this process, and a small model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from onnx import ModelProto

from onnxprune import cli
from tests.builder import Builder

LATENCY_OFF = ("--latency-seconds", "0")


class Ended:
    """How a call of the command line ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        """Standard output, which must be one JSON value."""
        return json.loads(self.out)


Call = Callable[..., Ended]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
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


