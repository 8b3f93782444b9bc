"""Features ranked by what shuffling them does to the outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

import onnxprune
from onnxprune.backend.feeds import Array
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.manager import State
from onnxprune.passes.rank_features import RankFeatures
from onnxprune.samples import columns
from onnxprune.verification import sensitivity
from onnxprune.verification.sensitivity import Importance, Ranking
from tests.builder import Builder
from tests.command import Call, assert_refused, caller
from tests.pairs import broken, compared, dataset, mlp

WEIGHTS, SPREAD = np.array([1.0, -2.0, 0.0, 0.5, 3.0]), np.array([1.0, 1.0, 5.0, 2.0, 1.0])
SAMPLES = 512
# The last column has one value only.
X = (np.random.default_rng(5).standard_normal((SAMPLES, 5)) * SPREAD).astype(np.float32)
X[:, 4] = 1.0


def linear(weights: Any = WEIGHTS, batch: int | str = "N") -> ModelProto:
    """x (N, features) -> y (N, 1)."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.add(np.asarray(weights)[:, None]))
    return b.model({"x": [batch, len(weights)]}, {y: [batch, 1]})


def state_of(model: ModelProto, x: Array = X, labels: Array | None = None) -> State:
    """What the pass meets."""
    return compared(model, model, dataset(model, {"x": x}, labels))


def rows(model: ModelProto, x: Array = X, labels: Array | None = None) -> dict[int, Importance]:
    """What the pass finds, by feature index."""
    found = RankFeatures().run(state_of(model, x, labels))
    return {row.feature.index: row for row in found.rows}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""
    return caller(monkeypatch, capsys)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The linear model and its samples."""
    onnx.save(linear(), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "d.npz", x=X)
    return tmp_path / "m.onnx", tmp_path / "d.npz"


def test_a_linear_model_owes_each_column_its_share_of_the_variance() -> None:
    """Of independent columns, shuffling one adds 2 w^2 var(x) to the squared error."""
    found = RankFeatures(permutations=20).run(state_of(linear()))
    parts = WEIGHTS**2 * X.var(axis=0)
    y = X @ WEIGHTS
    for row in found.rows:
        part = parts[row.feature.index]
        assert row.importance == pytest.approx(2 * part / y.var(), abs=5 * row.se, rel=0.02)
        assert found.share(row) == pytest.approx(part / parts.sum(), abs=0.02)
    assert [row.feature.index for row in found.rows] == [1, *sorted((0, 3), key=lambda i:
                                                         -parts[i]), 2, 4]  # fmt: skip
    assert sum(map(found.share, found.rows)) == pytest.approx(1)


def test_a_dead_column_gets_exactly_zero() -> None:
    """And is told from one of which the samples say nothing."""
    found = rows(linear())
    assert (found[2].importance, found[2].se, found[2].changes, found[2].varies) == (
        0, 0, False, True)  # fmt: skip
    assert (found[4].importance, found[4].changes, found[4].varies) == (0, False, False)
    assert all(found[i].changes for i in (0, 1, 3))


def test_class_scores_are_compared_as_distributions() -> None:
    """Logits that all rise alike are the same distribution, but other outputs."""
    b = Builder(0)
    weights = [[1.0, 1.0], [2.0, -2.0], [0.0, 0.0], [0.5, 0.0], [0.0, 1.0]]
    y = b.node("MatMul", "x", b.add(weights))
    found = rows(b.model({"x": ["N", 5]}, {y: ["N", 2]}))
    assert found[0].changes
    assert found[0].importance == pytest.approx(0, abs=1e-9)
    assert found[1].importance > found[3].importance > 0.01


@pytest.mark.parametrize("numbers", [1, 2**10, 2**30])
def test_the_batch_makes_no_difference(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """How many samples run at once is a matter of speed."""
    first = rows(mlp())
    monkeypatch.setattr(sensitivity, "NUMBERS_AT_ONCE", numbers)
    monkeypatch.setattr(sensitivity, "BATCH", 7)
    again = rows(mlp())
    for index, row in first.items():
        assert again[index].importance == pytest.approx(row.importance, rel=1e-5)
        assert again[index].se == pytest.approx(row.se, rel=1e-4)


def test_a_fixed_batch_is_filled() -> None:
    """Only whole batches run; the ranking is the same."""
    found = RankFeatures(samples=100).run(state_of(linear(batch=16)))
    assert found.samples == 96
    assert found.rows[0].feature.index == 1


def test_labels_add_the_drop_of_the_metric() -> None:
    """Of r2, on labels that the model meets: shuffling takes from it what it adds in error."""
    found = rows(linear(), labels=(X @ WEIGHTS).astype(np.float32))
    for row in found.values():
        assert row.drop == pytest.approx(row.importance, rel=1e-3, abs=1e-5)
    assert (found[2].drop, found[2].drop_se) == (0, 0)


def test_inputs_are_ranked_in_one_list() -> None:
    """A table beside a category; token ids are left out with a note."""
    b = Builder(0)
    table = b.node("MatMul", "x", b.add([[1.0], [3.0]]))
    code = b.node("Cast", "c", to=TensorProto.FLOAT)
    ids = b.node("ReduceMean", b.node("Cast", "ids", to=TensorProto.FLOAT), b.ints(1))
    y = b.node("Sum", table, b.node("Mul", code, b.add(2.0)), ids)
    kinds = {"c": TensorProto.INT64, "ids": TensorProto.INT64}
    model = b.model({"x": ["N", 2], "c": ["N", 1], "ids": ["N", 3]}, {y: ["N", 1]}, types=kinds)
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((99, 2)).astype(np.float32),
              "c": rng.choice([-1, 1], (99, 1)), "ids": rng.integers(0, 9, (99, 3))}  # fmt: skip
    state = compared(model, model, dataset(model, arrays))
    found = RankFeatures().run(state)
    assert [(r.feature.input, r.feature.index) for r in found.rows] == [("x", 1), ("c", 0),
                                                                       ("x", 0)]  # fmt: skip
    assert ["`ids`" in warning for warning in state.warnings] == [True]


def test_a_batch_axis_may_lie_elsewhere() -> None:
    """Columns are shuffled among samples there too."""
    b = Builder(0)
    y = b.node("ReduceSum", "x", b.ints(0), keepdims=0)
    model = b.model({"x": ["time", "batch", 2]}, {y: ["batch", 2]})
    x = np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)
    x[:, 2] *= 4
    assert rows(model, x)[2].importance > 3 * rows(model, x)[1].importance > 0


def test_costs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dear models run on fewer samples, large ones on what fits in memory; both on some."""
    assert RankFeatures().run(state_of(linear())).samples == SAMPLES
    monkeypatch.setattr(sensitivity, "MOST_MACS", 10**5)
    assert RankFeatures().run(state_of(linear())).samples == sensitivity.LEAST_SAMPLES
    monkeypatch.setattr(sensitivity, "KEPT_BYTES", 1)
    monkeypatch.setattr(sensitivity, "NUMBERS_AT_ONCE", 1)
    assert RankFeatures().run(state_of(linear())).samples == sensitivity.BATCH


def test_what_cannot_be_ranked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data, one sample, a model that does not load, outputs without samples."""
    with pytest.raises(UsageError, match="features are ranked on data"):
        RankFeatures().run(compared(mlp(), mlp()))
    with pytest.raises(UsageError, match="at least 2 permutations"):
        RankFeatures(permutations=1).run(state_of(linear()))
    with pytest.raises(DataError, match="one sample cannot be shuffled"):
        RankFeatures().run(state_of(linear(), X[:1]))
    bad = broken(mlp())
    with pytest.raises(ModelError, match="does not load"):
        RankFeatures().run(compared(bad, mlp(), dataset(mlp(), {"x": X})))
    b = Builder(0)
    y = b.node("ReduceSum", "x")
    summed = b.model({"x": ["N", 5]}, {y: [1, 1]})
    with pytest.raises(ModelError, match="no output has one row per sample"):
        RankFeatures().run(state_of(summed))
    monkeypatch.setattr(columns, "MOST_FEATURES", 2)
    state = state_of(linear())
    assert RankFeatures().run(state) == Ranking()
    assert "more than 2" in state.warnings[0]


def test_outputs_that_are_not_finite_are_told(files: tuple[Path, Path]) -> None:
    """The root of a negative sum is no number where the original's was one: infinitely far."""
    b = Builder(0)
    y = b.node("Sqrt", b.node("Sub", "x", b.node("Slice", "x", b.ints(1), b.ints(2), b.ints(1))))
    model = b.model({"x": ["N", 2]}, {y: ["N", 2]})
    x = np.stack([np.arange(9) + 1, np.arange(9)], axis=1).astype(np.float32)
    found = onnxprune.inspect(model, data={"x": x, "y": x[:, 0]}, features=True)
    first = found.json()["features"][0]
    assert first["importance"] is None
    json.dumps(found.json(), allow_nan=False)
    assert "not finite" in found.report()


def test_the_command_line_ranks_features(call: Call, files: tuple[Path, Path]) -> None:
    """As a table, and in full as JSON; without being asked it does not."""
    model, data = files
    found = call("inspect", model, "--features", "--data", data, "--json").json()
    first = found["features"][0]
    assert {"input", "feature", "importance", "se", "share"} <= first.keys()
    assert (first["input"], first["feature"]) == ("x", 1)
    assert len(found["features"]) == 5
    assert found["features_on"] == {"samples": SAMPLES, "permutations": 5, "metric": None,
                                    "before": None}  # fmt: skip
    text = call("inspect", model, "--features", "--data", data).out
    assert "shuffled 5 times among 512 samples" in text
    assert "1 of the features change no output at all: x[2]" in text
    assert "have one value in all samples, which tell nothing of them: x[4]" in text
    plain = call("inspect", model, "--data", data, "--json").json()
    assert plain["features"] is plain["features_on"] is None


def test_a_table_ends_after_twenty_rows(call: Call, tmp_path: Path) -> None:
    """The others are counted; JSON has them all."""
    onnx.save(linear(np.ones(30)), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((40, 30), np.float32))
    text = call("inspect", tmp_path / "m.onnx", "--features", "--data", tmp_path / "d.npz").out
    assert text.count("\nx ") == 20
    assert "... and 10 more" in text


def test_without_data_nothing_is_ranked(call: Call, files: tuple[Path, Path]) -> None:
    """One message that says what to give."""
    assert_refused(call("inspect", files[0], "--features"), "features", "--data")
