"""Cuts: weights are sliced, constants follow, numbers out of shapes keep their meaning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.identity.dims import BoolArray
from tests.builder import Builder
from tests.oracle import Followed, assert_cut_equals_mask, cut_at, flow_of, random_removed

C = 6
Middle = Callable[[Builder, str], str]


def tokens(middle: Middle, width: int = C, out: int = C, length: int | str = 4) -> Followed:
    """Product > what is tested, on [N, T, width] > product."""
    b = Builder(0)
    x = b.node("MatMul", "x", b.weight(3, width))
    x = b.node("MatMul", middle(b, x), b.weight(out, 3))
    return flow_of(b.model({"x": ["n", length, 3]}, {x: ["n", length, 3]}))


def thinned(found: Followed, size: int, keep: int) -> BoolArray:
    """A plan that keeps so many positions in each row of the Dims of a size."""
    removed = np.zeros(found.dims.count, np.bool_)
    for dim in found.dims.free:
        for part in dim.parts if dim.size == size else ():
            removed[part[keep:]] = True
    return removed


def check(found: Followed) -> None:
    """Several random plans, against the silenced original."""
    for seed in range(5):
        assert_cut_equals_mask(found.model.proto, seed)


def attention(b: Builder, x: str) -> str:
    """Two heads of three; the scale is a root of a length that the graph computes."""
    q, k, v = (
        b.node("Transpose", b.node("Reshape", b.node("MatMul", x, b.weight(C, C)),
                                   b.ints(0, 0, 2, 3)), perm=[0, 2, 1, 3])
        for _ in range(3)
    )  # fmt: skip
    size = b.node("Gather", b.node("Shape", q), b.add(-1, np.int64))
    scale = b.node("Sqrt", b.node("Cast", size, to=1))
    scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    y = b.node("MatMul", b.node("Softmax", b.node("Div", scores, scale), axis=-1), v)
    flat = b.node("Concat", b.node("Shape", x, start=0, end=2), b.node("Mul", b.ints(2),
                  b.node("Unsqueeze", size, b.ints(0))), axis=0)  # fmt: skip
    return b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), flat)


def test_a_scale_out_of_a_shape_keeps_its_value() -> None:
    """One Gather feeds a Reshape, which follows, and a Sqrt, which stays."""
    found = tokens(attention)
    check(found)
    made = cut_at(found, thinned(found, 3, 2))
    node = next(n for n in made.model.nodes if n.op == "Div" and "/" not in n.name)
    assert made.model.array(node.inputs[1]) == pytest.approx(3**0.5)


def test_dynamic_factors_stay_dynamic() -> None:
    """A mean written as a sum over positions is divided by the length it has when it runs."""
    def mean(b: Builder, x: str) -> str:
        total = b.node("ReduceSum", x, b.ints(1), keepdims=1)
        count = b.node("Cast", b.node("Gather", b.node("Shape", x), b.add(1, np.int64)), to=1)
        return b.node("Sub", x, b.node("Div", total, count))

    found = tokens(mean, length="t")
    check(found)
    made = cut_at(found, thinned(found, C, 4))
    assert not any("held" in name for name in made.model.initializers)


def test_a_factor_of_both_is_held_in_part() -> None:
    """Elements of a slice, counted by the graph: the channels' share is frozen, not the batch's."""
    def scaled(b: Builder, x: str) -> str:
        size = b.node("Cast", b.node("ReduceProd", b.node("Shape", x), keepdims=0), to=1)
        return b.node("Div", x, b.node("Sqrt", size))

    check(tokens(scaled, length="t"))


def test_a_number_of_channels_inside_a_dynamic_length_is_scaled() -> None:
    """Batch and channels in one axis: the operand is multiplied, never made a constant."""
    def flat(b: Builder, x: str) -> str:
        n, c = (b.node("Shape", x, start=a, end=a + 1) for a in (0, 2))
        y = b.node("Transpose", x, perm=[0, 2, 1])
        y = b.node("Relu", b.node("Reshape", y, b.node("Concat", b.node("Mul", n, b.ints(C)),
                                                       b.ints(-1), axis=0)))  # fmt: skip
        y = b.node("Reshape", y, b.node("Concat", n, c, b.ints(-1), axis=0))
        return b.node("Transpose", y, perm=[0, 2, 1])

    found = tokens(flat)
    check(found)
    made = cut_at(found, thinned(found, C, 4))
    assert any(n.op == "Div" for n in made.model.nodes)
    assert any(n.op == "Mul" and "shape" in n.name for n in made.model.nodes)


def test_computed_bounds_of_a_slice_follow() -> None:
    """`chunk` as TorchScript writes it: (n + 1) / 2 out of a Shape."""
    def chunk(b: Builder, x: str) -> str:
        n = b.node("Gather", b.node("Shape", x), b.add(2, np.int64))
        n = b.node("Div", b.node("Add", n, b.add(1, np.int64)), b.add(2, np.int64))
        half = b.node("Mul", n, b.ints(1))
        all_ = b.node("Mul", n, b.ints(2))
        first = b.node("Slice", x, b.ints(0), half, b.ints(2))
        second = b.node("Slice", x, half, all_, b.ints(2))
        return b.node("Mul", first, b.node("Sigmoid", second))

    found = tokens(chunk, out=3)
    assert found.widths() == [(1, 3)]
    check(found)


def test_uses_of_one_weight_are_cut_apart() -> None:
    """A tied weight is stored once for each way in which it is taken, and whole where it stays."""
    def tied(b: Builder, x: str) -> str:
        weight = b.weight(C, C)
        x = b.node("Tanh", b.node("MatMul", x, weight))
        return b.node("MatMul", x, weight)

    found = tokens(tied)
    check(found)
    whole = cut_at(found, np.zeros(found.dims.count, np.bool_))
    assert whole.model.initializers.keys() == found.model.initializers.keys()
    name = next(n for n in found.model.initializers if len(found.model.consumers[n]) > 1)
    made = cut_at(found, thinned(found, C, 4))
    copies = [new for new, (old, _) in made.taken.items() if old == name]
    assert len(copies) == 1  # both uses lose the same rows and columns
    made = cut_at(found, random_removed(found.dims, 1))
    assert {old for old, _ in made.taken.values()} <= found.model.initializers.keys()


def test_the_original_is_left_as_it_was() -> None:
    """A cut hands out a new model."""
    found = tokens(attention)
    before = found.model.proto.SerializeToString()
    cut_at(found, thinned(found, 3, 1))
    assert found.model.proto.SerializeToString() == before


def test_in_old_files_initializers_are_inputs() -> None:
    """IR 3 lists weights with their shapes among the inputs: the entries shrink."""
    b = Builder(0)
    x = b.node("MatMul", b.node("MatMul", "x", b.weight(3, C)), b.weight(C, 3))
    proto = b.model({"x": ["n", 3]}, {x: ["n", 3]}, opset=8)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        proto.graph.input.append(info)
    found = flow_of(proto)
    made = cut_at(found, thinned(found, C, 2)).model
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim]
              for i in made.proto.graph.input}  # fmt: skip
    assert (shapes["w0"], shapes["w1"]) == ([3, 2], [2, 3])
    assert [i.name for i in made.inputs] == ["x"]


def test_stale_shapes_are_dropped() -> None:
    """Nothing is left that says what shapes were."""
    b = Builder(0)
    y = b.node("MatMul", "x", b.weight(3, C))
    x = b.node("MatMul", y, b.weight(C, 3))
    proto = b.model({"x": ["n", 3]}, {x: ["n", 3]})
    proto.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", C]))
    found = flow_of(proto)
    made = cut_at(found, thinned(found, C, 2)).model
    assert not made.proto.graph.value_info
    assert made.dims("w0") == (3, 2)


def test_rows_are_written_as_lists_of_indices() -> None:
    """A Slice with a step becomes a Gather where what is left is no progression."""
    def every_second(b: Builder, x: str) -> str:
        y = b.node("Slice", x, b.ints(0), b.ints(C), b.ints(2), b.ints(2))
        return b.node("Add", y, b.node("Slice", x, b.ints(1), b.ints(C), b.ints(2), b.ints(2)))

    found = tokens(every_second, out=3)
    check(found)
    picked = tokens(lambda b, x: b.node("Slice", x, b.ints(0), b.ints(C), b.ints(2), b.ints(2)),
                    out=3)  # fmt: skip
    removed = np.zeros(picked.dims.count, np.bool_)
    removed[picked.dims.dims[0].channels] = False
    rest = next(d for d in picked.dims.free if d.size == 3 and d.name.startswith("w0"))
    removed[rest.channels[1]] = True
    ops = [n.op for n in cut_at(picked, removed).model.nodes]
    assert "Gather" in ops or "Slice" in ops


def test_a_token_before_the_data_follows_it() -> None:
    """Expand > Concat > Add: the class token's columns are those of the stream."""
    def token(b: Builder, x: str) -> str:
        target = b.node("Concat", b.node("Shape", x, start=0, end=1), b.ints(-1, -1), axis=0)
        ones = b.node("ConstantOfShape", b.ints(3), value=_one())
        target = b.node("Where", b.node("Equal", target, b.ints(-1)), ones, target)
        first = b.node("Expand", b.weight(1, 1, C), target)
        y = b.node("Concat", first, x, axis=1)
        y = b.node("Add", y, b.weight(1, 5, C))
        return b.node("Slice", y, b.ints(1), b.ints(5), b.ints(1))

    found = tokens(token)
    assert found.widths() == [(1, C)]
    check(found)


def _one() -> TensorProto:
    return helper.make_tensor("one", TensorProto.INT64, [1], [1])
