"""Both models run at two sizes of every dynamic axis, and their outputs have one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.errors import UsageError
from onnxprune.passes.verify_run import VerifyRun
from onnxprune.samples.dataset import Dataset
from tests.builder import Builder
from tests.pairs import (
    broken,
    broken_at_run,
    compared,
    dataset,
    edited,
    in_float16,
    mlp,
)


def found(
    original: ModelProto, candidate: ModelProto, data: Dataset | None = None
) -> dict[str, Any]:
    return VerifyRun().run(compared(original, candidate, data))


def test_every_dynamic_axis_has_two_sizes() -> None:
    """A fixed axis keeps its own; a fully fixed model runs once."""
    b = Builder(0)
    b.node("MatMul", "x", b.weight(5, 4))
    model = b.model({"x": ["N", "T", 5]}, {"v0": ["N", "T", 4]})
    result = found(model, model)
    assert (result["passed"], result["failures"], result["notes"]) == (True, [], [])
    first, second = (run["x"] for run in result["runs"])
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first[2] == second[2] == 5
    fixed = found(mlp(batch=2), mlp(batch=2))
    assert fixed["runs"] == [{"x": [2, 5]}]


def test_data_is_run_too() -> None:
    """Its first samples, at their own sizes."""
    data = dataset(mlp(), {"x": np.ones((1, 5), np.float32)})
    assert found(mlp(), mlp(), data)["runs"][-1] == {"x": [1, 5]}


def _leaking() -> tuple[ModelProto, ModelProto]:
    """A Reshape of [N, 8] to [-1, 8] and its cut to [N, 4], which puts two samples in a row."""
    made = []
    for width in (8, 4):
        b = Builder(0)
        b.node("Reshape", b.node("MatMul", "x", b.weight(5, width)), b.ints(-1, 8))
        made.append(b.model({"x": ["N", 5]}, {"v1": ["M", 8]}))
    return made[0], made[1]


def test_channels_that_leak_into_the_batch_are_a_failure() -> None:
    """The model runs, and its output has another shape."""
    result = found(*_leaking())
    assert not result["passed"]
    assert "output `v1` was float32 [2, 8], is now float32 [1, 8]" in result["failures"]


def test_a_baked_batch_fails_at_the_other_size() -> None:
    """A candidate that runs at one size only."""
    result = found(mlp(), broken_at_run(mlp()))
    assert not result["passed"]
    assert len(result["failures"]) == 1
    assert result["failures"][0].startswith("at `x` 3x5 the candidate does not run: ")
    assert len(result["runs"]) == 2


def test_a_candidate_that_does_not_load_has_failed() -> None:
    """Nothing is raised."""
    result = found(mlp(), broken(mlp()))
    assert not result["passed"]
    assert result["failures"][0].startswith("the candidate does not load: ")


def test_an_original_that_does_not_run_proves_nothing() -> None:
    """Not at one size: noted; at none: skipped, and so where it does not load."""
    result = found(broken_at_run(mlp()), mlp())
    assert result["passed"]
    assert result["runs"] == [{"x": [2, 5]}]
    assert result["notes"][0].startswith("at `x` 3x5 the original does not run: ")
    assert "does not load" in found(broken(mlp()), mlp())["skipped"]


def test_an_original_without_sizes_runs_on_data_only() -> None:
    """An input of unknown rank says nothing about the sizes that fit."""

    def forget(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.ClearField("shape")

    original = edited(mlp(), forget)
    reason = "no sizes of its inputs fit the original: input `x` has no shape"
    assert found(original, original) == {"skipped": reason}
    data = dataset(original, {"x": np.ones((7, 5), np.float32)})
    result = found(original, original, data)
    assert (result["runs"], result["notes"]) == ([{"x": [2, 5]}], [reason])


def test_another_type_is_a_failure() -> None:
    """The same numbers as float64."""

    def widen(model: ModelProto) -> None:
        model.graph.node[-1].op_type = "Cast"
        model.graph.node[-1].attribute.add(name="to", i=TensorProto.DOUBLE, type=2)
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    result = found(mlp(), edited(mlp(), widen))
    assert "output `logits` was float32 [2, 3], is now float64 [2, 3]" in result["failures"]


def test_an_output_that_is_gone_is_a_failure() -> None:
    """The others are still compared; with none left the check has failed as a whole."""
    result = found(mlp(outputs=2), mlp())
    assert result["failures"] == ["output `features` is gone"]
    renamed = edited(mlp(), lambda m: setattr(m.graph.output[0], "name", "features"))
    assert found(mlp(), renamed) == {
        "passed": False,
        "failures": ["the candidate has none of the outputs `logits`"],
    }


def _detector(seed: int, *, is_turned: bool = False) -> ModelProto:
    """How many places are above zero depends on the weights."""
    b = Builder(seed)
    value = b.node("Relu", b.node("MatMul", "x", b.weight(5, 9)))
    places = b.node("NonZero", value)
    shape: list[int | str] = [2, "K"]
    if is_turned:
        places, shape = b.node("Transpose", places), ["K", 2]
    return b.model({"x": ["N", 5]}, {places: shape}, types={places: TensorProto.INT64})


def test_what_depends_on_the_data_may_differ() -> None:
    """The number of places found; axes that the interface fixes may not."""
    result = found(_detector(0), _detector(1))
    assert (result["passed"], result["failures"]) == (True, [])
    turned = edited(
        _detector(1, is_turned=True), lambda m: setattr(m.graph.output[0], "name", "v2")
    )
    turned.graph.node[-1].output[0] = "v2"
    turned.graph.node[-2].output[0] = turned.graph.node[-1].input[0] = "before"
    result = found(_detector(0), turned)
    assert len(result["failures"]) == 2


def test_sequences_are_compared_by_kind() -> None:
    """A tensor in the place of a sequence is another form."""
    made = []
    for op in ("SplitToSequence", "Identity"):
        b = Builder(0)
        b.node(op, b.node("MatMul", "x", b.weight(5, 4)))
        made.append(b.model({"x": ["N", 5]}, {"v1": ["N", 4]}))
    del made[0].graph.output[0].type.tensor_type.shape.dim[:]
    made[0].graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    assert found(made[0], made[0])["passed"]
    assert "output `v1` was sequence [2], is now float32 [2, 4]" in found(*made)["failures"]


def test_half_precision_runs() -> None:
    """As it is, or as float32 copies where ONNX Runtime has no kernels."""
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        model = in_float16(mlp(), kind)
        assert found(model, model)["passed"]
        assert not found(model, broken_at_run(model))["passed"]


def test_libraries_of_custom_operators_are_loaded() -> None:
    """One that is not there is the user's mistake."""
    with pytest.raises(UsageError, match="custom operator library"):
        VerifyRun(custom_ops=("nowhere.so",)).run(compared(mlp(), mlp()))
