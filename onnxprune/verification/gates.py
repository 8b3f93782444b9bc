"""Limits that the user sets on what verification found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxprune.errors import UsageError, did_you_mean

Findings = Mapping[str, Any]

# 0.95 - 0.94 is a little above 0.01 in binary.
SLACK = 1e-9


def evaluate_gates(limits: Findings, findings: Findings) -> list[dict[str, Any]]:
    """Whether each limit is kept.

    Args:
        limits: by gate: `max-drop`, `min-agreement`, `max-error`, `min-speedup`.
        findings: by level: `metric`, `outputs`, `latency`.

    Returns: per gate its `name`, `limit`, `value` and whether it `passed`; a gate that could not
        be measured has the value None, and has failed.
    Raises: UsageError: no such gate.
    """
    found = []
    for name, limit in limits.items():
        if name not in GATES:
            raise UsageError(f"no gate is named `{name}`", hint=did_you_mean(name, GATES))
        value, holds = GATES[name]
        figure = value(findings)
        passed = figure is not None and holds(figure, limit, findings)
        found.append({"name": name, "limit": limit, "value": figure, "passed": passed})
    return found


def _figure(findings: Findings, level: str, name: str) -> float | None:
    value: float | None = findings.get(level, {}).get(name)
    return value


def _drop(findings: Findings) -> float | None:
    return _figure(findings, "metric", "drop")


def _agreement(findings: Findings) -> float | None:
    """Of the output that the metric reads; without a metric, the least of all outputs.

    An output that holds no classes agrees as far as its relative error lets it.
    """
    measured = _figure(findings, "metric", "agreement")
    if measured is not None:
        return measured
    rows = _compared(findings)
    figures = [_row_agreement(row) for row in rows]
    known = [f for f in figures if f is not None]
    return min(known) if rows and len(known) == len(figures) else None


def _row_agreement(row: Mapping[str, float | None]) -> float | None:
    if row["agreement"] is not None:
        return row["agreement"]
    return None if row["error_mean"] is None else 1 - row["error_mean"]


def _error(findings: Findings) -> float | None:
    """The worst sample of the worst output that holds numbers."""
    rows = [row for row in _compared(findings) if row["kind"] != "labels"]
    errors = [row["error_worst"] for row in rows]
    known = [e for e in errors if e is not None]
    return max(known) if known and len(known) == len(errors) else None


def _compared(findings: Findings) -> list[Mapping[str, Any]]:
    """Figures of all outputs; nothing where one of them is missing or not to be compared."""
    outputs = findings.get("outputs", {})
    return outputs["outputs"] if outputs.get("passed") else []


def _speedup(findings: Findings) -> float | None:
    return _figure(findings, "latency", "speedup")


Holds = Callable[[float, float, Findings], bool]


def _at_most(value: float, limit: float, _: Findings) -> bool:
    return value <= limit + SLACK


def _at_least(value: float, limit: float, _: Findings) -> bool:
    return value >= limit - SLACK


def _is_fast(value: float, limit: float, findings: Findings) -> bool:
    """A speed-up above 1 counts only where its interval lies above 1, too."""
    is_claimed = bool(findings["latency"]["speedup_claimed"])
    return value >= limit and (limit <= 1 or is_claimed)


GATES: dict[str, tuple[Callable[[Findings], float | None], Holds]] = {
    "max-drop": (_drop, _at_most),
    "min-agreement": (_agreement, _at_least),
    "max-error": (_error, _at_most),
    "min-speedup": (_speedup, _is_fast),
}
