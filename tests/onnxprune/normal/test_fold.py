"""What depends on constants alone is computed, unless the result is not worth storing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.model.graph import Array, Model
from onnxprune.model.storage import load
from onnxprune.normal.normalize import normalize_with_origins
from onnxprune.normal.origin import FOLD
from tests.builder import Builder
from tests.oracle import run

TOLERANCE = 1e-6
X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def folded(model: ModelProto) -> tuple[Model, dict[str, Any]]:
    """The normalised model, whose outputs are those of the source, and its origins as JSON."""
    made = normalize_with_origins(load(model))
    for a, b in zip(run(model, {"x": X}), run(made.model.proto, {"x": X}), strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(a).max(), 1)
    return made.model, {name: origin.json() for name, origin in made.origins.items()}


def ops(model: Model) -> list[str]:
    """Operators, in order."""
    return [node.op for node in model.nodes]


def dense(b: Builder, weight: str) -> ModelProto:
    """x: [n, 4] times a weight."""
    y = b.node("MatMul", "x", weight)
    return b.model({"x": ["n", 4]}, {y: ["n", "k"]}, opset=17)


def test_a_weight_behind_a_transpose() -> None:
    """Folded under the name of the transposed value; its origin says how."""
    b = Builder(0)
    w = b.weight(5, 4)
    made, origins = folded(dense(b, b.node("Transpose", w, perm=[1, 0])))
    assert ops(made) == ["MatMul"]
    assert origins["v0"] == {"source": w, "steps": [{"op": "Transpose", "perm": [1, 0]}]}


def test_a_weight_behind_a_cast_and_a_scale() -> None:
    """Each value stays in its place: one source, and the steps."""
    b = Builder(0)
    w = b.add(b.rng.standard_normal((4, 5)), np.float16)
    cast = b.node("Cast", w, to=TensorProto.FLOAT)
    made, origins = folded(dense(b, b.node("Mul", cast, b.add(0.5))))
    assert ops(made) == ["MatMul"]
    steps = [{"op": "Cast", "to": "FLOAT"}, {"op": "Mul"}]
    assert origins["v1"] == {"source": w, "steps": steps}


def gates(b: Builder) -> tuple[str, str]:
    """A weight, and the same with its three gates in another order and one more axis."""
    w = b.weight(6, 4)
    bounds = [(2, 4), (0, 2), (4, 6)]
    cuts = [b.node("Slice", w, b.ints(i), b.ints(j), b.ints(0)) for i, j in bounds]
    return w, b.node("Unsqueeze", b.node("Concat", *cuts, axis=0), b.ints(0))


def test_gates_in_another_order() -> None:
    """Slice, Concat, Unsqueeze: how recurrent weights are exported."""
    b = Builder(0)
    w, turned = gates(b)
    flat = b.node("Transpose", b.node("Squeeze", turned, b.ints(0)))
    made, origins = folded(dense(b, flat))
    assert ops(made) == ["MatMul"]
    (weight,) = (name for name in made.initializers)
    of = [
        {"source": w, "steps": [{"op": "Slice", "axes": [0], "starts": [i], "ends": [j],
                                 "steps": [1]}]}
        for i, j in [(2, 4), (0, 2), (4, 6)]
    ]  # fmt: skip
    assert origins[weight] == {
        "source": w,
        "steps": [
            {"op": "Concat", "axis": 0, "of": of},
            {"op": "Reshape", "shape": [1, 6, 4]},
            {"op": "Reshape", "shape": [6, 4]},
            {"op": "Transpose", "perm": [1, 0]},
        ],
    }


def test_several_sources_are_a_fold() -> None:
    """Where values were computed with each other, their places cannot be told."""
    b = Builder(0)
    one, two = b.weight(4, 3), b.weight(3, 5)
    _, origins = folded(dense(b, b.node("Tanh", b.node("MatMul", one, two))))
    assert origins["v1"] == {"sources": [one, two], "steps": [FOLD, {"op": "Tanh"}]}


def test_a_quantised_weight_stays_quantised() -> None:
    """DequantizeLinear of a constant is not folded; what lies before it is."""
    b = Builder(0)
    w = b.add(b.rng.integers(-99, 99, (5, 4)), np.int8)
    turned = b.node("Transpose", w, perm=[1, 0])
    made, _ = folded(dense(b, b.node("DequantizeLinear", turned, b.add(0.1), b.add(3, np.int8))))
    assert ops(made) == ["DequantizeLinear", "MatMul"]
    assert made.array("v0").dtype == np.int8


@pytest.mark.parametrize(("rows", "is_folded"), [(16, True), (16384, False)])
@pytest.mark.parametrize("op", ["ConstantOfShape", "Tile", "Expand"])
def test_large_results_of_little_are_not_stored(op: str, rows: int, is_folded: bool) -> None:
    """512 KiB out of a few bytes stay an operator; 512 bytes become a weight."""
    b = Builder(0)
    if op == "ConstantOfShape":
        one = numpy_helper.from_array(np.array([1], np.float32))
        wide = b.node(op, b.ints(rows, 8), value=one)
    else:
        wide = b.node(op, b.weight(1, 8), b.ints(rows, 1 if op == "Tile" else 8))
    total = b.node("ReduceSum", b.node("Mul", wide, b.node("MatMul", "x", b.weight(4, 1))),
                   b.ints(1))  # fmt: skip
    model = b.model({"x": [1, 4]}, {total: ["n", 1]}, opset=17)
    made = normalize_with_origins(load(model)).model
    assert (op not in ops(made)) == is_folded


def test_a_large_value_on_the_way_to_a_small_one_is_folded() -> None:
    """Only what is stored counts."""
    b = Builder(0)
    wide = b.node("Tile", b.weight(4, 5), b.ints(4096, 1))
    made, _ = folded(dense(b, b.node("Slice", wide, b.ints(0), b.ints(4), b.ints(0))))
    assert ops(made) == ["MatMul"]


def test_a_shared_weight_stays_one() -> None:
    """Its Transpose would be a second copy (tied embeddings)."""
    b = Builder(0)
    w = b.weight(64, 64)
    a = b.node("MatMul", b.node("MatMul", "x", b.weight(4, 64)), w)
    y = b.node("MatMul", a, b.node("Transpose", w, perm=[1, 0]))
    made, _ = folded(b.model({"x": ["n", 4]}, {y: ["n", 64]}))
    assert ops(made) == ["MatMul", "MatMul", "Transpose", "MatMul"]


@pytest.mark.parametrize(
    ("op", "options"),
    [("RandomNormalLike", {}), ("RandomUniformLike", {}), ("Bernoulli", {}),
     ("Multinomial", {"dtype": TensorProto.INT64})],
)  # fmt: skip
def test_random_operators_are_never_folded(op: str, options: dict[str, Any]) -> None:
    """A noise that was drawn once is none."""
    b = Builder(0)
    noise = b.node("Cast", b.node(op, b.add(np.full((1, 4), 0.5)), **options), to=1)
    model = b.model({"x": [1, 4]}, {b.node("Add", "x", noise): ["n", "k"]})
    assert op in ops(normalize_with_origins(load(model)).model)


def test_standard_parts_fold_beside_a_custom_operator() -> None:
    """What is unknown stays with its domain, and does not stop the rest."""
    b = Builder(0)
    w = b.node("Transpose", b.weight(5, 4), perm=[1, 0])
    odd = b.node("Odd", b.node("MatMul", "x", w), b.node("Neg", b.weight(5)), domain="unknown")
    still = b.node("Odd", b.weight(2), domain="unknown")
    model = b.model({"x": ["n", 4]}, {odd: ["n", 5], still: [2]})
    model.opset_import.add(domain="unknown", version=2)
    made = normalize_with_origins(load(model)).model
    assert ops(made) == ["MatMul", "Odd", "Odd"]
    assert made.opsets["unknown"] == 2


def test_what_a_caller_may_replace_is_not_folded() -> None:
    """From IR 4 on an initializer that is listed as an input is no constant."""
    b = Builder(0)
    w = b.weight(5, 4)
    model = dense(b, b.node("Transpose", w, perm=[1, 0]))
    model.graph.input.append(helper.make_tensor_value_info(w, TensorProto.FLOAT, [5, 4]))
    made, _ = folded(model)
    assert ops(made) == ["Transpose", "MatMul"]
    assert w in made.overridable


def test_an_output_keeps_its_operator() -> None:
    """A constant output is made by a node, as before."""
    b = Builder(0)
    model = dense(b, w := b.node("Transpose", b.weight(5, 4), perm=[1, 0]))
    model.graph.output.append(helper.make_tensor_value_info(w, TensorProto.FLOAT, [4, 5]))
    made, _ = folded(model)
    assert ops(made) == ["Transpose", "MatMul"]


def test_sizes_that_depend_on_values_fold_in_turns() -> None:
    """NonZero of a constant has a size once it has been computed."""
    b = Builder(0)
    rows = b.node("Squeeze", b.node("NonZero", b.add([1, 0, 1, 1, 0, 1, 0])), b.ints(0))
    made, _ = folded(dense(b, b.node("Gather", b.weight(7, 5), rows)))
    assert ops(made) == ["MatMul"]


ODD_TYPES = [
    (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    (TensorProto.INT4, ml_dtypes.int4),
    (TensorProto.UINT4, ml_dtypes.uint4),
]


@pytest.mark.parametrize(("kind", "dtype"), ODD_TYPES)
def test_types_that_numpy_lacks(kind: int, dtype: Any) -> None:
    """A turned weight of such a type keeps type and values."""
    values: Array = np.arange(20).reshape(5, 4) % 7
    b = Builder(0)
    b.weights.append(helper.make_tensor("w0", kind, (5, 4), values.ravel().tolist()))
    turned = b.node("Transpose", "w0", perm=[1, 0])
    model = dense(b, b.node("Cast", b.node("Odd", turned, domain="unknown"), to=1))
    model.opset_import[0].version = 21
    model.opset_import.add(domain="unknown", version=1)
    made = normalize_with_origins(load(model)).model
    assert made.initializers["v0"].data_type == kind
    assert np.array_equal(made.array("v0").astype(np.float32), values.T)


def test_strings_fold() -> None:
    """By whatever has a kernel for them."""
    b = Builder(0)
    b.weights.append(helper.make_tensor("words", TensorProto.STRING, [2, 1], [b"a", b"\xc3\xa9"]))
    shown = b.node("Odd", b.node("Reshape", "words", b.ints(-1)), "x", domain="unknown")
    model = b.model({"x": ["n", 4]}, {shown: ["n", 4]})
    model.opset_import.add(domain="unknown", version=1)
    made = normalize_with_origins(load(model)).model
    assert made.array("v0").tolist() == [word.decode() for word in (b"a", b"\xc3\xa9")]


def test_an_operator_that_fails_stays() -> None:
    """Where the model would fail when run, it still does, and the rest is folded."""
    b = Builder(0)
    wrong = b.node("Gather", b.weight(3, 4), b.ints(99))
    w = b.node("Transpose", b.weight(4, 4), perm=[1, 0])
    y = b.node("Add", b.node("MatMul", "x", w), wrong)
    made = normalize_with_origins(load(b.model({"x": ["n", 4]}, {y: ["n", 4]}))).model
    assert ops(made) == ["Gather", "MatMul", "Add"]


def test_doubling_concats_end_as_a_fold() -> None:
    """An origin of each half twice over would grow without end."""
    b = Builder(0)
    value = b.add([1.0])
    for _ in range(12):
        value = b.node("Concat", value, value, axis=0)
    total = b.node("Mul", "x", b.node("Slice", value, b.ints(0), b.ints(4), b.ints(0)))
    _, origins = folded(b.model({"x": ["n", 4]}, {total: ["n", 4]}))
    (origin,) = (one for name, one in origins.items() if name.startswith("v"))
    assert origin["steps"][0] == FOLD
