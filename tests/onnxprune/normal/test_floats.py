"""Float32 copies compute what the original does, less its rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.backend.feeds import Array
from onnxprune.cutting.oracle import relative
from onnxprune.model.graph import Model
from onnxprune.normal.floats import as_float32, without_quantizers
from tests.oracle import run

HALF = TensorProto.FLOAT16


def halves(kind: int = HALF) -> ModelProto:
    """A float32 input cast down, a branch, a constant, a cast back; one output of each type."""

    def weight(name: str, *shape: int) -> TensorProto:
        array = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        return helper.make_tensor(name, kind, shape, array.ravel().tolist())

    inner = helper.make_tensor_value_info("inner", kind, ["n", 4])
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["half", "bias"], ["inner"])],
            op,
            [],
            [inner],
            [weight("bias", 4)],
        )
        for op in ("Add", "Mul")
    ]
    fill = helper.make_tensor("fill", kind, [1], [0.5])
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("MatMul", ["low", "w"], ["half"]),
        helper.make_node(
            "If", ["yes"], ["chosen"], then_branch=branches[0], else_branch=branches[1]
        ),
        helper.make_node("Shape", ["chosen"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=fill),
        helper.make_node("Add", ["chosen", "ones"], ["out"]),
        helper.make_node("Cast", ["out"], ["wide"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("out", kind, ["n", 4]),
            helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["n", 4]),
        ],
        [weight("w", 3, 4), numpy_helper.from_array(np.array(True), "yes")],
        value_info=[helper.make_tensor_value_info("low", kind, ["n", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", [HALF, TensorProto.BFLOAT16])
def test_halves_become_floats_everywhere(kind: int) -> None:
    """Weights, casts, constants, branches and the interface are float32."""
    original = halves(kind)
    before = original.SerializeToString()
    made = as_float32(original)
    assert original.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert all(o.type.tensor_type.elem_type == TensorProto.FLOAT for o in made.graph.output)
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)}
    found = run(made, feeds)
    assert all(a.dtype == np.float32 for a in found)
    if kind == HALF:
        difference = relative(found[1], run(original, feeds)[1])
        assert difference is not None
        assert difference < 5e-3


def rounded(*, expose: bool = False) -> ModelProto:
    """Gemm between quantisers, the first of which is also a Relu; a Transpose between a pair."""
    rng = np.random.default_rng(1)
    weights: dict[str, Array] = {
        "w": rng.integers(-100, 100, (6, 4)).astype(np.int8),
        "ws": rng.uniform(0.01, 0.02, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "s": np.array(0.01, np.float32),
        "z": np.array(-128, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Transpose", ["q"], ["turned"], perm=[1, 0]),
        helper.make_node("DequantizeLinear", ["turned", "s", "z"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("Gemm", ["dq", "wf"], ["y"], transA=1, transB=1),
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["out"]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 6])]
    if expose:
        outputs.append(helper.make_tensor_value_info("yq", TensorProto.INT8, ["n", 6]))
    graph = helper.make_graph(
        nodes,
        "rounded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        outputs,
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
        value_info=[helper.make_tensor_value_info("q", TensorProto.INT8, ["n", 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feed() -> dict[str, Array]:
    return {"x": np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)}


def test_quantisers_go_and_their_bounds_stay() -> None:
    """Nothing is rounded any more; what lies beyond the range of the numbers is cut off."""
    made = without_quantizers(rounded())
    onnx.checker.check_model(made, full_check=True)
    ops = [n.op_type for n in made.graph.node]
    assert ops.count("QuantizeLinear") == 0
    assert ops.count("DequantizeLinear") == 1  # the weight's
    [exact] = run(made, feed())
    [coarse] = run(rounded(), feed())
    assert np.abs(exact - coarse).max() < 0.1  # a few steps of 0.01
    model = Model(rounded())
    weight = model.array("w") * model.array("ws")[:, None]
    by_hand = np.clip(np.clip(feed()["x"], 0, 2.55) @ weight.T, 0, 2.55)
    assert np.allclose(exact, by_hand, atol=1e-5)


def test_what_leaves_the_graph_stays_quantised() -> None:
    """The interface keeps its types."""
    made = without_quantizers(rounded(expose=True))
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node].count("QuantizeLinear") == 1
    assert [a.dtype for a in run(made, feed())] == [np.float32, np.int8]
