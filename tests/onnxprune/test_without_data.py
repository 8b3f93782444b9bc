"""Prune without data: seeded inputs stand in where they can, and the result says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune import opening, prune
from onnxprune.backend.runtime import session
from onnxprune.progress import key_of
from onnxprune.recipe import PruneOptions, VerifyOptions
from onnxprune.samples.dataset import fingerprint
from tests.builder import Builder
from tests.command import LATENCY_OFF, caller
from tests.measured import net, samples, written

HALF: dict[str, Any] = {"target": {"macs": 0.5}, "latency_s": 0}
SEEDED = "seeded inputs"


def recurrent(seed: int = 5) -> ModelProto:
    """A GRU of 24 units over sequences of 6 numbers."""
    b = Builder(seed)
    flow = b.node("Transpose", "x", perm=[1, 0, 2])
    weights = [b.add(b.rng.standard_normal((1, 72, n)) / np.sqrt(n)) for n in (6, 24)]
    y = b.node("GRU", flow, *weights, b.weight(1, 144), hidden_size=24, outputs=2)
    y = b.node("Reshape", y, b.ints(0, -1, 24))
    return b.model({"x": ["n", 10, 6]}, {b.node("MatMul", y, b.weight(24, 4)): [10, "n", 4]})


def attention(seed: int = 3) -> ModelProto:
    """A head over tokens of a table of 20, and a layer of 32 units behind it."""
    b = Builder(seed)
    x = b.node("Gather", b.weight(20, 16), "x")
    q, k, v = (b.node("MatMul", x, b.weight(16, 16)) for _ in range(3))
    seen = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1]))
    mixed = b.node("MatMul", b.node("Softmax", seen, axis=-1), v)
    x = b.node("Add", x, b.node("MatMul", mixed, b.weight(16, 16)))
    h = b.node("Relu", b.node("Add", b.node("MatMul", x, b.weight(16, 32)), b.weight(32)))
    y = b.node("MatMul", h, b.weight(32, 3))
    return b.model({"x": ["n", 6]}, {y: ["n", 6, 3]}, types={"x": TensorProto.INT64})


def walks() -> np.ndarray:
    """Sequences that go on as they went."""
    steps = np.random.default_rng(9).standard_normal((40, 10, 6))
    return (0.5 * steps.cumsum(axis=1)).astype(np.float32)


def words() -> np.ndarray:
    """Tokens of which the first ones are frequent, repeated."""
    drawn = np.random.default_rng(9).geometric(0.3, (40, 3)).clip(max=20) - 1
    return np.repeat(drawn, 2, axis=1).astype(np.int64)


def off(model: ModelProto, made: ModelProto | None, x: np.ndarray) -> float:
    """Squared distance of outputs, relative to their variance."""
    assert made is not None
    ours, theirs = (session(m).run({"x": x})[0] for m in (model, made))
    return float(((ours - theirs) ** 2).sum() / ((ours - ours.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("model", "x"),
    [(net(), samples(9)["x"]), (recurrent(), walks()), (attention(), words())],
    ids=["mlp", "recurrent", "attention"],
)
def test_what_has_no_window_is_repaired(model: ModelProto, x: np.ndarray) -> None:
    """Inputs that have a structure lose less, too, though none of it was known."""
    found, plain = prune(model, **HALF), prune(model, repair=False, **HALF)
    assert found.json()["repaired"]
    assert found.json()["calibration"]["source"] == SEEDED
    assert off(model, found.model, x) < 0.8 * off(model, plain.model, x)


def test_the_report_says_what_was_looked_at() -> None:
    """And claims nothing of real inputs: there is no metric."""
    found = prune(net(), **HALF)
    assert found.json()["calibration"] == {"samples": 640, "source": SEEDED}
    assert "640 seeded inputs stood in for data" in found.report()
    assert found.verify["metric"] == {"skipped": "there is no data"}
    assert found.verify["outputs"]["inputs"] == SEEDED
    given = prune(net(), data=samples(), **HALF)
    assert given.json()["calibration"] == {"samples": 96, "source": "data"}
    assert "stood in" not in given.report()


def test_samples_for_the_figures_alone_are_not_fitted_to() -> None:
    """They are measured on; what is left is repaired on seeded inputs."""
    found = prune(net(), evaluation=samples(), **HALF)
    assert found.verify["metric"]["samples"] == 120
    assert found.json()["calibration"]["source"] == SEEDED


@pytest.mark.parametrize("off", [{"repair": False}, {"exact_only": True, "target": {}}])
def test_nothing_stands_in_where_nothing_is_to_be_repaired(off: dict[str, Any]) -> None:
    """The weights alone choose; nobody is warned of what was asked for."""
    found = prune(net(), **HALF | off).json()
    assert (found["calibration"], found["repaired"], found["warnings"]) == (None, None, [])


def windowed() -> ModelProto:
    """Two convolutions."""
    b = Builder(1)
    h = b.node("Relu", b.node("Conv", "x", b.weight(16, 3, 3, 3)))
    y = b.node("GlobalAveragePool", b.node("Conv", h, b.weight(5, 16, 1, 1)))
    return b.model({"x": ["n", 3, 9, 9]}, {y: ["n", 5, 1, 1]})


def not_running() -> ModelProto:
    """A table looked up beyond its end, too, where the number is large."""
    b = Builder(2)
    table = b.weight(20, 12)
    first, last = (b.node("Gather", table, at) for at in ("i", b.node("Add", "i", b.ints(3))))
    h = b.node("Relu", b.node("MatMul", b.node("Add", first, last), b.weight(12, 32)))
    y = b.node("MatMul", h, b.weight(32, 4))
    return b.model({"i": ["n"]}, {y: ["n", 4]}, types={"i": TensorProto.INT64})


def not_finite() -> ModelProto:
    """An MLP over logarithms."""
    b = Builder(3)
    h = b.node("Relu", b.node("MatMul", b.node("Log", "x"), b.weight(12, 32)))
    return b.model({"x": ["n", 12]}, {b.node("MatMul", h, b.weight(32, 4)): ["n", 4]})


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (windowed(), "sums over neighbouring positions"),
        (not_running(), "could not run the model"),
        (not_finite(), "is not finite on them"),
    ],
)
def test_where_they_cannot_the_weights_choose(model: ModelProto, reason: str) -> None:
    """The same bytes as without repair, and a warning that says why and what would help."""
    found, plain = prune(model, **HALF), prune(model, repair=False, **HALF)
    assert found.model is not None
    assert plain.model is not None
    assert found.model.SerializeToString() == plain.model.SerializeToString()
    [told] = [w for w in found.json()["warnings"] if "nothing is repaired" in w]
    assert reason in told
    assert "give --data" in told
    assert told in " ".join(found.report().split())
    assert (found.json()["calibration"], found.json()["repaired"]) == (None, None)


def test_a_dim_that_needs_data_stays() -> None:
    """Seeded inputs do not tell what a norm over channels loses."""
    b = Builder(0)
    h = b.node("MatMul", "x", b.weight(12, 32))
    normed = b.node("LayerNormalization", h, b.weight(32), b.weight(32), axis=-1)
    h = b.node("Relu", b.node("MatMul", normed, b.weight(32, 32)))
    y = b.node("MatMul", h, b.weight(32, 4))
    model = b.model({"x": ["n", 12]}, {y: ["n", 4]})
    found = prune(model, **HALF | {"target": {"macs": 0.7}}).json()
    assert found["calibration"]["source"] == SEEDED
    assert [row["kept"] < row["of"] for row in found["widths"] if not row["exact"]] == [False]


@pytest.mark.parametrize("given", [{}, {"rounds": 2}, {"allocate": "curves", "workers": 3}])
def test_the_same_seed_makes_the_same_bytes(given: dict[str, Any], tmp_path: Path) -> None:
    """Another seed draws others."""
    made = []
    for i, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"{i}.onnx"
        prune(net(), out, seed=seed, **HALF | given)
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]


def test_a_run_that_is_resumed_had_the_same_inputs() -> None:
    """What was drawn is part of what the result follows from."""
    state = opening.start(net(), None, 4, None)
    assert key_of(state, PruneOptions(), VerifyOptions())["data"] == ""
    opening.stand_in(state, ())
    found = key_of(state, PruneOptions(), VerifyOptions())["data"]
    assert found == fingerprint(state.calibration, labels=True)
    assert state.data is None


def test_the_command_line_does_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`--no-repair` turns it off."""
    model, _ = written(tmp_path)
    call = caller(monkeypatch, capsys)
    given = ["prune", model, "--target", "macs=0.5", "--json", "--overwrite", *LATENCY_OFF]
    ended = call(*given, "-o", tmp_path / "out.onnx")
    assert ended.json()["calibration"]["source"] == SEEDED
    ended = call(*given, "-o", tmp_path / "out.onnx", "--no-repair")
    assert ended.json()["calibration"] is None
