"""Which passes options stand for, and which options exclude each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune import prune, sensitivity
from onnxprune.damage.curves import Study
from onnxprune.errors import BudgetError, DataError, UsageError
from onnxprune.manager import spec
from onnxprune.recipe import PruneOptions, plan_passes
from tests.command import LATENCY_OFF, Call, assert_refused, caller
from tests.measured import net, samples, written

OFF = {"latency_s": 0.0}
HALF = {"macs": 0.5}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


def kept(share: float = 0.4, **options: Any) -> dict[str, int]:
    """Channels that stay, by Dim."""
    found = prune(net(), target={"macs": share}, dry_run=True, **options)
    return {row["name"]: row["kept"] for row in found.json()["widths"]}


def names(measures: bool, **options: Any) -> list[str]:
    """Passes of a plan."""
    return [p.name for p in plan_passes(PruneOptions(**options), has_data=True, measures=measures)]


def test_with_data_widths_follow_measured_damage() -> None:
    """Without a word, and as `curves` says; by weights alone as `global` says; on seeded inputs
    they are one of the plans that are compared."""
    assert "measure-damage" in names(True)
    assert "measure-damage" not in names(False)
    data = samples()
    assert kept(data=data) == kept(data=data, allocate="curves")
    assert kept(repair=False) == kept(repair=False, allocate="global")
    seeded = prune(net(), target={"macs": 0.4}, dry_run=True).json()
    assert "curves" in seeded["plans"]
    assert kept() == kept(allocate=seeded["plan_taken"])
    assert kept(data=data) != kept(data=data, allocate="global")


def test_an_explicit_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured for an allocator that does not look at it."""
    monkeypatch.setattr(Study, "run", None)
    for allocate in ("global", "uniform"):
        assert kept(data=samples(), allocate=allocate)


def test_too_few_samples_leave_the_weights_to_choose() -> None:
    """With data that cannot be split nothing is measured, unless it is asked for."""
    few = {name: array[:8] for name, array in samples().items()}
    assert kept(data=few)
    with pytest.raises(UsageError, match="none or too few"):
        kept(data=few, allocate="curves")


def test_damage_that_cannot_be_measured_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores stand in; only `sensitivity`, which has nothing else to give, fails."""

    def run(_: Study) -> None:
        raise DataError("the model does not run on it")

    monkeypatch.setattr(Study, "run", run)
    found = prune(net(), data=samples(), target={"macs": 0.4}, dry_run=True)
    assert any("measure-damage" in w for w in found.json()["warnings"])
    widths = {row["name"]: row["kept"] for row in found.json()["widths"]}
    assert widths == kept(data=samples(), allocate="global")
    with pytest.raises(DataError, match="does not run"):
        sensitivity(net(), data=samples())


def test_rounds_are_made(call: Call, tmp_path: Path) -> None:
    """The recipe in the plan names them; the budget is met."""
    model, data = written(tmp_path)
    out = tmp_path / "out.onnx"
    ended = call("prune", model, "--data", data, "-o", out, "--target", "macs=0.3", "--rounds", 3,
                 "--json", *LATENCY_OFF)  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json()["cost"]["macs"]["ratio"] <= 0.3
    plan = json.loads((tmp_path / "out.plan.json").read_text())
    assert any("refine-plan" in step and "rounds=3" in step for step in plan["recipe"])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"rounds": 2, "allocate": "global"}, "does not look at"),
        ({"rounds": 2, "repair": False}, "none or too few"),
        ({"allocate": "curves", "repair": False}, "none or too few"),
        ({"allocate": "curved"}, "no allocator"),
        ({"rounds": "2"}, "no int"),
    ],
)
def test_options_that_exclude_each_other(given: dict[str, Any], what: str) -> None:
    """Each is refused with a reason."""
    with pytest.raises(UsageError, match=what):
        kept(**given)


def test_curves_need_an_allocator_that_looks_at_them(call: Call, tmp_path: Path) -> None:
    """Saved curves beside `--allocate global`, or `--exact-only`, would go unseen."""
    model, data = written(tmp_path)
    curves = tmp_path / "curves.json"
    sensitivity(model, curves, data=data)
    given = ["prune", model, "--dry-run", "--curves", curves]
    assert_refused(call(*given, "--target", "macs=0.5", "--allocate", "global"), "--curves")
    assert_refused(call(*given, "--exact-only"), "--curves")
    assert_refused(call(*given, "--target", "macs=0.5", "--rounds", 2), "--rounds", "--data")


@pytest.mark.parametrize(
    ("given", "error"),
    [({"target": {"macs": 0.001}}, BudgetError), ({"target": HALF, "skip": ("none",)}, UsageError)],
)
def test_what_no_plan_can_be_is_said_before_measuring(
    given: dict[str, Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring takes minutes on a large model."""
    monkeypatch.setattr(Study, "run", None)
    with pytest.raises(error):
        prune(net(), data=samples(), **given, **OFF)


def test_the_recipe_can_be_written_down() -> None:
    """Each pass as text for the plan file."""
    passes = plan_passes(PruneOptions(target=HALF), has_data=True, measures=True)
    assert all(spec(one).startswith(one.name) for one in passes)


def test_a_score_that_runs_the_model_gets_its_libraries() -> None:
    """Scores of the weights alone take none."""
    for score, expected in (("output", ("ops.so",)), ("obs", ("ops.so",)), ("l2", ())):
        options = PruneOptions(target=HALF, score=score, custom_ops=("ops.so",))
        [found] = [p for p in plan_passes(options, has_data=True, measures=False)
                   if p.name == f"score-{score}"]  # fmt: skip
        assert getattr(found, "custom_ops", ()) == expected
