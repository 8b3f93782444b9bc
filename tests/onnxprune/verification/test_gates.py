"""Gates pass where the limit is kept, and fail where it is not or nothing was measured."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import UsageError
from onnxprune.verification.gates import GATES, evaluate_gates


def output(kind: str = "logits", **figures: float | None) -> dict[str, Any]:
    named = {"error_mean": 0.1, "error_worst": 0.3, "agreement": 0.9}
    return {"name": "y", "kind": kind} | named | figures


def outputs(*rows: dict[str, Any], passed: bool = True) -> dict[str, Any]:
    return {"outputs": {"passed": passed, "outputs": list(rows)}}


def metric(**figures: float) -> dict[str, Any]:
    return {"metric": {"drop": 0.02, "agreement": 0.8} | figures}


def latency(speedup: float, *, is_claimed: bool = True) -> dict[str, Any]:
    return {"latency": {"speedup": speedup, "speedup_claimed": is_claimed}}


def gate(name: str, limit: float, findings: dict[str, Any]) -> tuple[float | None, bool]:
    (found,) = evaluate_gates({name: limit}, findings)
    assert (found["name"], found["limit"]) == (name, limit)
    assert set(found) == {"name", "limit", "value", "passed"}
    return found["value"], found["passed"]


def test_a_drop_of_the_metric_has_a_limit() -> None:
    """Equal passes, also where binary numbers are a little above; a gain passes."""
    assert gate("max-drop", 0.02, metric()) == (0.02, True)
    assert gate("max-drop", 0.019, metric()) == (0.02, False)
    assert gate("max-drop", 0.01, metric(drop=0.95 - 0.94))[1]
    assert gate("max-drop", 0, metric(drop=-0.1)) == (-0.1, True)


def test_agreement_is_that_of_the_metrics_output() -> None:
    """Where no metric was measured, the least of all outputs."""
    rows = outputs(output(agreement=0.9), output("values", agreement=None, error_mean=0.3))
    assert gate("min-agreement", 0.8, metric() | rows) == (0.8, True)
    assert gate("min-agreement", 0.81, metric() | rows) == (0.8, False)
    assert gate("min-agreement", 0.7, rows) == (0.7, True)
    assert gate("min-agreement", 0.7, {"metric": {"skipped": "no data"}} | rows) == (0.7, True)
    assert gate("min-agreement", 0.71, rows) == (0.7, False)


def test_the_error_is_that_of_the_worst_output() -> None:
    """Class numbers have none."""
    rows = outputs(
        output(error_worst=0.1), output(error_worst=0.4), output("labels", error_worst=None)
    )
    assert gate("max-error", 0.4, rows) == (0.4, True)
    assert gate("max-error", 0.39, rows) == (0.4, False)


def test_a_speedup_above_one_must_be_claimed() -> None:
    """An interval around 1 shows no speed-up; that it is not much slower may be shown."""
    assert gate("min-speedup", 1.5, latency(1.6)) == (1.6, True)
    assert gate("min-speedup", 1.5, latency(1.4)) == (1.4, False)
    assert gate("min-speedup", 1.1, latency(1.2, is_claimed=False)) == (1.2, False)
    assert gate("min-speedup", 0.9, latency(0.95, is_claimed=False)) == (0.95, True)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("limit", [-1e9, 1e9])
def test_what_was_not_measured_has_failed(name: str, limit: float) -> None:
    """Whatever the limit: nothing found, skipped, not comparable, or not finite."""
    skipped = {level: {"skipped": "why"} for level in ("metric", "outputs", "latency")}
    unlike = outputs(output(), passed=False)
    infinite = outputs(output(error_mean=None, error_worst=None, agreement=None))
    failed = {"outputs": {"passed": False, "failures": ["the candidate does not run"]}}
    for findings in ({}, skipped, unlike, infinite, failed, outputs()):
        assert gate(name, limit, findings) == (None, False)


def test_one_infinite_output_among_others_has_failed() -> None:
    """A figure of the others is none of the model."""
    rows = outputs(output(), output("values", error_mean=None, error_worst=None, agreement=None))
    assert gate("max-error", 1e9, rows) == (None, False)
    assert gate("min-agreement", -1e9, rows) == (None, False)


def test_gates_keep_their_order() -> None:
    """One row for each that was asked for."""
    found = evaluate_gates({"min-speedup": 1, "max-drop": 1}, metric() | latency(2))
    assert [row["name"] for row in found] == ["min-speedup", "max-drop"]
    assert evaluate_gates({}, {}) == []


def test_an_unknown_gate_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(UsageError, match="no gate is named `max-dorp`") as caught:
        evaluate_gates({"max-dorp": 1}, {})
    assert "`max-drop`" in caught.value.hint
