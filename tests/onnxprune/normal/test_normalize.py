"""The normalised form computes the same, keeps the interface, loses only what is idle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.backend.feeds import seeded_inputs
from onnxprune.errors import ModelError
from onnxprune.model.graph import Model
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize, normalize_with_origins, sort_nodes, stored_weights
from onnxprune.shape.sizes import choose
from tests.builder import Builder
from tests.oracle import run

MODELS = sorted((Path(__file__).parents[3] / "models").glob("*/model.onnx"))
TOLERANCE = 1e-6
FLOAT = TensorProto.FLOAT


def info(name: str, shape: list[int | str] | None = None, kind: int = FLOAT) -> ValueInfoProto:
    """A graph input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def small(nodes: list[NodeProto], weights: dict[str, Any], **more: Any) -> ModelProto:
    """x: [n, 4] to y, through these nodes."""
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    inputs, outputs = [info("x", ["n", 4])], [info("y")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opsets = more.pop("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, opset_imports=opsets, **{"ir_version": 8} | more)


def ops(model: Model) -> list[str]:
    """Operators, in order."""
    return [node.op for node in model.nodes]


def assert_same(model: ModelProto, feeds: dict[str, Any]) -> Model:
    """The normalised model gives the same outputs."""
    made = normalize(load(model))
    for a, b in zip(run(model, feeds), run(made.proto, feeds), strict=True):
        assert np.abs(a - b).max(initial=0) <= TOLERANCE * max(np.abs(a).max(initial=0), 1)
    return made


X = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
W = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_real_models_compute_the_same(path: Path) -> None:
    """Outputs, interface and value_info of the repository's models."""
    model = load(path)
    made = normalize(model)
    feeds = seeded_inputs(model.inputs, choose(model)[0].first, 0)
    for a, b in zip(run(model.proto, feeds), run(made.proto, feeds), strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(a).max(), 1)
    assert made.proto.graph.input == model.proto.graph.input
    assert made.proto.graph.output == model.proto.graph.output
    typed = {v.name for v in (*made.proto.graph.value_info, *made.outputs)}
    assert {n for node in made.nodes if not node.domain for n in node.outputs if n} <= typed


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_a_normal_form_stays_as_it_is(path: Path) -> None:
    """Normalising twice is normalising once."""
    once = normalize(load(path))
    assert normalize(once).proto == once.proto


def test_constants_become_weights() -> None:
    """In every spelling, under the name of the value."""
    floats = numpy_helper.from_array(W)
    model = small(
        [
            helper.make_node("Constant", [], ["w"], value=floats),
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Constant", [], ["five"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]),
            helper.make_node("Constant", [], ["shape"], value_ints=[-1, 5]),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Mul", ["a", "two"], ["b"]),
            helper.make_node("Add", ["b", "five"], ["c"]),
            helper.make_node("Reshape", ["c", "shape"], ["y"]),
        ],
        {},
    )
    made = assert_same(model, X)
    assert made.initializers.keys() == {"w", "two", "five", "shape"}
    assert made.array("five").dtype == np.float32
    assert made.array("shape").dtype == np.int64


def test_what_a_body_or_the_caller_reads_keeps_its_name() -> None:
    """An Identity goes unless its output is captured, or its input is needed elsewhere."""
    branch = helper.make_graph([helper.make_node("Neg", ["held"], ["n"])], "b", [], [info("n")])
    model = small(
        [
            helper.make_node("Identity", ["x"], ["idle"]),
            helper.make_node("Relu", ["idle"], ["r"]),
            helper.make_node("Identity", ["r"], ["held"]),
            helper.make_node("If", ["yes"], ["s"], then_branch=branch, else_branch=branch),
            helper.make_node("Add", ["s", "r"], ["t"]),
            helper.make_node("Identity", ["t"], ["y"]),
        ],
        {"yes": np.array(True)},
    )
    made = assert_same(model, X)
    assert ops(made) == ["Relu", "Identity", "If", "Add"]
    assert made.nodes[-1].outputs == ("y",)


@pytest.mark.parametrize(
    ("inputs", "is_idle"),
    [(["r"], True), (["r", "ratio"], True), (["r", "ratio", "off"], True),
     (["r", "ratio", "on"], False)],
)  # fmt: skip
def test_dropout_goes_where_it_does_nothing(inputs: list[str], is_idle: bool) -> None:
    """Training mode is read from its input, which must be a constant that says no."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Dropout", inputs, ["d"])]
    weights = {"ratio": np.float32(0.5), "off": np.array(False), "on": np.array(True)}
    made = normalize(load(small([*nodes, helper.make_node("Neg", ["d"], ["y"])], weights)))
    assert ("Dropout" not in ops(made)) == is_idle


def test_functions_are_inlined() -> None:
    """Also those written for another opset; names of their nodes are found again."""
    body = [
        helper.make_node("MatMul", ["a", "b"], ["m"]),
        helper.make_node("Relu", ["m"], ["out"]),
    ]
    for version in (17, 13):
        function = helper.make_function(
            "local", "Dense", ["a", "b"], ["out"], body, [helper.make_opsetid("", version)]
        )
        model = small(
            [helper.make_node("Dense", ["x", "w"], ["y"], name="layer", domain="local")],
            {"w": W},
            functions=[function],
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        )
        made = assert_same(model, X)
        assert ops(made) == ["MatMul", "Relu"]
        assert not made.proto.functions
        assert all(node.name for node in made.nodes)


def test_nodes_are_put_in_order() -> None:
    """A reversed chain, longer than Python's stack is deep."""
    chain = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(3000)]
    assert sort_nodes(chain[::-1]) == chain


def test_a_cycle_is_refused() -> None:
    """With a node that is part of it."""
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    with pytest.raises(ModelError, match="cycle"):
        normalize(load(small(nodes, {})))


def test_bodies_are_left_as_they_are() -> None:
    """Constants inside If stay; what they capture is still there."""
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Identity", ["one"], ["two"]),
            helper.make_node("Mul", ["two", "outer"], ["n"]),
        ],
        "b",
        [],
        [info("n")],
    )
    choose_one = helper.make_node("If", ["yes"], ["s"], then_branch=branch, else_branch=branch)
    model = small(
        [
            helper.make_node("Constant", [], ["outer"], value_float=3.0),
            choose_one,
            helper.make_node("Mul", ["s", "x"], ["y"]),
        ],
        {"yes": np.array(True)},
    )
    made = assert_same(model, X)
    assert made.nodes[0].proto == choose_one
    assert "outer" in made.initializers


def rich_model() -> ModelProto:
    """A model with something in every corner that a rewrite could lose."""
    function = helper.make_node("Odd", ["r"], ["o"], name="odd", domain="unknown", doc_string="d")
    function.attribute.append(helper.make_attribute("raw", b"\xff\xfe\x00"))
    function.metadata_props.add(key="k", value="v")
    model = small(
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("MatMul", ["i", "w"], ["r"], name="dense", doc_string="why"),
            function,
            helper.make_node("Add", ["o", "free"], ["y"]),
        ],
        {"w": W, "free": np.ones(5, np.float32), "unused": np.ones(2, np.float32)},
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("unknown", 3)],
        producer_name="p",
        doc_string="about",
        domain="here",
        model_version=7,
    )
    helper.set_model_props(model, {"key": "value"})
    graph = model.graph
    graph.doc_string = "graph"
    graph.metadata_props.add(key="a", value="b")
    graph.input.append(info("free", [5]))
    graph.initializer[0].doc_string = "weight"
    graph.initializer[0].metadata_props.add(key="c", value="d")
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    annotation = graph.quantization_annotation.add(tensor_name="r")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    model.training_info.add().algorithm.name = "train"
    return model


def test_nothing_else_is_lost() -> None:
    """Every field but nodes, value_info and initializers is as it was, and so are most of those."""
    model = rich_model()
    before = model.SerializeToString(deterministic=True)
    made = normalize(load(model)).proto
    assert model.SerializeToString(deterministic=True) == before, "the source was edited"
    assert list(made.graph.initializer) == list(model.graph.initializer)
    assert made.graph.node[1:] == model.graph.node[2:]
    assert made.graph.node[0].input == ["x", "w"]
    for proto in (made, model):
        del proto.graph.node[:], proto.graph.value_info[:]
    assert made == model


def test_sequences_and_maps_survive() -> None:
    """What classifiers hand out: a sequence of maps."""
    labels = {"domain": "ai.onnx.ml", "classlabels_int64s": [1, 2]}
    zipped = helper.make_node("ZipMap", ["r"], ["y"], **labels)
    model = small(
        [helper.make_node("Softmax", ["x"], ["r"]), zipped],
        {},
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)],
    )
    kind = model.graph.output[0].type
    kind.Clear()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = FLOAT
    made = normalize(load(model))
    assert made.proto.graph.output == model.graph.output
    feeds = {"x": X["x"][:, :2]}
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2
    assert run(normalize(load(model)).proto, feeds) == run(model, feeds)


def test_old_models_list_their_new_weights_as_inputs() -> None:
    """In IR 3 every initializer is a graph input; those that go take their entry along."""
    model = small(
        [
            helper.make_node("Transpose", ["wt"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        {"wt": np.ascontiguousarray(W.T)},
        ir_version=3,
        opset_imports=[helper.make_opsetid("", 8)],
    )
    model.graph.input.append(info("wt", [5, 4]))
    made = assert_same(model, X)
    assert [i.name for i in made.proto.graph.input] == ["x", "w"]
    assert made.input_names == ("x",)


def test_types_beyond_foreign_operators_are_kept() -> None:
    """Inference stops at an operator it does not know, unless the exporter told its type."""
    nodes = [
        helper.make_node("Odd", ["x"], ["o"], domain="unknown"),
        helper.make_node("Relu", ["o"], ["r"]),
        helper.make_node("Neg", ["r"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("unknown", 1)]
    model = small(nodes, {}, opset_imports=opsets)
    told = [info("o", ["n", 4], TensorProto.FLOAT16), info("r", ["stale", 99], TensorProto.DOUBLE)]
    model.graph.value_info.extend(told)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    found = {v.name: v.type.tensor_type for v in normalize(load(model)).proto.graph.value_info}
    assert found["o"].elem_type == found["r"].elem_type == TensorProto.FLOAT16
    assert found["r"].shape.dim[1].dim_value == 4


def test_origins_name_every_weight() -> None:
    """Each initializer of the result has sources that are stored in the file."""
    for path in MODELS:
        made = normalize_with_origins(load(path))
        assert made.origins.keys() == made.model.initializers.keys()
        stored = stored_weights(load(path))
        assert all(name in stored for one in made.origins.values() for name in one.sources)


def test_large_graphs_take_no_time() -> None:
    """3,500 nodes, most of them shape arithmetic: processor time of the best of three."""
    b = Builder(0)
    value = "x"
    for _ in range(350):
        shape = b.node("Shape", value)
        size = b.node("Gather", shape, b.ints(0))
        minus = b.node("Neg", b.node("Identity", b.ints(1)))
        rows = b.node("Concat", size, b.node("Abs", minus), b.ints(-1), axis=0)
        turned = b.node("Transpose", b.weight(4, 4), perm=[1, 0])
        flat = b.node("Reshape", value, rows)
        value = b.node("MatMul", b.node("Squeeze", flat, b.ints(1)), turned)
    model = load(b.model({"x": ["n", 4]}, {value: ["n", 4]}))
    assert len(model.nodes) >= 3500
    seconds = []
    for _ in range(3):
        start = time.process_time()
        normalize(model)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
