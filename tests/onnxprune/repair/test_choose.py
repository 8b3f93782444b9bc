"""Plans are compared by what the outputs lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnx.numpy_helper import to_array

from onnxprune import prune
from onnxprune.identity.dims import Dims
from onnxprune.model.graph import Model
from onnxprune.readers.folds import folds
from onnxprune.repair import choose
from onnxprune.repair.choose import Trials, output_errors
from tests.builder import Builder
from tests.calibrated import dataset
from tests.nets import run


def net() -> Any:
    """Eight hidden channels, of which the last four are large."""
    b = Builder(0)
    first = b.rng.standard_normal((6, 8)) * np.repeat([0.01, 1.0], 4)
    hidden = b.node("Relu", b.node("MatMul", "x", b.add(first)))
    y = b.node("MatMul", hidden, b.weight(8, 3))
    return b.model({"x": ["n", 6]}, {y: ["n", 3]})


def data(count: int = 60) -> Any:
    return np.random.default_rng(2).standard_normal((count, 6)).astype(np.float32)


def test_a_model_is_no_error_to_itself() -> None:
    """And one with other weights is some."""
    model = net()
    other = net()
    other.graph.initializer[1].raw_data = b"\0" * len(other.graph.initializer[1].raw_data)
    whole = dataset(model, data())
    assert output_errors(Model(model), Model(model), whole).tolist() == [0.0] * 60
    # Scores that are all alike say nothing: a divergence from what the original says.
    assert output_errors(Model(model), Model(other), whole).mean() > 0.1


def test_outputs_that_are_no_distribution_are_compared_by_their_squares() -> None:
    """Outputs that are all zero differ from the original by its second moment."""
    model = net()
    other = net()
    other.graph.initializer[1].raw_data = b"\0" * len(other.graph.initializer[1].raw_data)
    for one in (model, other):
        one.graph.node[-1].output[0] = one.graph.output[0].name = "embedding"
    whole = dataset(model, data())
    assert output_errors(Model(model), Model(other), whole).mean() >= 1


@pytest.mark.parametrize("shape", [[1, 1], [1], [1, 3]], ids=str)
def test_a_batch_of_one_varies_from_sample_to_sample(shape: list[int]) -> None:
    """What errors are relative to is the spread over all batches, also where each holds one."""

    def made(batch: int | str, seed: int) -> ModelProto:
        b = Builder(seed)
        y = b.node("Gemm", "x", b.weight(6, shape[-1]), b.add(np.full(shape[-1], 1000.0)))
        out = [batch, *shape[1:]]
        y = y if len(shape) > 1 else b.node("Reshape", y, b.ints(-1))
        model = b.model({"x": [batch, 6]}, {y: out})
        model.graph.node[-1].output[0] = model.graph.output[0].name = "embedding"
        return model

    one, many = (
        output_errors(Model(made(n, 0)), Model(made(n, 1)), dataset(made(n, 0), data()))
        for n in (1, "n")
    )
    np.testing.assert_allclose(one, many, rtol=1e-3)
    ours, theirs = (data() @ to_array(made("n", seed).graph.initializer[0]) for seed in (0, 1))
    wanted = ((theirs - ours) ** 2).sum() / ((ours - ours.mean(axis=0)) ** 2).sum()
    assert many.mean() == pytest.approx(wanted, rel=1e-3)


def test_outputs_without_a_batch_axis_vary_one_by_one() -> None:
    """What lies between different outputs is no spread of any of them."""

    def made(seed: int, *, flat: bool) -> Model:
        b = Builder(seed)
        y = b.node("Gemm", "x", b.weight(6, 3), b.add(np.arange(3) * 1000.0))
        y = b.node("Reshape", y, b.ints(-1)) if flat else y
        model = b.model({"x": [1, 6]}, {y: [3] if flat else [1, 3]})
        model.graph.node[-1].output[0] = model.graph.output[0].name = "embedding"
        return Model(model)

    flat, rows = (
        output_errors(made(0, flat=f), made(1, flat=f), dataset(made(0, flat=f).proto, data()))
        for f in (True, False)
    )
    np.testing.assert_allclose(flat, rows, rtol=1e-6)


def test_a_plan_is_judged_on_samples_that_it_was_not_repaired_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fold of a small model's samples in turn, the last of a large one's."""
    model = net()
    state = run(model)
    samples = dataset(model, data())
    parts = folds(samples.subset(range(45)), samples.subset(range(45, 60)), 640)
    seen = []

    def made(self: Trials, alive: Any, fit: Any, *, copies: bool) -> tuple[None, Model]:
        seen.append({*np.concatenate([fold.rows for fold in fit]).tolist()})
        return None, self.original.model

    def error(_: Model, __: Model, held: Any, ___: Any) -> Any:
        assert not seen[-1] & {*held.rows.tolist()}
        return np.zeros(held.n)

    monkeypatch.setattr(Trials, "_made", made)
    monkeypatch.setattr(choose, "output_errors", error)
    trials = Trials(state.subject, state[Dims], parts)
    trials.best({"all": np.ones(trials.dims.count, np.bool_)})
    assert len(seen) == 4
    assert set.union(*seen) == {*range(60)}
    monkeypatch.setattr(choose, "SMALL_MACS", 0)
    trials.best({"all": np.ones(trials.dims.count, np.bool_)})
    assert seen[-1] == {*range(45)}


def test_the_plan_that_loses_least_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small channels go rather than large ones; equal plans are tried once."""
    model = net()
    state = run(model)
    dims, samples = state[Dims], dataset(model, data())
    parts = folds(samples.subset(range(45)), samples.subset(range(45, 60)), 640)
    hidden = next(d for d in dims.free if d.size == 8)
    small, large = (np.ones(dims.count, np.bool_) for _ in range(2))
    small[hidden.channels[:4]] = False
    large[hidden.channels[4:]] = False
    calls = []
    real = Trials._errors
    monkeypatch.setattr(Trials, "_errors", lambda self, a: calls.append(1) or real(self, a))
    best, errors = Trials(state.subject, dims, parts).best(
        {"large": large, "small": small, "small again": small.copy()}
    )
    assert best == "small"
    assert len(calls) == 2  # folds are held out behind `_errors`
    assert errors["small"] == errors["small again"] < errors["large"]


def test_a_plan_that_is_better_by_chance_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stays where the difference of the means is within its standard error."""
    model = net()
    state = run(model)
    noise = np.random.default_rng(0).standard_normal(60)
    noise -= noise.mean()
    made = {"first": np.ones(60), "chance": 0.9 + noise, "better": 0.9 + 0.1 * noise,
            "broken": np.full(60, np.nan)}  # fmt: skip
    plans = {name: np.full(3, at) for at, name in enumerate(made)}
    monkeypatch.setattr(Trials, "_errors", lambda _, alive: [*made.values()][alive[0]])
    trials = Trials(state.subject, state[Dims], [])

    def best(*names: str) -> str:
        return trials.best({name: plans[name] for name in names})[0]

    assert best("first", "chance", "broken") == "first"
    assert best("first", "better") == "better"
    assert best("broken", "first") == "first"
    assert trials.best(plans)[1]["chance"] == pytest.approx(0.9)


def test_a_prune_says_what_it_compared(tmp_path: Path) -> None:
    """Plans and errors stand in the result; an allocator that was asked for is not compared."""
    np.savez(tmp_path / "d.npz", x=data(80))
    given: dict[str, Any] = {"data": tmp_path / "d.npz", "target": {"macs": 0.6}, "latency_s": 0}
    said = prune(net(), **given).json()
    assert {"curves", "curves ranked by the score"} <= said["plans"].keys()
    assert said["plan_taken"] in said["plans"]
    assert prune(net(), allocate="curves", **given).json()["plans"] is None
