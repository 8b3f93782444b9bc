"""Which parts of the inputs count as features."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.model.graph import Model
from onnxprune.samples.columns import MOST_FEATURES, Feature, features
from tests.builder import Builder
from tests.pairs import dataset


def convolution(*perm: int) -> ModelProto:
    """x -> Transpose by `perm`, if any -> Conv over 3 channels."""
    b = Builder(0)
    x = b.node("Transpose", "x", perm=list(perm)) if perm else "x"
    y = b.node("Conv", b.node("Mul", x, b.add(2.0)), b.weight(4, 3, 1, 1))
    shape: list[int | str] = ["N", 5, 6, 3] if perm else ["N", 3, 5, 6]
    return b.model({"x": shape}, {y: ["N", 4, 5, 6]})


def passed_on(shape: list[int | str], kind: int = TensorProto.FLOAT) -> ModelProto:
    """x -> Identity."""
    b = Builder(0)
    y = b.node("Identity", "x")
    return b.model({"x": shape}, {y: shape}, types={"x": kind, y: kind})


def found(model: ModelProto, x: np.ndarray) -> tuple[list[Feature], list[str]]:
    """Features of the only input, and notes."""
    return features(Model(model), dataset(model, {"x": x}))


@pytest.mark.parametrize(("perm", "axis"), [((), 1), ((0, 3, 1, 2), 3)])
def test_channels_lie_where_the_first_layer_takes_them(perm: tuple[int, ...], axis: int) -> None:
    """Of images in either layout, through what scales them."""
    model = convolution(*perm)
    x = np.zeros((2, *((5, 6, 3) if perm else (3, 5, 6))), np.float32)
    assert found(model, x) == ([Feature("x", i, axis) for i in range(3)], [])


def test_a_recurrent_layer_takes_the_last_axis() -> None:
    """Whatever axis the batch lies on."""
    b = Builder(0)
    b.node("LSTM", "x", b.weight(1, 8, 4), b.weight(1, 8, 2), hidden_size=2)
    model = b.model({"x": ["time", "batch", 4]}, {"v0": ["time", 1, "batch", 2]})
    assert found(model, np.zeros((3, 7, 4), np.float32))[0] == [
        Feature("x", i, 2) for i in range(4)
    ]


def test_columns_of_a_table_and_single_numbers_are_features() -> None:
    """Whole numbers too, where a sample has one of them: a category, or an age."""
    wide = found(passed_on(["N", 4]), np.zeros((2, 4), np.float32))
    assert wide == ([Feature("x", i, 1) for i in range(4)], [])
    flat = found(passed_on(["N"]), np.zeros(2, np.float32))
    assert flat == ([Feature("x", 0, 0)], [])
    code = found(passed_on(["N", 1], TensorProto.INT64), np.zeros((2, 1), np.int64))
    assert code == ([Feature("x", 0, 1)], [])


def test_what_has_no_columns_is_said() -> None:
    """Token ids, inputs that are the same for all samples, and signals."""
    listed, notes = found(passed_on(["N", 4], TensorProto.INT64), np.zeros((2, 4), np.int64))
    assert listed == []
    assert "token ids" in notes[0]
    b = Builder(0)
    y = b.node("Add", "x", "k")
    model = b.model({"x": ["N", 2], "k": [2]}, {y: ["N", 2]})
    data = dataset(model, {"x": np.zeros((3, 2), np.float32), "k": np.zeros(2, np.float32)})
    listed, notes = features(Model(model), data)
    assert [one.input for one in listed] == ["x", "x"]
    assert notes == ["`k` is the same for every sample: it is not ranked"]
    many = MOST_FEATURES + 1
    listed, notes = found(passed_on(["N", many]), np.zeros((2, many), np.float32))
    assert listed == []
    assert str(many) in notes[0]


def test_a_feature_is_a_view_of_its_values() -> None:
    """What is written there changes the samples; axis 0 stays that of the samples."""
    x = np.zeros((2, 3, 4))
    Feature("x", 1, 2).of(x)[...] = [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(x[:, :, 1], [[1, 2, 3], [4, 5, 6]])
    assert x.sum() == 21
    flat = np.zeros(3)
    Feature("x", 0, 0).of(flat)[...] = [1, 2, 3]
    np.testing.assert_array_equal(flat, [1, 2, 3])
