"""How far outputs are from the original's, and what cannot be compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.errors import UsageError
from onnxprune.passes.verify_metric import VerifyMetric
from onnxprune.passes.verify_outputs import VerifyOutputs
from onnxprune.samples.dataset import Dataset
from onnxprune.verification import outputs
from onnxprune.verification.trials import BATCH
from tests.builder import Builder
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


def found(
    original: ModelProto, candidate: ModelProto, data: Dataset | None = None, seed: int = 0
) -> dict[str, Any]:
    result = VerifyOutputs().run(compared(original, candidate, data, seed))
    json.dumps(result, allow_nan=False)
    return result


def test_a_model_equals_itself() -> None:
    """No error, full agreement, on inputs that are said to be drawn."""
    result = found(mlp(), mlp())
    assert (result["passed"], result["failures"]) == (True, [])
    assert result["inputs"] == "seeded inputs"
    (logits,) = result["outputs"]
    assert (logits["name"], logits["kind"]) == ("logits", "logits")
    assert (logits["error_worst"], logits["agreement"]) == (0, 1)
    assert logits["samples"] == result["samples"] == 2 + 3 + 2 * outputs.SEEDED_RUNS


def test_an_error_is_measured() -> None:
    """Weights a tenth too large give a relative error of a tenth, in the same direction."""
    (logits,) = found(mlp(), reweighted(mlp(), lambda w: w * 1.1))["outputs"]
    assert logits["error_mean"] == pytest.approx(0.1, abs=1e-5)
    assert logits["cosine_least"] == pytest.approx(1)
    assert logits["agreement"] == 1


def test_a_wrong_result_is_measured() -> None:
    """Logits of the other sign agree on no input that they say anything about."""
    (logits,) = found(mlp(), reweighted(mlp(), np.negative))["outputs"]
    assert logits["agreement"] < 0.3
    assert logits["error_worst"] == pytest.approx(2, abs=1e-5)
    assert logits["cosine_least"] == pytest.approx(-1)


def test_drawn_inputs_follow_the_seed() -> None:
    """The same seed gives the same figures, another gives others."""
    candidate = reweighted(mlp(), lambda w: np.roll(w, 1))
    first, again, other = (found(mlp(), candidate, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["outputs"] != other["outputs"]


def _linear() -> ModelProto:
    b = Builder(0)
    b.node("MatMul", "x", b.weight(FEATURES, 4))
    return b.model({"x": ["N", FEATURES]}, {"v0": ["N", 4]})


def test_the_worst_sample_of_the_data_is_found() -> None:
    """Only one sample reads the row of weights that is wrong, in a later batch."""
    samples, odd = 2 * BATCH + 3, BATCH + 2
    x = np.zeros((samples, FEATURES), np.float32)
    x[:, 0], x[odd] = 1, np.eye(FEATURES)[2]

    def spoil(w: Any) -> Any:
        return np.concatenate([w[:2], w[2:3] * 3, w[3:]])

    result = found(_linear(), reweighted(_linear(), spoil, "w0"), dataset(_linear(), {"x": x}))
    (output,) = result["outputs"]
    assert (result["inputs"], result["samples"], output["samples"]) == ("data", samples, samples)
    assert output["worst_sample"] == odd
    assert output["error_worst"] == pytest.approx(2, abs=1e-5)
    assert output["error_mean"] == pytest.approx(2 / samples, abs=1e-5)


def _narrowed(model: ModelProto) -> ModelProto:
    """A copy whose `features` are half as many; its logits are what they were."""
    b = Builder(0)
    b.node("Slice", "v1", b.ints(0), b.ints(4), b.ints(1))

    def narrow(made: ModelProto) -> None:
        b.nodes[-1].output[0] = "features"
        made.graph.node[-2].CopyFrom(b.nodes[-1])
        made.graph.node[-2].name = "narrow"
        for tensor in b.weights:
            tensor.name += "_new"
            made.graph.initializer.append(tensor)
        made.graph.node[-2].input[1:] = [t.name for t in b.weights]
        made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4

    return edited(model, narrow)


def test_an_output_of_another_shape_is_a_failure() -> None:
    """It has no figures; the others keep theirs."""
    model = mlp(outputs=2)
    result = found(model, _narrowed(model))
    assert not result["passed"]
    (failure,) = result["failures"]
    assert failure.startswith("an output has changed its shape or type: `features`: (2, 8)")
    assert [(o["name"], o["error_worst"]) for o in result["outputs"]] == [("logits", 0)]


def test_an_output_that_is_gone_is_a_failure() -> None:
    """The others keep their figures."""
    result = found(mlp(outputs=2), mlp())
    assert result["failures"] == ["output `features` is gone"]
    assert [o["name"] for o in result["outputs"]] == ["logits"]


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_finite_are_a_failure() -> None:
    """Where the original's are; the findings stay JSON."""
    huge = reweighted(mlp(), lambda w: np.full_like(w, 3e38))
    result = found(mlp(), huge)
    assert not result["passed"]
    assert result["failures"][0].startswith("output `logits` is not finite in sample ")
    assert result["outputs"][0]["error_worst"] is None
    assert found(huge, huge)["passed"]


def test_a_candidate_that_does_not_run_has_failed() -> None:
    """Nor does one that runs on some samples only; an original that does not is skipped."""
    for candidate in (broken(mlp()), broken_at_run(mlp())):
        data = dataset(mlp(), {"x": np.ones((3, FEATURES), np.float32)})
        result = found(mlp(), candidate, data)
        assert not result["passed"]
        assert result["failures"][0].startswith("the candidate does not ")
    assert set(found(broken(mlp()), mlp())) == {"skipped"}


def test_the_original_chooses_the_sizes_it_runs_at() -> None:
    """At a batch of 2 only, of those that are tried; where none runs the user is told how."""
    only_two = broken_at_run(mlp())
    assert found(only_two, mlp())["samples"] == 2 + 2 * outputs.SEEDED_RUNS

    def bake_five(model: ModelProto) -> None:
        model.graph.initializer[-1].raw_data = np.array([5, 8], np.int64).tobytes()

    reason = found(edited(only_two, bake_five), mlp())["skipped"]
    assert reason.endswith("; give data, or name other sizes with --shape")


def test_half_precision_is_compared() -> None:
    """float16 as it is served; bfloat16, which has no kernels, as float32 copies."""
    for kind, is_copy in ((TensorProto.FLOAT16, False), (TensorProto.BFLOAT16, True)):
        model = in_float16(mlp(), kind)
        result = found(model, in_float16(reweighted(mlp(), lambda w: w * 1.5), kind))
        assert result["float32_copies"] is is_copy
        assert result["outputs"][0]["error_mean"] == pytest.approx(0.5, abs=0.01)


def test_an_output_without_samples_is_one_sample_a_run() -> None:
    """A sum over the batch."""
    b = Builder(0)
    b.node("ReduceSum", b.node("MatMul", "x", b.weight(FEATURES, 4)), b.ints(0), keepdims=0)
    model = b.model({"x": ["N", FEATURES]}, {"v1": [4]})
    (output,) = found(model, model)["outputs"]
    assert output["samples"] == 2 + outputs.SEEDED_RUNS


def test_outputs_are_remembered_for_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric runs nothing again; large outputs are run again, to the same figures."""
    data = dataset(mlp(), {"x": np.random.default_rng(0).standard_normal((40, 5), np.float32)})
    candidate = reweighted(mlp(), lambda w: np.roll(w, 1))
    fresh = VerifyMetric().run(compared(mlp(), candidate, data))
    loads: list[int] = []
    load = outputs.load_pair

    def counted(*args: Any, **more: Any) -> Any:
        loads.append(1)
        return load(*args, **more)

    monkeypatch.setattr(outputs, "load_pair", counted)
    for limit, expected in ((outputs.KEPT_BYTES, 1), (100, 2)):
        monkeypatch.setattr(outputs, "KEPT_BYTES", limit)
        state = compared(mlp(), candidate, data)
        loads.clear()
        VerifyOutputs().run(state)
        assert VerifyMetric().run(state) == fresh
        assert len(loads) == expected


def test_libraries_of_custom_operators_are_loaded() -> None:
    """One that is not there is the user's mistake."""
    with pytest.raises(UsageError, match="custom operator library"):
        VerifyOutputs(custom_ops=("nowhere.so",)).run(compared(mlp(), mlp()))
