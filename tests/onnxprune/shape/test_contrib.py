"""Shapes of operators for which onnx infers none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.backend.runtime import session
from onnxprune.model.graph import Model
from onnxprune.shape.shapes import evaluate

ML = "ai.onnx.ml"
TREE: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
}  # fmt: skip
CLASSES: dict[str, Any] = {
    "class_treeids": [0, 0], "class_nodeids": [1, 2], "class_ids": [0, 1],
    "class_weights": [1.0, 1.0],
}  # fmt: skip
TARGETS: dict[str, Any] = {
    "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 1],
    "target_weights": [1.0, 2.0],
}  # fmt: skip
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("Scaler", {"offset": [0.0] * 3, "scale": [2.0] * 3}, 1),
    ("Normalizer", {"norm": "L2"}, 1),
    ("Binarizer", {"threshold": 0.5}, 1),
    ("Imputer", {"imputed_value_floats": [1.0], "replaced_value_float": 0.0}, 1),
    ("FeatureVectorizer", {"inputdimensions": [3]}, 1),
    ("LinearRegressor", {"coefficients": [1.0] * 6, "targets": 2}, 1),
    ("TreeEnsembleRegressor", TREE | TARGETS | {"n_targets": 2}, 1),
    ("TreeEnsembleClassifier", TREE | CLASSES | {"classlabels_int64s": [0, 1]}, 2),
    ("LinearClassifier", {"coefficients": [1.0] * 9, "intercepts": [0.0] * 3,
                          "classlabels_ints": [0, 1, 2]}, 2),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes", "outputs"), CASES, ids=lambda x: str(x)[:22])
def test_shapes_of_classical_operators_are_what_running_them_gives(
    op: str, attributes: dict[str, Any], outputs: int
) -> None:
    """For a batch of four samples of three features."""
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, ["x"], names, domain=ML, **attributes)
    kinds = [TensorProto.INT64, TensorProto.FLOAT] if outputs == 2 else [TensorProto.FLOAT]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    known = evaluate(Model(model), {"x": (4, 3)})
    values = session(model).run({"x": np.ones((4, 3), np.float32)})
    for name, value in zip(names, values, strict=True):
        assert known.shape[name] == value.shape


def test_a_label_looked_up_by_number_has_a_shape() -> None:
    """One row for a vector of labels."""
    node = helper.make_node("ArrayFeatureExtractor", ["labels", "at"], ["y"], domain=ML)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("at", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
        [helper.make_tensor("labels", TensorProto.INT64, [2], [5, 7])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    [y] = session(model).run({"at": np.array([1, 0, 1])})
    assert evaluate(Model(model), {"at": (3,)}).shape["y"] == y.shape
