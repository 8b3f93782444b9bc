"""Sizes of dynamic axes: two sets that differ wherever something is dynamic."""

from __future__ import annotations

import pytest
from onnx import ModelProto, TensorProto, helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.model.graph import Model
from onnxprune.shape.sizes import choose, declared
from tests.builder import Builder


def plain(*shape: int | str, more: dict[str, list[int | str]] | None = None) -> Model:
    """Relu of an input of this shape."""
    b = Builder(0)
    y = b.node("Relu", "x")
    return Model(b.model({"x": list(shape), **(more or {})}, {y: list(shape)}))


def test_axes_are_told_as_written() -> None:
    """A dynamic axis is its name, or its place where it has none."""
    proto = plain("n", 3, "t").proto
    proto.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    assert declared(Model(proto)) == {"x": ("n", 3, "x:2")}


def test_sizes_differ_and_are_above_one() -> None:
    """Pairwise, in each set and between the sets; cost has a batch of one."""
    sizes, first, second, cost = choose(plain("n", 3, "h", "w"))
    n, _, h, w = sizes.first["x"]
    assert len({n, h, w}) == 3
    assert min(n, h, w) > 1
    assert all(a != b for a, b in zip((n, h, w), (sizes.second["x"][i] for i in (0, 2, 3)),
                                      strict=True))  # fmt: skip
    assert sizes.cost["x"][0] == 1
    assert sizes.dynamic == {"x": (0, 2, 3)}
    assert [s.shape["x"] for s in (first, second, cost)] == [
        sizes.first["x"], sizes.second["x"], sizes.cost["x"]]  # fmt: skip


def test_a_symbol_has_one_size() -> None:
    """Inputs that share a name share the length."""
    b = Builder(0)
    y = b.node("Add", "x", "z")
    sizes, *_ = choose(Model(b.model({"x": ["n", "t"], "z": ["n", "t"]}, {y: ["n", "t"]})))
    assert sizes.first["x"] == sizes.first["z"]


def test_symbols_that_must_agree_are_made_to() -> None:
    """Exporters name the same length apart: the sets of sizes are tried in turn."""
    b = Builder(0)
    y = b.node("Add", "x", "z")
    sizes, *_ = choose(Model(b.model({"x": ["a", "s"], "z": ["b", "t"]}, {y: ["a", "s"]})))
    assert sizes.first["x"] == sizes.first["z"]
    assert sizes.first["x"] != sizes.second["x"]


def test_given_shapes_are_costed_and_guide_the_others() -> None:
    """What the user names is what cost is counted at, and two sizes near it are used."""
    sizes, *_ = choose(plain("n", 3, "t"), {"x": (5, 3, 40)})
    assert sizes.cost["x"] == (5, 3, 40)
    assert sizes.first["x"][2] == 40
    assert sizes.second["x"][2] != 40


def test_a_wrong_shape_is_refused() -> None:
    """Both what is given and what the model says are told."""
    with pytest.raises(UsageError, match="shape 1x4x8 does not fit input `x`"):
        choose(plain("n", 3, "t"), {"x": (1, 4, 8)})
    with pytest.raises(UsageError, match="no input is named `y`"):
        choose(plain("n", 3, "t"), {"y": (1, 3, 8)})


def test_sizes_that_never_fit_are_the_models_fault() -> None:
    """The first reason is told."""
    b = Builder(0)
    y = b.node("Add", "x", "z")
    with pytest.raises(ModelError, match="shapes do not fit"):
        choose(Model(b.model({"x": ["n", 3], "z": ["n", 4]}, {y: ["n", 4]})))


def without_shape() -> ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_an_input_without_a_shape_is_refused() -> None:
    """Nothing could be followed; the hint says what to do."""
    with pytest.raises(ModelError, match="input `x` has no shape"):
        choose(Model(without_shape()))


def test_inputs_that_are_no_tensors_are_left_alone() -> None:
    """A sequence has no axes."""
    proto = plain("n", 3).proto
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["t"]))
    proto.graph.input.append(helper.make_value_info("s", kind))
    assert declared(Model(proto)) == {"x": ("n", 3)}
