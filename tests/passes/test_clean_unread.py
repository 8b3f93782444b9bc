"""What nothing reads goes: nodes, branches, channels behind weights of zero."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.manager import PassManager, State, Subject, make_pass
from onnxprune.model.storage import load
from tests.builder import Builder
from tests.cleaning import changed, cleaned, repository_model, weights_of

CLEAN = "clean-unread"
ALL = ("clean-constant", "clean-duplicate", CLEAN)
IMAGE: dict[str, list[int | str]] = {"x": ["n", 3, 8, 8]}


def without(array: Any, columns: list[int]) -> Any:
    """Columns set to zero."""
    array = array.copy()
    array[:, columns] = 0
    return array


def test_channels_behind_zero_columns_go() -> None:
    """Padding and any function between make no difference to what is not read."""
    b = Builder(0)
    x = b.node("Sigmoid", b.node("Conv", "x", b.weight(6, 3, 3, 3), b.weight(6)))
    w = without(b.rng.standard_normal((4, 6, 3, 3)), [0, 3])
    b.node("Conv", x, b.add(w), pads=[1, 1, 1, 1])
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 6, 6]}), CLEAN)
    assert weights_of(state, "Conv") == [(4, 3, 3, 3), (4, 4, 3, 3)]


@pytest.mark.parametrize("both", [True, False])
def test_every_reader_must_ignore_a_channel(both: bool) -> None:
    """One reader with weight keeps it."""
    b = Builder(1)
    x = b.node("Relu", b.node("Conv", "x", b.weight(6, 3, 1, 1)))
    first = without(b.rng.standard_normal((4, 6, 1, 1)), [0, 3])
    second = without(b.rng.standard_normal((4, 6, 1, 1)), [0, 3] if both else [1])
    left, right = b.node("Conv", x, b.add(first)), b.node("Conv", x, b.add(second))
    out = b.node("Mul", left, right)
    state = cleaned(b.model(IMAGE, {out: ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv")[0] == (4 if both else 6, 3, 1, 1)


def test_what_only_leads_to_unread_channels_goes_with_them() -> None:
    """A chain is followed backwards through all its layers."""
    b = Builder(2)
    x = b.node("Relu", b.node("Conv", "x", b.weight(5, 3, 1, 1)))
    middle = b.rng.standard_normal((6, 5, 1, 1))
    middle[:4, 2] = 0  # channel 2 is read by outputs 4 and 5 alone
    x = b.node("Relu", b.node("Conv", x, b.add(middle), b.weight(6)))
    b.node("Conv", x, b.add(without(b.rng.standard_normal((4, 6, 1, 1)), [4, 5])))
    state = cleaned(b.model(IMAGE, {"v4": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv") == [(4, 3, 1, 1), (4, 4, 1, 1), (4, 4, 1, 1)]


def test_one_channel_is_left() -> None:
    """A reader that ignores everything still has something to read."""
    b = Builder(3)
    x = b.node("Relu", b.node("MatMul", "x", b.weight(5, 6)))
    b.node("Add", b.node("MatMul", x, b.add(np.zeros((6, 4)))), b.weight(4))
    state = cleaned(b.model({"x": ["n", 5]}, {"v3": ["n", 4]}), CLEAN)
    assert weights_of(state, "MatMul") == [(5, 1), (1, 4)]


def test_groups_keep_equal_counts() -> None:
    """A group may lose only as many channels as each of the others can."""
    b = Builder(4)
    x = b.node("Relu", b.node("Conv", "x", b.weight(8, 3, 1, 1)))
    w = b.rng.standard_normal((4, 4, 1, 1))
    w[:2, [0, 1]], w[2:, 3] = 0, 0
    b.node("Conv", x, b.add(w), group=2)
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 8, 8]}), CLEAN)
    assert weights_of(state, "Conv") == [(6, 3, 1, 1), (4, 3, 1, 1)]


def test_a_head_that_is_not_read_goes_whole() -> None:
    """Rows of zeros behind a head make its queries, keys and values idle."""
    b, size, heads = Builder(5), 4, 3
    wide = size * heads
    split = b.ints(0, 0, heads, size)
    q, k, v = (
        b.node("Transpose", b.node("Reshape", b.node("MatMul", "x", b.weight(6, wide)), split),
               perm=[0, 2, 1, 3]) for _ in range(3)
    )  # fmt: skip
    scores = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2])))
    mixed = b.node("Transpose", b.node("MatMul", scores, v), perm=[0, 2, 1, 3])
    last = b.rng.standard_normal((wide, 5))
    last[size : 2 * size] = 0
    out = b.node("MatMul", b.node("Reshape", mixed, b.ints(0, 0, wide)), b.add(last))
    state = cleaned(b.model({"x": ["n", "t", 6]}, {out: ["n", "t", 5]}), CLEAN)
    tables = [t.dims for t in state.model.initializers.values() if len(t.dims) == 2]
    assert sorted(map(tuple, tables)) == [(6, 8), (6, 8), (6, 8), (8, 5)]


def test_a_unit_that_feeds_back_stays() -> None:
    """A recurrent unit that others read in the next step is read, whatever follows the cell."""
    b, hidden = Builder(6), 5
    r = b.rng.standard_normal((1, 4 * hidden, hidden)) * 0.3
    r[:, :, 3] = 0  # unit 3 is not fed back, unit 1 is
    y = b.node("LSTM", "x", b.weight(1, 4 * hidden, 4), b.add(r), hidden_size=hidden)
    w = b.rng.standard_normal((hidden, 3))
    w[[1, 3]] = 0
    b.node("MatMul", b.node("Squeeze", y, b.ints(1)), b.add(w))
    state = cleaned(b.model({"x": ["t", "n", 4]}, {"v2": ["t", "n", 3]}), CLEAN)
    assert weights_of(state, "LSTM") == [(1, 16, 4)]


def test_a_position_that_is_picked_alone_stays() -> None:
    """What an index picks again and again is no channel any more, but it is read."""
    b = Builder(13)
    x = b.node("Conv", "x", b.weight(4, 3, 1, 1), b.weight(4))
    x = b.node("Gather", x, b.ints(1, 1, 1), axis=1)
    b.node("Conv", x, b.weight(4, 3, 1, 1))
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 8, 8]}), CLEAN)
    assert state.model is state.start.model


def test_quantised_zeros_are_numbers() -> None:
    """With a zero point, stored zeros stand for another number: such weights are left alone."""
    b = Builder(14)
    x = b.node("Relu", b.node("MatMul", "x", b.weight(5, 6)))
    x = b.node("QuantizeLinear", x, b.add(0.02), b.add(0, np.uint8))
    w = b.rng.integers(1, 255, (6, 4))
    w[2] = 0
    operands = (b.add(0.02), b.add(0, np.uint8), b.add(w, np.uint8), b.add(0.01))
    points = (b.add(128, np.uint8), b.add(0.05), b.add(128, np.uint8))
    x = b.node("QLinearMatMul", x, *operands, *points)
    b.node("DequantizeLinear", x, b.add(0.05), b.add(128, np.uint8))
    state = cleaned(b.model({"x": ["n", 5]}, {"v4": ["n", 4]}), CLEAN)
    assert state.model is state.start.model


def test_nodes_without_readers_go() -> None:
    """A branch that ends nowhere is gone with its weights."""
    b = Builder(7)
    x = b.node("Relu", b.node("Conv", "x", b.weight(6, 3, 1, 1)))
    b.node("Sigmoid", b.node("Conv", x, b.weight(4, 6, 1, 1)))
    out = b.node("Conv", x, b.weight(4, 6, 1, 1))
    state = cleaned(b.model(IMAGE, {out: ["n", 4, 8, 8]}), CLEAN)
    assert [n.op for n in state.model.nodes] == ["Conv", "Relu", "Conv"]
    assert len(state.model.initializers) == 2


@pytest.mark.parametrize("how", ["scalar", "scale", "filters"])
def test_branches_of_zeros_go(how: str) -> None:
    """A branch times zero, behind a batch norm of scale zero, or of filters of zero."""
    b = Builder(8)
    x = b.node("Conv", "x", b.weight(6, 3, 1, 1))
    w = b.rng.standard_normal((6, 6, 1, 1)) * (how != "filters")
    branch = b.node("Conv", b.node("Relu", x), b.add(w))
    if how == "scalar":
        branch = b.node("Mul", branch, b.add(np.zeros(1)))
    if how == "scale":
        vectors = (np.zeros(6), np.zeros(6), np.ones(6), np.ones(6))
        branch = b.node("BatchNormalization", branch, *(b.add(v) for v in vectors))
    out = b.node("Conv", b.node("Relu", b.node("Add", x, branch)), b.weight(4, 6, 1, 1))
    state = cleaned(b.model(IMAGE, {out: ["n", 4, 8, 8]}), CLEAN)
    assert [n.op for n in state.model.nodes] == ["Conv", "Relu", "Conv"]


def test_a_branch_that_is_a_number_becomes_one() -> None:
    """A batch norm of scale zero leaves its bias, one number a channel."""
    b = Builder(9)
    x = b.node("Conv", "x", b.weight(6, 3, 1, 1))
    branch = b.node("Conv", b.node("Relu", x), b.weight(6, 6, 1, 1))
    vectors = (np.zeros(6), b.rng.standard_normal(6), np.ones(6), np.ones(6))
    branch = b.node("BatchNormalization", branch, *(b.add(v) for v in vectors))
    out = b.node("Conv", b.node("Sub", x, branch), b.weight(4, 6, 1, 1))
    state = cleaned(b.model(IMAGE, {out: ["n", 4, 8, 8]}), CLEAN)
    assert [n.op for n in state.model.nodes] == ["Conv", "Sub", "Conv"]


def test_a_branch_that_gives_the_shape_stays() -> None:
    """Zeros of the batch's shape plus a row are as many rows."""
    b = Builder(10)
    zeros = b.node("Mul", b.node("MatMul", "x", b.weight(5, 6)), b.add(np.zeros(1)))
    out = b.node("MatMul", b.node("Add", zeros, b.weight(6)), b.weight(6, 4))
    state = cleaned(b.model({"x": ["n", 5]}, {out: ["n", 4]}), CLEAN)
    assert "Add" in [n.op for n in state.model.nodes]


def test_clean_ups_follow_each_other() -> None:
    """Each works on what the one before it made, with Dims of its own."""
    b = Builder(11)
    w = b.rng.standard_normal((8, 3, 1, 1))
    w[1], w[4] = 0, 2 * w[2]
    x = b.node("Relu", b.node("Conv", "x", b.add(w)))
    b.node("Conv", x, b.add(without(b.rng.standard_normal((4, 8, 1, 1)), [6])))
    state = cleaned(b.model(IMAGE, {"v2": ["n", 4, 8, 8]}), *ALL)
    assert weights_of(state, "Conv") == [(5, 3, 1, 1), (4, 5, 1, 1)]
    assert len(state.history) == 3


NAMES = ["digits_resnet", "digits_depthwise", "digits_bilstm", "digits_transformer"]


@pytest.mark.parametrize("name", NAMES)
def test_trained_models_have_nothing_to_clean(name: str) -> None:
    """The same object comes back, facts and all, and nothing is run."""
    subject = Subject(repository_model(name))
    state = State(subject, subject, progress=lambda text: None)
    PassManager([make_pass("find-dims")]).run(state)
    facts = dict(state.facts)
    PassManager([make_pass(n) for n in ALL], given=facts).run(state)
    assert state.subject is subject
    assert state.history == []
    assert facts.items() <= state.facts.items()


def large_model() -> ModelProto:
    """Forty convolutions with 9 million weights."""
    b = Builder(12)
    x = b.node("Conv", "x", b.weight(160, 3, 3, 3))
    for _ in range(40):
        x = b.node("Relu", b.node("Conv", x, b.weight(160, 160, 3, 3), pads=[1, 1, 1, 1]))
    return b.model(IMAGE, {x: ["n", 160, 6, 6]})


def test_models_without_anything_to_clean_cost_little() -> None:
    """Weights are read a few times over, nothing more: processor time, best of three."""
    subject = Subject(load(large_model()))
    state = State(subject, subject, progress=lambda text: None)
    PassManager([make_pass("find-dims")]).run(state)
    known, spent = dict(state.facts), []
    for _ in range(3):
        state.facts = dict(known)
        start = time.process_time()
        PassManager([make_pass(n) for n in ALL], given=known).run(state)
        spent.append(time.process_time() - start)
    assert state.subject is subject
    assert min(spent) < 1.5


def test_zeroed_readers_of_a_trained_model() -> None:
    """Columns of zeros in convolutions of a residual net take their channels along."""
    model = repository_model("digits_resnet")
    convs = [n for n in model.nodes if n.op == "Conv" and model.dims(n.inputs[1])[1] > 4]

    def edit(array: Any) -> None:
        array[:, [0, 2]] = 0

    state = cleaned(changed(model.complete(), {n.inputs[1]: edit for n in convs}), CLEAN)
    assert state.subject.cost.params < state.start.cost.params
