"""Views of a model, and what is refused before anyone works on it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model.checks import MAX_DEPTH, check
from onnxprune.model.graph import (
    Model,
    Node,
    all_graphs,
    free_names,
    needed_bytes,
    tensors,
)

FLOAT = TensorProto.FLOAT


def value(name: str, shape: list[int | str] | None = None) -> Any:
    """A float graph input or output."""
    return helper.make_tensor_value_info(name, FLOAT, shape)


def stored(name: str, array: Any, dtype: Any = np.float32) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def small(
    nodes: list[NodeProto], weights: list[TensorProto], output: str = "y", ir: int = 8
) -> ModelProto:
    """x to y through these nodes."""
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 2])], [value(output)], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir
    )


def body(*nodes: NodeProto, output: str = "out") -> GraphProto:
    """A branch of an If."""
    return helper.make_graph(list(nodes), "body", [], [value(output)])


def dense(weight: Any = ((1, 2), (3, 4)), reader: str = "MatMul") -> ModelProto:
    """One weight and one reader."""
    return small([helper.make_node(reader, ["x", "w"], ["y"], name="fc")], [stored("w", weight)])


# --- views ---------------------------------------------------------------------------------------


def test_attributes_have_python_types() -> None:
    """Text that is none stays bytes; what is missing is the default."""
    graph = body(helper.make_node("Neg", ["x"], ["out"]))
    proto = helper.make_node("Odd", ["x"], ["y"], i=3, f=0.5, s="text", ints=[1, 2], g=graph)
    proto.attribute.append(helper.make_attribute("raw", b"\xff\xfe"))
    proto.attribute.append(helper.make_attribute("t", stored("t", [1.0, 2.0])))
    node = Node(proto, 0)
    assert [node.attr(n) for n in ("i", "f", "s", "ints", "raw")] == [3, 0.5, "text", [1, 2],
                                                                      b"\xff\xfe"]  # fmt: skip
    assert node.attr("t").tolist() == [1.0, 2.0]
    assert node.attr("g") == graph
    assert node.attr("none", "default") == "default"


def test_an_attribute_that_cannot_be_read_is_the_models_fault() -> None:
    """A tensor cut short inside an attribute: an error with the node's name."""
    proto = helper.make_node("Odd", ["x"], ["y"], name="here")
    proto.attribute.append(helper.make_attribute("t", stored("t", [1.0, 2.0])))
    proto.attribute[0].t.raw_data = b"abc"
    with pytest.raises(ModelError, match="`t`") as error:
        Node(proto, 0).attr("t")
    assert "`here`" in error.value.where


def test_nodes_know_their_place() -> None:
    """Missing inputs are empty, the key is the first output that has a name."""
    node = Node(helper.make_node("LSTM", ["x", "w", "r", "", "", "h"], ["", "y_h"]), 4)
    assert (node.input(3), node.input(5), node.input(9)) == ("", "h", "")
    assert node.key == "y_h"
    assert Node(helper.make_node("Neg", ["x"], ["y"], domain="ai.onnx"), 0).domain == ""


def test_a_model_knows_who_makes_and_reads_a_value() -> None:
    """Every use, with the input it is read at."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["y"]),
    ]
    model = Model(small(nodes, [stored("w", [1, 2])]))
    assert model.producer["a"].op == "Add"
    assert [(node.op, slot) for node, slot in model.consumers["a"]] == [("Mul", 0), ("Mul", 1)]
    assert [(node.op, slot) for node, slot in model.consumers["w"]] == [("Add", 1)]
    assert (model.dims("w"), model.opset) == ((2,), 17)


@pytest.mark.parametrize(("ir", "overridable"), [(3, set()), (4, {"w"}), (8, {"w"})])
def test_weights_that_are_listed_as_inputs(ir: int, overridable: set[str]) -> None:
    """Up to IR 3 every weight is; from then on a caller may replace those."""
    proto = small([helper.make_node("Add", ["x", "w"], ["y"])], [stored("w", [1, 2])], ir=ir)
    proto.graph.input.append(value("w", [2]))
    model = Model(proto)
    assert model.overridable == overridable
    assert model.input_names == ("x",)


def test_arrays_are_read_only_and_let_go() -> None:
    """A large one lives as long as it is used: a model is not in memory twice."""
    wide = np.ones((200, 200))
    model = Model(small([helper.make_node("Add", ["x", "w"], ["y"])], [stored("w", wide)]))
    array = model.array("w")
    assert model.array("w") is array
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert model._arrays.get("w") is not None
    del array
    gc.collect()
    assert model._arrays.get("w") is None


def test_bodies_take_from_around_them() -> None:
    """Names of outer graphs, at any depth; not their own."""
    inner = body(helper.make_node("Add", ["far", "near"], ["out"]))
    chosen = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    outer = body(helper.make_node("Neg", ["x"], ["near"]), chosen)
    assert free_names(inner) == {"far", "near"}
    assert free_names(outer) == {"far", "x", "yes"}
    top = helper.make_node("If", ["yes"], ["y"], then_branch=outer, else_branch=outer)
    nodes = [helper.make_node("Neg", ["x"], ["far"]), top]
    model = Model(small(nodes, [stored("yes", True, np.bool_)]))
    assert model.captured == {"far", "x", "yes"}
    assert len(list(all_graphs(model.proto.graph))) == 1 + 2 + 4


def test_every_tensor_is_found() -> None:
    """In bodies, attributes, sparse tensors, training, functions."""
    constant = helper.make_node("Constant", [], ["out"], value=stored("", [1.0]))
    branch = body(constant)
    branch.initializer.append(stored("inside", [1.0]))
    top = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    model = small([top], [stored("w", [1.0])])
    sparse = helper.make_sparse_tensor(stored("thin", [1.0]), stored("", [0], np.int64), [4])
    model.graph.sparse_initializer.append(sparse)
    model.training_info.add().initialization.initializer.append(stored("train", [1.0]))
    model.functions.append(
        helper.make_function("d", "F", [], ["out"], [constant], [helper.make_opsetid("", 17)])
    )
    names = sorted(name for name, _ in tensors(model))
    assert names == ["", "inside", "inside", "out", "out", "out", "thin", "train", "w"]


@pytest.mark.parametrize(
    ("kind", "dims", "wanted"),
    [(FLOAT, [2, 3], 24), (TensorProto.INT4, [3], 2), (TensorProto.UINT4, [0], 0),
     (TensorProto.BOOL, [5], 5), (TensorProto.COMPLEX128, [], 16), (TensorProto.STRING, [9], 0),
     (FLOAT, [2**40, 2**40], 2**82)],
)  # fmt: skip
def test_bytes_that_a_shape_needs(kind: int, dims: list[int], wanted: int) -> None:
    """Packed types share bytes; a hostile shape does not overflow."""
    assert needed_bytes("w", TensorProto(data_type=kind, dims=dims)) == wanted


# --- what is refused -----------------------------------------------------------------------------


def _two_outputs(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["x"], ["y"]))


def _two_weights(model: ModelProto) -> None:
    model.graph.initializer.append(stored("w", [1.0]))


def _input_made(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["w"], ["x"]))


def _weight_made(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["x"], ["w"]))


def _unmade_input(model: ModelProto) -> None:
    model.graph.node[0].input[1] = "none"


def _unmade_output(model: ModelProto) -> None:
    model.graph.output[0].name = "none"


def _no_output(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["x"], [""]))


def _short(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"abc"


def _long(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data += bytes(4)


def _few_values(model: ModelProto) -> None:
    tensor = helper.make_tensor("w", FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])
    del tensor.float_data[:1]
    model.graph.initializer[0].CopyFrom(tensor)


def _negative(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-2, -2]


def _huge(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**62, 2**62]


def _unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


@pytest.mark.parametrize(
    ("spoil", "what"),
    [(_two_outputs, "two values are named `y`"), (_two_weights, "two values are named `w`"),
     (_input_made, "two values are named `x`"), (_weight_made, "two values are named `w`"),
     (_unmade_input, "nothing makes the value `none`"), (_no_output, "no output"),
     (_unmade_output, "nothing makes the output `none`"), (_short, "holds 3 bytes"),
     (_long, "holds 20 bytes"), (_few_values, "holds 3 values"), (_negative, "the shape"),
     (_huge, "needs"), (_unknown_type, "unknown type 99")],
)  # fmt: skip
def test_broken_models_are_refused(spoil: Callable[[ModelProto], None], what: str) -> None:
    """By name, and before they are run."""
    model = dense()
    check(model)
    spoil(model)
    with pytest.raises(ModelError, match=what):
        check(model)


def nested(depth: int) -> ModelProto:
    """Ifs within Ifs."""
    inner = body(helper.make_node("Neg", ["x"], ["out"]))
    for _ in range(depth - 1):
        chosen = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
        inner = body(chosen)
        inner.node[0].attribute.pop()  # one branch is deep enough
    top = helper.make_node("If", ["yes"], ["y"], then_branch=inner)
    return small([top], [stored("yes", True, np.bool_)])


def test_nesting_has_an_end() -> None:
    """As deep as anyone exports, and no deeper."""
    check(nested(MAX_DEPTH))
    with pytest.raises(ModelError, match="nested deeper"):
        check(nested(MAX_DEPTH + 1))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("reader", ["MatMul", "Gemm", "BatchNormalization"])
@pytest.mark.parametrize(("bad", "what"), [(NAN, "holds NaN"), (INF, "infinite"),
                                           (-INF, "infinite")])  # fmt: skip
def test_broken_weights_are_refused(reader: str, bad: float, what: str) -> None:
    """A NaN or an infinity where a sum or a norm reads it, with the reader's name."""
    with pytest.raises(ModelError, match=f"`w` {what}|`w` holds {what}") as error:
        check(dense([[1, bad], [3, 4]], reader))
    assert "`fc`" in error.value.where


@pytest.mark.parametrize("weight", [[[0, -INF], [-INF, 0]], INF, NAN])
def test_masks_and_bounds_may_be_infinite(weight: Any) -> None:
    """An attention mask; a bound of Clip; a single NaN as a fill value."""
    check(dense(weight, "Add"))


def test_nan_in_a_mask_is_no_mask() -> None:
    """Several values of which one is NaN come from a broken export."""
    with pytest.raises(ModelError, match="holds NaN"):
        check(dense([[0, NAN], [0, 0]], "Add"))


def test_values_that_cancel_are_still_seen() -> None:
    """Both infinities in one weight; sums that overflow without any are fine."""
    with pytest.raises(ModelError, match="infinite"):
        check(dense([[INF, -INF], [0, 0]]))
    check(dense([[3e38, 3e38], [3e38, -3e38]]))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_floats_are_looked_at_too(kind: int) -> None:
    """Also those that numpy lacks."""
    tensor = helper.make_tensor("w", kind, [2, 2], [1.0, NAN, 1.0, 1.0])
    with pytest.raises(ModelError, match="holds NaN"):
        check(small([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor]))


def test_weights_of_bodies_are_looked_at() -> None:
    """A NaN inside a branch."""
    branch = body(helper.make_node("MatMul", ["x", "v"], ["out"]))
    branch.initializer.append(stored("v", [[1, NAN], [1, 1]]))
    top = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match="`v` holds NaN"):
        check(small([top], [stored("yes", True, np.bool_)]))
