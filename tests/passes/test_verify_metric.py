"""The task metric before and after, and when there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.backend.feeds import Array
from onnxprune.backend.runtime import session
from onnxprune.errors import UsageError
from onnxprune.passes.verify_metric import VerifyMetric
from onnxprune.samples.dataset import Dataset
from tests.builder import Builder
from tests.pairs import FEATURES, broken, compared, dataset, edited, mlp, reweighted

SAMPLES = 60
X = np.random.default_rng(3).standard_normal((SAMPLES, FEATURES)).astype(np.float32)


def logits(model: ModelProto) -> Array:
    return session(model).run({"x": X})[-1]


def found(
    original: ModelProto, candidate: ModelProto, labels: Array | None, **options: Any
) -> dict[str, Any]:
    data = dataset(original, {"x": X}, labels)
    result = VerifyMetric(**options).run(compared(original, candidate, data))
    json.dumps(result, allow_nan=False)
    return result


def spoilt() -> ModelProto:
    """Two of the three classes change places."""
    return reweighted(mlp(), lambda w: w[:, [1, 0, 2]].copy())


def first_wins(outputs: Array, labels: Array) -> float:
    """A metric of the user's own: how often class 0 is guessed."""
    return float((outputs.argmax(axis=1) == 0).mean())


def test_accuracy_is_measured_on_whole_number_labels() -> None:
    """The original is always right here; the candidate where both guess the same."""
    labels = logits(mlp()).argmax(axis=1)
    result = found(mlp(), spoilt(), labels)
    share = float((labels == logits(spoilt()).argmax(axis=1)).mean())
    assert (result["name"], result["output"]) == ("accuracy", "logits")
    assert result["samples"] == SAMPLES
    assert (result["before"], result["after"]) == (1, pytest.approx(share))
    assert result["drop"] == pytest.approx(1 - share)
    low, high = result["interval"]
    assert low < share < high
    low, high = result["change"]
    assert low < result["after"] - 1 < high < 0
    assert result["agreement"] == pytest.approx(share)


def test_equal_models_lose_nothing() -> None:
    """Where the original is no better."""
    labels = np.arange(SAMPLES) % 3
    result = found(mlp(), mlp(), labels)
    assert result["before"] == result["after"] < 1
    assert (result["drop"], result["change"], result["agreement"]) == (0, [0, 0], 1)


def test_r2_is_measured_on_other_labels() -> None:
    """Labels that the original meets exactly."""
    result = found(mlp(), reweighted(mlp(), lambda w: w * 0), logits(mlp()))
    assert result["name"] == "r2"
    assert result["before"] == pytest.approx(1)
    assert result["after"] < 0.1


def test_a_larger_error_is_a_drop() -> None:
    """Of a metric of which less is better."""
    result = found(mlp(), spoilt(), logits(mlp()), metric="mse")
    assert result["higher_is_better"] is False
    assert result["before"] == pytest.approx(0, abs=1e-9)
    assert result["drop"] == result["after"] > 0


def test_without_labels_agreement_is_measured() -> None:
    """With the original, which agrees with itself."""
    result = found(mlp(), spoilt(), None)
    share = float((logits(mlp()).argmax(axis=1) == logits(spoilt()).argmax(axis=1)).mean())
    assert (result["name"], result["before"]) == ("agreement", 1)
    assert result["after"] == result["agreement"] == pytest.approx(share)
    assert share < 1


def test_agreement_goes_by_the_outputs_name() -> None:
    """Logits of each position agree by their class, not by their values."""
    b = Builder(0)
    b.node("MatMul", b.node("Unsqueeze", "x", b.ints(2)), b.weight(1, 4))
    b.nodes[-1].output[0] = "logits"
    model = b.model({"x": ["N", FEATURES]}, {"logits": ["N", FEATURES, 4]})
    assert found(model, reweighted(model, lambda w: w * 2), None)["after"] == 1


def test_the_first_output_that_fits_is_read() -> None:
    """Labels of three values a sample fit the second output only; by name any can be asked for."""
    model = mlp(outputs=2)
    changed = reweighted(model, lambda w: w * 1.5)
    assert found(model, changed, logits(model))["output"] == "logits"
    assert found(model, changed, None)["output"] == "features"
    assert found(model, changed, None, output="logits")["output"] == "logits"
    with pytest.raises(UsageError, match="no output is named `logit`"):
        found(model, changed, None, output="logit")


def test_labels_that_fit_no_output_are_a_reason_to_skip() -> None:
    """The first output's reason is told."""
    result = found(mlp(), mlp(), np.zeros((SAMPLES, 7), np.float32))
    assert "do not fit labels of shape" in result["skipped"]


def test_a_metric_of_ones_own_needs_its_direction() -> None:
    """`module:function`, with higher or lower values better."""
    labels = np.arange(SAMPLES) % 3
    name = f"{__name__}:first_wins"
    result = found(mlp(), spoilt(), labels, metric=name, better="lower")
    before, after = (float((logits(m).argmax(axis=1) == 0).mean()) for m in (mlp(), spoilt()))
    assert (result["before"], result["after"]) == (before, after)
    assert result["drop"] == pytest.approx(after - before)
    with pytest.raises(UsageError, match="which direction"):
        found(mlp(), mlp(), labels, metric=name)
    with pytest.raises(UsageError, match="`up` is no direction"):
        found(mlp(), mlp(), labels, metric=name, better="up")


def test_what_cannot_be_measured_says_why() -> None:
    """No data, no labels, a candidate that does not load, an output that is gone."""
    assert VerifyMetric().run(compared(mlp(), mlp())) == {"skipped": "there is no data"}
    needed = found(mlp(), mlp(), None, metric="auc")
    assert needed == {"skipped": "the metric `auc` needs labels, and the data has none"}
    assert found(mlp(), broken(mlp()), None)["skipped"].startswith("the candidate does not load")
    gone = found(mlp(outputs=2), mlp(), None, output="features")
    assert gone == {"skipped": "output `features` is gone"}


def test_an_undefined_metric_is_skipped() -> None:
    """The area under a curve of one class only."""
    b = Builder(0)
    b.node("MatMul", "x", b.weight(FEATURES, 1))
    model = b.model({"x": ["N", FEATURES]}, {"v0": ["N", 1]})
    result = found(model, model, np.ones(SAMPLES, np.int64), metric="auc")
    assert "is not defined on these samples" in result["skipped"]


def test_an_output_of_another_shape_is_skipped() -> None:
    """Its rows are no longer those of the original."""

    def slim(model: ModelProto) -> None:
        model.graph.initializer[1].dims[1] = 2
        model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:64]
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2

    result = found(mlp(), edited(mlp(), slim), None)
    assert result == {"skipped": "the output `logits` has changed its shape"}


def test_samples_that_the_graph_cannot_batch_are_left_out() -> None:
    """A fixed batch of 16 takes 48 of 60 samples, and their labels."""
    labels = logits(mlp()).argmax(axis=1)
    data: Dataset = dataset(mlp(batch=16), {"x": X}, labels)
    result = VerifyMetric().run(compared(mlp(batch=16), mlp(batch=16), data))
    assert (result["samples"], result["before"]) == (48, 1)
