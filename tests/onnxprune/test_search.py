"""`--max-drop`: the smallest model whose metric drops by no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxprune import prune
from onnxprune.damage.curves import Study
from onnxprune.errors import BudgetError, DataError, UsageError
from onnxprune.search import BISECTIONS, STEP, Descent, Tried, descend
from tests.command import LATENCY_OFF, Call, assert_refused, caller
from tests.measured import net, samples, written

OFF = {"latency_s": 0.0}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


def tried(share: float, holds: bool) -> Tried:
    """A budget that holds or not."""
    return Tried(share, {"macs": share}, 0.0, 0.0, holds)


@given(edge=st.floats(0.001, 1.0), least=st.floats(0.01, 1.0))
@example(edge=1.0, least=0.9999999999999999)
def test_the_search_closes_in_on_the_edge(edge: float, least: float) -> None:
    """Budgets down to an edge hold; the best found lies within 3% of it, and no budget twice."""
    path = descend(least, lambda share: tried(share, share >= edge))
    assert len({one.share for one in path}) == len(path)
    assert all(one.share >= least for one in path)
    best = Descent("", 1.0, 0.0, 1, tuple(path)).best
    nearest = max(edge, least)
    if best is None:
        assert edge > STEP ** (1 / 2**BISECTIONS) or edge > least
    else:
        assert nearest <= best.share <= nearest / STEP ** (1 / 2**BISECTIONS) * (1 + 1e-9)


def test_what_holds_everywhere_goes_down_to_the_least() -> None:
    """In geometric steps, the last one cut short."""
    path = descend(0.5, lambda share: tried(share, True))
    assert [one.share for one in path] == pytest.approx([0.8, 0.64, 0.512, 0.5])


def searched(**options: Any) -> Any:
    """The small net, as far as it may go."""
    data = options.pop("data", samples(count=300))
    return prune(net(), data=data, **OFF, **options)


def test_the_smallest_that_holds_is_chosen() -> None:
    """No budget that holds is smaller, and damage was measured once."""
    found = searched(max_drop=0.1).json()
    path, on = found["path"], found["path_on"]
    chosen = [row for row in path if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["drop"] <= 0.1
    assert chosen[0]["cost"]["macs"] == min(r["cost"]["macs"] for r in path if r["holds"])
    assert all(row["holds"] == (row["drop"] <= 0.1) for row in path)
    assert {row["holds"] for row in path} == {True, False}
    assert on == {"metric": "agreement", "before": 1.0, "max_drop": 0.1, "samples": 60}


def test_figures_are_of_samples_that_chose_nothing() -> None:
    """A fifth chooses the budget, another fifth is shown."""
    data = samples(count=250)
    data["labels"] = np.arange(250) % 5
    found = searched(data=data, max_drop=1.0, target={"macs": 0.5}).json()
    assert found["path_on"]["metric"] == "accuracy"
    assert found["path_on"]["samples"] == 50
    assert found["verify"]["metric"]["samples"] == 50
    assert found["path_on"]["before"] != found["verify"]["metric"]["before"]


def test_too_few_samples_for_a_drop_are_told() -> None:
    """A drop of two samples is noise, one of thirty is none."""
    for drop, told in ((0.04, True), (0.5, False)):
        found = searched(max_drop=drop, target={"macs": 0.9}).json()
        assert any("to decide on tell a drop" in w for w in found["warnings"]) == told


def test_labels_change_nothing_but_the_metric() -> None:
    """With a metric that does not read them the bytes are the same."""
    data = samples(count=300)
    with_labels = data | {"labels": np.arange(300) % 5}
    made = [searched(data=d, max_drop=0.1, metric="agreement").model for d in (data, with_labels)]
    assert made[0].SerializeToString() == made[1].SerializeToString()


def test_a_target_is_the_least_to_go_to(tmp_path: Path) -> None:
    """Where every drop is allowed: the bytes of a prune to the target by the same curves."""
    model, data = written(tmp_path)
    target = {"macs": 0.5, "params": 0.6}
    made = {}
    for name, more in (("search", {"max_drop": 1.0}), ("plain", {})):
        out = tmp_path / f"{name}.onnx"
        found = prune(model, out, data=data, target=target, allocate="curves", **more, **OFF)
        made[name] = out.read_bytes(), out.with_suffix(".plan.json").read_bytes()
    assert made["search"] == made["plain"]
    assert found.json()["path"] is None


def test_the_recipe_says_that_plans_were_not_compared(tmp_path: Path) -> None:
    """Budgets of a search are planned from the curves alone; one budget is compared, too."""
    model, data = written(tmp_path)
    out = tmp_path / "out.onnx"
    for more in ({"max_drop": 1.0}, {}):
        prune(model, out, data=data, target={"macs": 0.5}, overwrite=True, **more, **OFF)
        recipe = json.loads(out.with_suffix(".plan.json").read_text())["recipe"]
        (plan,) = [step for step in recipe if step.startswith("refine-plan")]
        assert ("candidates=False" in plan) == bool(more)


def test_without_a_target_the_smallest_plan_is_the_least() -> None:
    """Every Dim at its floor."""
    found = searched(max_drop=1.0).json()
    assert found["path"][-1]["chosen"]
    with pytest.raises(BudgetError):
        prune(net(), target={"macs": found["cost"]["macs"]["ratio"] * 0.99}, **OFF)


def test_damage_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many budgets are tried."""
    calls = []
    run = Study.run

    def counted(self: Study) -> Any:
        calls.append(1)
        return run(self)

    monkeypatch.setattr(Study, "run", counted)
    assert len(searched(max_drop=0.1).json()["path"]) > 3
    assert len(calls) == 1


def test_a_drop_that_nothing_meets_is_one_clear_error(call: Call, tmp_path: Path) -> None:
    """It says the least cut that was tried, and what it loses; nothing is written."""
    model, data = written(tmp_path)
    out = tmp_path / "out.onnx"
    np.savez(data, **samples(count=300))
    given = ["prune", model, "--data", data, "-o", out, "--max-drop", 0, "--no-repair"]
    ended = call(*given, "--allocate", "uniform", *LATENCY_OFF)
    assert_refused(ended, "the least cut that was tried drops agreement by 0.", "MACs")
    assert not out.exists()
    share = float(ended.err.partition("it keeps ")[2].partition("%")[0])
    assert share > 100 * STEP, "bisection went on above the first step"


def test_the_path_is_shown(call: Call, tmp_path: Path) -> None:
    """As a table, and in the JSON."""
    model, data = written(tmp_path)
    given = ["prune", model, "--data", data, "--max-drop", "0.2", "--overwrite", *LATENCY_OFF]
    ended = call(*given, "-o", tmp_path / "out.onnx")
    assert ended.code == 0, ended.err
    assert "budgets tried" in ended.out
    assert "chosen" in ended.out
    ended = call(*given, "-o", tmp_path / "out.onnx", "--json")
    for row in ended.json()["path"]:
        assert row.keys() == {"cost", "metric", "drop", "holds", "chosen"}


@pytest.mark.parametrize(
    ("given", "error", "what"),
    [
        ({"max_drop": -0.1}, UsageError, "at least 0"),
        ({"max_drop": float("nan")}, UsageError, "at least 0"),
        ({"max_drop": "much"}, UsageError, "at least 0"),
        ({"max_drop": 0.1, "exact_only": True}, UsageError, "no budget"),
        ({"max_drop": 0.1, "dry_run": True}, UsageError, "run dry"),
        ({"max_drop": 0.1, "data": None}, UsageError, "on data"),
        ({"max_drop": 0.1, "data": samples(count=8)}, DataError, "too few"),
        ({"max_drop": 0.1, "metric": "accuracy"}, DataError, "labels"),
        ({"max_drop": 0.1, "skip": ("*",)}, BudgetError, "nothing can be cut"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    given: dict[str, Any], error: type[Exception], what: str
) -> None:
    """With a reason."""
    with pytest.raises(error, match=what):
        searched(**given)
