"""What a caller, the checker or shape inference would notice without running the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.model.graph import Model
from onnxprune.normal.normalize import normalize
from onnxprune.passes.verify_structure import VerifyStructure, type_text
from onnxprune.shape import valid
from onnxprune.shape.valid import declared_weights
from tests.builder import Builder
from tests.pairs import compared, edited, mlp


def found(original: ModelProto, candidate: ModelProto) -> dict[str, Any]:
    return VerifyStructure().run(compared(original, candidate))


def test_a_model_equals_itself() -> None:
    """Nothing is wrong with a copy."""
    assert found(mlp(), mlp()) == {"passed": True, "failures": [], "notes": []}


def _rename_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"


def _retype_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _fix_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _rename_axis(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"


def _widen_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4


def _add_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _swap_outputs(model: ModelProto) -> None:
    outputs = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def _raise_opset(model: ModelProto) -> None:
    model.opset_import[0].version += 1


def _import_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _change_metadata(model: ModelProto) -> None:
    helper.set_model_props(model, {"classes": "a,b"})


@pytest.mark.parametrize(
    ("edit", "failure"),
    [
        (_rename_output, "output `logits` is gone"),
        (_rename_output, "output `scores` is new"),
        (_retype_input, "input `x` was float [N, 5], is now double [N, 5]"),
        (_fix_batch, "input `x` was float [N, 5], is now float [1, 5]"),
        (_rename_axis, "output `features` was float [N, 8], is now float [rows, 8]"),
        (_widen_output, "output `features` was float [N, 8], is now float [N, 4]"),
        (_add_input, "input `more` is new"),
        (_swap_outputs, "the outputs stand in another order: `logits`, `features`"),
        (_raise_opset, "opset of `ai.onnx` was 21, is now 22"),
        (_import_domain, "opset of `com.microsoft` was None, is now 1"),
        (_change_metadata, "metadata `classes` was 'a,b,c', is now 'a,b'"),
    ],
)
def test_changes_of_the_interface_are_named(
    edit: Callable[[ModelProto], None], failure: str
) -> None:
    """Names, order, types, shapes, dynamic axes, opsets and metadata all count."""
    original = mlp(outputs=1 if edit is _rename_output else 2)
    helper.set_model_props(original, {"classes": "a,b,c"})
    result = found(original, edited(original, edit))
    assert not result["passed"]
    assert failure in result["failures"]


def _listing_weights(ir_version: int) -> ModelProto:
    def list_them(model: ModelProto) -> None:
        model.ir_version = ir_version
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in model.graph.initializer
        )

    return edited(mlp(), list_them)


def test_in_old_models_listed_weights_are_no_interface() -> None:
    """Up to IR 3 every initializer is listed as an input; from IR 4 on a caller may give it."""

    def unlist(model: ModelProto) -> None:
        del model.graph.input[1:]
        model.ir_version = 8

    old, new = _listing_weights(3), _listing_weights(8)
    assert found(old, edited(old, unlist))["failures"] == []
    assert "input `w0` is gone" in found(new, edited(new, unlist))["failures"]


def _norm(gamma: int, units: int = 4) -> ModelProto:
    """BatchNormalization over 4 channels, with so many scales."""
    b = Builder(0)
    rest = [b.weight(units) for _ in range(2)] + [b.add(np.ones(units))]
    b.node("BatchNormalization", "x", b.weight(gamma), *rest)
    return b.model({"x": ["N", 4, 2]}, {"v0": ["N", 4, 2]})


def test_what_the_checker_refuses_is_a_failure() -> None:
    """A vector of another length than its channels."""
    result = found(_norm(4), _norm(3))
    assert not result["passed"]
    assert result["failures"][0].startswith("checker: ")
    assert "shape inference: " in result["failures"][1]


def test_an_exporters_fault_is_not_the_candidates() -> None:
    """What the checker refuses in the original too is noted, and passes."""
    result = found(_norm(3), _norm(3))
    assert result["passed"]
    assert [note.split(":")[0] for note in result["notes"]] == [
        "checker refuses the original too",
        "shape inference refuses the original too",
    ]


def test_weights_are_looked_at() -> None:
    """One that is cut short, one with NaN, and one that is gone."""

    def cut_short(model: ModelProto) -> None:
        model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]

    def poison(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        values = np.full(list(tensor.dims), np.nan, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    def lose(model: ModelProto) -> None:
        del model.graph.initializer[0]

    for edit, words in (
        (cut_short, "tensor `w0` holds 156 bytes"),
        (poison, "weight `w0` holds NaN (read by `n_v0` (MatMul))"),
        (lose, "nothing makes the value `w0` (node `n_v0` (MatMul))"),
    ):
        result = found(mlp(), edited(mlp(), edit))
        assert not result["passed"]
        assert any(words in failure for failure in result["failures"])


def _wide(rows: int) -> ModelProto:
    b = Builder(0)
    b.node("MatMul", "x", b.weight(rows, 600))
    return b.model({"x": ["N", 500]}, {"v0": ["N", 600]})


def test_large_weights_are_not_serialised_and_still_checked() -> None:
    """A weight of more than 1 MB costs the checker some bytes; its dims must still fit."""
    assert _wide(500).ByteSize() > 1_000_000
    assert declared_weights(_wide(500)).ByteSize() < 1000
    assert found(_wide(500), _wide(500))["passed"]
    assert found(_wide(500), _wide(400))["failures"][0].startswith("checker: ")


def test_a_model_too_large_without_its_weights_is_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Constants inside of nodes stay; where they are too large the finding says so."""
    monkeypatch.setattr(valid, "LIMIT_BYTES", 1000)
    b = Builder(0)
    value = numpy_helper.from_array(np.ones((20, 20), np.float32))
    b.node("Add", "x", b.node("Constant", value=value))
    model = b.model({"x": ["N", 20]}, {"v1": [20, 20]})
    result = found(model, model)
    assert result["passed"]
    assert result["notes"] == [
        f"{name} skipped: without its weights the model is still over 2 GB"
        for name in ("checker", "shape inference")
    ]


def test_inlined_functions_are_no_change() -> None:
    """Their domain goes with them."""
    body = [helper.make_node("Relu", ["a"], ["b"])]
    imports = [helper.make_opsetid("", 21)]
    function = helper.make_function("own", "Gate", ["a"], ["b"], body, imports)
    b = Builder(0)
    b.node("Gate", b.node("MatMul", "x", b.weight(5, 4)), domain="own")
    model = b.model({"x": ["N", 5]}, {"v1": ["N", 4]})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    candidate = normalize(Model(model)).proto
    assert not candidate.functions
    assert found(model, candidate)["failures"] == []
    lone = edited(candidate, lambda m: m.opset_import.append(helper.make_opsetid("other", 1)))
    assert found(model, lone)["failures"] == ["opset of `other` was None, is now 1"]


def test_types_are_told_in_words() -> None:
    """Sequences and maps too."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", None, 3])
    scores = helper.make_map_type_proto(TensorProto.INT64, tensor)
    assert type_text(tensor) == "float [N, ?, 3]"
    assert type_text(helper.make_sequence_type_proto(scores)) == (
        "sequence of map of int64 to float [N, ?, 3]"
    )
    assert type_text(helper.make_optional_type_proto(tensor)) == "optional of float [N, ?, 3]"
