"""Both models are timed with equal settings; how long they take is no claim of a test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.backend.feeds import Array
from onnxprune.backend.runtime import Session
from onnxprune.errors import UsageError
from onnxprune.passes import verify_latency
from onnxprune.passes.verify_latency import VerifyLatency
from onnxprune.verification.latency import Latency, Times
from tests.pairs import (
    FEATURES,
    broken,
    broken_at_run,
    compared,
    dataset,
    edited,
    in_float16,
    mlp,
    reweighted,
)


class Recorder:
    """Stands in for the measurement and keeps what it was asked to time."""

    def __init__(self) -> None:
        self.outputs: list[Array] = []
        self.feeds: Mapping[str, Array] = {}
        self.asked: dict[str, Any] = {}

    def __call__(
        self, reference: Session, candidate: Session, feeds: Mapping[str, Array], **asked: Any
    ) -> Latency:
        self.outputs = [reference.run(feeds)[0], candidate.run(feeds)[0]]
        self.feeds, self.asked = feeds, asked
        times = Times(2.0, 2.0, 2.0, 500.0, 30)
        return Latency(times, times, 1.0, (0.9, 1.1), 30, is_precise=True)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(verify_latency, "measure_sessions", made)
    return made


def test_the_figures_belong_together() -> None:
    """Of a real measurement: pairs, percentiles, throughput, the interval, and where it was."""
    options = {"seconds": 0.3, "threads": 1, "batch": 4}
    result = VerifyLatency(**options).run(compared(mlp(), mlp()))
    json.dumps(result, allow_nan=False)
    for times in (result["reference"], result["candidate"]):
        assert times["runs"] == result["pairs"] >= 3
        assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
        assert times["per_second"] == pytest.approx(4e3 / times["p50_ms"])
    low, high = result["interval"]
    assert low <= result["speedup"] <= high
    where = result["environment"]
    assert (where["provider"], where["threads"], where["batch"]) == ("CPUExecutionProvider", 1, 4)
    assert result["shapes"] == {"x": [4, FEATURES]}


def test_the_original_is_timed_against_the_candidate(recorder: Recorder) -> None:
    """In this order, on the same feeds, with what the options ask for."""
    doubled = reweighted(mlp(), lambda w: w * 2)
    result = VerifyLatency(seconds=7, precision=0.1).run(compared(mlp(), doubled, seed=5))
    np.testing.assert_allclose(recorder.outputs[1], 2 * recorder.outputs[0], rtol=1e-5)
    assert recorder.asked == {"seed": 5, "batch": 1, "precision": 0.1, "time_limit_s": 7}
    assert result["speedup_claimed"] is False


def test_the_batch_is_the_graphs_own_where_it_is_fixed(recorder: Recorder) -> None:
    """Throughput counts the samples that were run."""
    for model, shape in ((mlp(), [8, FEATURES]), (mlp(batch=2), [2, FEATURES])):
        result = VerifyLatency(batch=8).run(compared(model, model))
        assert result["shapes"] == {"x": shape}
        assert recorder.asked["batch"] == result["environment"]["batch"] == shape[0]


def test_samples_of_the_data_are_timed(recorder: Recorder) -> None:
    """Over again where they are fewer than the batch, as many as the graph takes."""
    x = np.random.default_rng(0).standard_normal((3, FEATURES)).astype(np.float32)
    for model, rows in ((mlp(), [0, 1, 2, 0, 1]), (mlp(batch=2), [0, 1])):
        VerifyLatency(batch=5).run(compared(model, model, dataset(model, {"x": x})))
        np.testing.assert_array_equal(recorder.feeds["x"], x[rows])
        assert recorder.asked["batch"] == len(rows)


def test_other_sizes_are_timed_where_the_batch_does_not_run(recorder: Recorder) -> None:
    """An original that takes no batch but 2."""
    result = VerifyLatency(batch=7).run(compared(broken_at_run(mlp()), mlp()))
    assert result["shapes"] == {"x": [2, FEATURES]}


def test_what_cannot_be_timed_says_why(recorder: Recorder) -> None:
    """No time, a model that does not load or run, and numbers without kernels."""

    def reason(original: ModelProto, candidate: ModelProto, **options: Any) -> str:
        return str(VerifyLatency(**options).run(compared(original, candidate))["skipped"])

    assert reason(mlp(), mlp(), seconds=0) == "its time limit is 0"
    assert reason(mlp(), broken(mlp())).startswith("the candidate does not load: ")
    assert reason(broken(mlp()), mlp()).startswith("the original does not load: ")
    assert reason(mlp(), broken_at_run(mlp())).startswith("the candidate does not run: ")
    bfloat16 = in_float16(mlp(), TensorProto.BFLOAT16)
    assert "bfloat16" in reason(bfloat16, bfloat16)
    renamed = edited(mlp(), _rename_input)
    assert "the candidate does not run" in reason(mlp(), renamed)


def _rename_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "y"


def test_an_input_that_is_gone_is_no_crash() -> None:
    """A candidate that reads one input fewer cannot be given the same feeds."""

    def add(model: ModelProto) -> None:
        model.graph.input.append(model.graph.input[0])
        model.graph.input[1].name = "more"

    result = VerifyLatency(seconds=0.1).run(compared(edited(mlp(), add), mlp()))
    assert "more" in result["skipped"]


def test_options_that_mean_nothing_are_the_users_mistake() -> None:
    """A batch of nothing, a provider or a library that is not there."""
    for options, words in (
        ({"batch": 0}, "batch of 0"),
        ({"provider": "nowhere"}, "`nowhere` is not installed"),
        ({"custom_ops": ("nowhere.so",)}, "custom operator library"),
    ):
        with pytest.raises(UsageError, match=words):
            VerifyLatency(**options).run(compared(mlp(), mlp()))
