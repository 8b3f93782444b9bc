"""A model tried in another process, which a native crash may take down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from onnxprune.backend.runtime import seeded_inputs, session
from onnxprune.errors import PruneError

_CHILD = """
import json, sys
job = json.loads(sys.argv[1])
sys.path[:] = job["sys_path"]
from onnxprune.backend.child import load_and_run
print("\\nonnxprune:" + load_and_run(job["path"], job["custom_ops"], job["must_run"]))
"""


def try_in_child(
    path: str | Path,
    *,
    timeout_s: float = 60.0,
    custom_ops: Sequence[str] = (),
    must_run: bool = False,
) -> str | None:
    """Load a model and run it once in another process, which a native crash may take down.

    Args:
        must_run: a run that fails cleanly is an error too; the sizes of dynamic axes are guesses.
    Returns: what went wrong in one line, or None.
    """
    job = {
        "path": str(path),
        "custom_ops": [str(o) for o in custom_ops],
        "sys_path": sys.path,
        "must_run": must_run,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(job)],
            capture_output=True,
            timeout=timeout_s,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"ONNX Runtime did not finish within {timeout_s:g} s"
    if done.returncode < 0:
        return f"ONNX Runtime crashed ({_signal(-done.returncode)})"
    answers = [line for line in done.stdout.splitlines() if line.startswith("onnxprune:")]
    if done.returncode or not answers:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return f"ONNX Runtime failed with exit code {done.returncode}: {last[:300]}"
    return answers[-1].removeprefix("onnxprune:") or None


def load_and_run(path: str, custom_ops: Sequence[str], must_run: bool = False) -> str:
    """What the child process does; returns why the model does not load, or nothing."""
    try:
        loaded = session(path, threads=1, custom_ops=custom_ops)
    except PruneError as error:
        return error.what
    try:
        loaded.run(seeded_inputs(loaded.inputs))
    except PruneError as error:
        return error.what if must_run else ""
    return ""


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
