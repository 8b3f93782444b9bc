"""`sensitivity`: damage measured once, cut to many budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import prune, sensitivity
from onnxprune.damage.curves import Study
from onnxprune.errors import CurvesError, DataError, UsageError
from tests.command import LATENCY_OFF, Call, assert_refused, caller
from tests.measured import net, samples, written

OFF = {"latency_s": 0.0}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make measuring fail."""

    def run(_: Study) -> None:
        raise AssertionError("damage is measured again")

    monkeypatch.setattr(Study, "run", run)


def test_saved_curves_cut_as_measured_ones_do(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, model and plan, at every budget, and nothing is measured again."""
    model, data = written(tmp_path)
    curves = tmp_path / "curves.json"
    ended = call("sensitivity", model, "--data", data, "-o", curves)
    assert ended.code == 0, ended.err
    assert "cheapest" in ended.out
    assert str(curves) in ended.out
    made = {}
    for share in (0.7, 0.4):
        out = tmp_path / f"measured{share}.onnx"
        prune(model, out, data=data, target={"macs": share}, allocate="curves", **OFF)
        made[share] = out.read_bytes(), out.with_suffix(".plan.json").read_bytes()
    forbid(monkeypatch)
    for share, known in made.items():
        out = tmp_path / f"saved{share}.onnx"
        ended = call("prune", model, "-o", out, "--data", data, "--curves", curves,
                     "--target", f"macs={share}", "--allocate", "curves", *LATENCY_OFF)  # fmt: skip
        assert ended.code == 0, ended.err
        assert (out.read_bytes(), out.with_suffix(".plan.json").read_bytes()) == known


def test_the_table_begins_with_the_cheapest() -> None:
    """Damage at half the width for the MACs that a Dim has to do with."""
    found = sensitivity(net(), data=samples())
    rows = found.json()["dims"]
    assert len(rows) == 2
    costs = [row["damage_per_macs"] for row in rows]
    assert costs == sorted(costs)
    assert found.report().index(rows[0]["name"]) < found.report().index(rows[1]["name"])
    assert found.curves is not None
    assert found.model is None


def test_curves_of_another_model_are_refused(call: Call, tmp_path: Path) -> None:
    """Before anything is cut or written."""
    model, data = written(tmp_path)
    curves, out = tmp_path / "curves.json", tmp_path / "out.onnx"
    sensitivity(net(seed=1), curves, data=data)
    ended = call("prune", model, "-o", out, "--data", data, "--curves", curves,
                 "--target", "macs=0.5")  # fmt: skip
    assert_refused(ended, "measured on another model", "onnxprune sensitivity")
    assert not out.exists()


def test_curves_without_data_choose_widths() -> None:
    """No data is needed to cut by saved curves; nothing is repaired then."""
    curves = sensitivity(net(), data=samples()).curves
    found = prune(net(), curves=curves, target={"macs": 0.5}, **OFF)
    assert found.cost["macs"]["ratio"] <= 0.5
    assert found.json()["repaired"] is None


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_that_chose_the_widths_are_named(seed: int) -> None:
    """With another seed the figures may come from samples that were measured on."""
    curves = sensitivity(net(), data=samples()).curves
    found = prune(net(), data=samples(), curves=curves, target={"macs": 0.5}, seed=seed, **OFF)
    told = [w for w in found.json()["warnings"] if "chosen the widths" in w]
    assert len(told) == seed
    apart = prune(net(), data=samples(), evaluation=samples(5), curves=curves,
                  target={"macs": 0.5}, seed=seed, **OFF)  # fmt: skip
    assert not [w for w in apart.json()["warnings"] if "chosen the widths" in w]


def test_nothing_is_measured_without_samples() -> None:
    """No data, and too little of it, are two errors."""
    with pytest.raises(UsageError, match="measured on data"):
        sensitivity(net())
    few = {name: array[:8] for name, array in samples().items()}
    with pytest.raises(DataError, match="8 samples are too few"):
        sensitivity(net(), data=few)


def test_broken_curves_are_refused_first(tmp_path: Path) -> None:
    """Before the model is even loaded."""
    path = tmp_path / "curves.json"
    path.write_text("{}")
    with pytest.raises(CurvesError, match="no file of curves"):
        prune(tmp_path / "none.onnx", curves=path, target={"macs": 0.5})


def test_curves_are_never_written_over(call: Call, tmp_path: Path) -> None:
    """Without --overwrite what stands there stays."""
    model, data = written(tmp_path)
    out = tmp_path / "curves.json"
    out.write_text("mine")
    assert_refused(call("sensitivity", model, "--data", data, "-o", out), "overwrite")
    assert out.read_text() == "mine"
    assert call("sensitivity", model, "--data", data, "-o", out, "--overwrite", "--json").code == 0
    assert np.all([row["size"] > 0 for row in sensitivity(model, data=data).json()["dims"]])
