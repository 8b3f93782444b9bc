"""What the benches share that judge a pruned model on data it never saw: cases, judge, records.

A case is a folder `ZOO/NAME` with a `case.json` that names an evaluation file; `CACHE` holds
`NAME.calibration.npz`, all that a tool may see, and models that are not in the folder. The judge is
`ZOO/evaluate.py`, run by a Python that the user names.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

GOALS = Path(__file__).with_name("goals.json")
DEFAULT_BUDGETS = (0.7, 0.5, 0.3)


@dataclass(frozen=True)
class Case:
    """A model, what a tool may see beside it, and how it is judged."""

    name: str
    model: Path
    data: Path
    metric: str

    def drop(self, judged: dict[str, Any]) -> float:
        """What was lost, in points; for r2 in its own unit. Larger is worse."""
        sign = 1 if self.metric == "eer" else -1
        return round(sign * float(judged["delta"]) * self.scale, 6) + 0.0  # no -0.0

    @property
    def scale(self) -> float:
        """Points in one unit of the metric."""
        return 1.0 if self.metric == "r2" else 100.0


@dataclass(frozen=True)
class Judge:
    """Scores a file on a case's evaluation data, beside the original."""

    python: str
    zoo: Path
    cache: Path

    def __call__(self, model: Path, case: Case) -> dict[str, Any]:
        """The judge's JSON: value, original, delta, se; or {"error": one line}."""
        command = [self.python, str(self.zoo / "evaluate.py"), str(model), case.name, "--reference"]
        return child(command, limit=1800, env={"ZOO_CACHE": str(self.cache)})


@dataclass(frozen=True)
class Records:
    """One JSON record a line, written as soon as it is known; the last of equal keys counts."""

    path: Path | None
    keys: tuple[str, ...]

    def read(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Every record by its key."""
        if self.path is None or not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return {tuple(r[k] for k in self.keys): r for r in map(json.loads, lines)}

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, so that a killed run loses none."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def cases(zoo: Path, cache: Path, only: str = "") -> list[Case]:
    """The cases that have data, by name; `only` lists names, in the order they are wanted."""
    found = {}
    for path in sorted(zoo.glob("*/case.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        data = cache / f"{path.parent.name}.calibration.npz"
        if card.get("evaluation") and data.exists():
            inside = card["model"].removeprefix("cache/")
            model = (cache if inside != card["model"] else path.parent) / inside
            found[path.parent.name] = Case(path.parent.name, model, data, card["metric"])
    if not only:
        return list(found.values())
    missing = [name for name in only.split(",") if name not in found]
    if missing:
        raise SystemExit(f"no case with data is named {', '.join(missing)}; there are: {[*found]}")
    return [found[name] for name in only.split(",")]


def goals() -> dict[str, dict[float, float]]:
    """Drop allowed by case and budget."""
    read = json.loads(GOALS.read_text(encoding="utf-8"))
    return {case: {float(b): float(d) for b, d in by.items()} for case, by in read.items()}


def apart(scores: str) -> list[str]:
    """Names in a list; a comma inside braces belongs to one score's options."""
    return re.split(r",(?![^{]*})", scores)


def numbers(text: str) -> list[float]:
    """`0.7,0.5` as numbers."""
    return [float(part) for part in text.split(",") if part]


def child(command: list[str], limit: float, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON that a process prints last, or {"error": one line}."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit,
            env=os.environ | (env or {}),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:g} s"}
    if done.returncode < 0:
        return {"error": f"died of signal {-done.returncode}"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": (lines or ["no message"])[-1].strip()[:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def stamp() -> dict[str, str]:
    """When, and which state of the repository."""
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return {"when": time.strftime("%Y-%m-%dT%H:%M:%S"), "commit": done.stdout.strip()}


def machine() -> str:
    """The line above a table."""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("onnx", "onnxruntime", "numpy"))
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, "
        f"Python {platform.python_version()}, {versions}"
    )


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table."""
    for cells in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
