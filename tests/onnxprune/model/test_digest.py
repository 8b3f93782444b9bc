"""A model's hash follows what it computes, not how its file is laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnxprune.model.digest import digest
from onnxprune.model.graph import Model
from onnxprune.model.storage import load, save
from tests.builder import Builder


def built(seed: int = 0) -> ModelProto:
    """A model with a constant in a node, and one in a body."""
    b = Builder(seed)
    held = numpy_helper.from_array(np.arange(3, dtype=np.float32))
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=held)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", 1, [3])],
    )
    chosen = b.node("If", b.add(True, np.bool_), then_branch=branch, else_branch=branch)
    y = b.node("Add", b.node("MatMul", "x", b.weight(40, 3)), chosen)
    return b.model({"x": ["n", 40]}, {y: ["n", 3]})


def test_storage_does_not_matter(tmp_path: Path) -> None:
    """One file, external data, floats instead of raw bytes: one hash."""
    model = load(built())
    save(model, tmp_path / "one.onnx")
    save(model, tmp_path / "two.onnx", limit=0)
    assert (tmp_path / "two.onnx.data").exists()
    typed = built()
    weight = typed.graph.initializer[1]
    values = numpy_helper.to_array(weight).ravel().tolist()
    weight.CopyFrom(helper.make_tensor(weight.name, weight.data_type, weight.dims, values))
    found = {digest(load(tmp_path / name)) for name in ("one.onnx", "two.onnx")}
    assert found == {digest(model), digest(load(typed))}


def test_what_inference_may_tell_does_not_matter() -> None:
    """Another version of onnx infers more."""
    other = built()
    other.graph.value_info.append(helper.make_tensor_value_info("v1", 1, ["n", 3]))
    assert digest(Model(other)) == digest(Model(built()))


def _change_weight(model: ModelProto) -> None:
    raw = bytearray(model.graph.initializer[1].raw_data)
    raw[0] ^= 1
    model.graph.initializer[1].raw_data = bytes(raw)


def _change_shape(model: ModelProto) -> None:
    model.graph.initializer[1].dims[:] = [3, 40]


def _change_body(model: ModelProto) -> None:
    constant = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    constant.raw_data = constant.raw_data[::-1]


def _change_name(model: ModelProto) -> None:
    model.graph.node[1].name = "other"


def _change_note(model: ModelProto) -> None:
    model.metadata_props.add(key="a", value="b")


def _change_weight_note(model: ModelProto) -> None:
    model.graph.initializer[1].metadata_props.add(key="a", value="b")


@pytest.mark.parametrize(
    "change",
    [_change_weight, _change_shape, _change_body, _change_name, _change_note, _change_weight_note],
)
def test_everything_else_does(change: Callable[[ModelProto], None]) -> None:
    """A bit of a weight, a constant in a body, a name, a note."""
    other = built()
    change(other)
    assert digest(Model(other)) != digest(Model(built()))
