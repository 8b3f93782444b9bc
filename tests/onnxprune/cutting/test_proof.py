"""The proof refuses cuts whose wiring is wrong, also those that run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune.cutting.proof import Kept, prove
from onnxprune.identity.dims import BoolArray
from onnxprune.identity.ties import Violation
from onnxprune.model.graph import Model
from onnxprune.rules import load_rules
from onnxprune.shape.shapes import evaluate
from tests.builder import Builder
from tests.oracle import Followed, cut_at, flow_of

Change = Callable[[ModelProto], None]
C = 6


def removing(found: Followed, **positions: list[int]) -> BoolArray:
    """A plan that removes positions of Dims, told by the weight that names them."""
    removed = np.zeros(found.dims.count, np.bool_)
    for name, gone in positions.items():
        dim = next(d for d in found.dims.free if d.name == name)
        removed[dim.channels[gone]] = True
    return removed


def verdict(found: Followed, removed: BoolArray, change: Change) -> list[Violation]:
    """What the proof says of a right cut after it was changed by hand."""
    proto = ModelProto()
    proto.CopyFrom(cut_at(found, removed).model.complete())
    change(proto)
    del proto.graph.value_info[:]
    model, sizes = Model(proto), found.sizes
    first, second = evaluate(model, sizes.first), evaluate(model, sizes.second)
    kept = Kept(found.dims, found.shapes[0], ~removed[found.dims.of])
    said = prove(model, first, second, kept, load_rules().flow_rule)
    asked = [Violation(str(slot), "another order is needed") for slot in kept.wanted]
    return said + asked


def node_of(proto: ModelProto, op: str, number: int = 0) -> NodeProto:
    return [n for n in proto.graph.node if n.op_type == op][number]


def set_constant(proto: ModelProto, node: NodeProto, slot: int, values: object) -> None:
    """Another operand for one node."""
    name = f"{node.output[0]}_changed{slot}"
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    node.input[slot] = name


def no_change(proto: ModelProto) -> None:
    pass


def vectors(middle: Callable[[Builder, str], str], out: int = C) -> Followed:
    """Product > what is tested > product."""
    b = Builder(0)
    x = middle(b, b.node("MatMul", "x", b.weight(3, C)))
    x = b.node("MatMul", x, b.weight(out, 3))
    return flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3]}))


def reversed_order(b: Builder, x: str) -> str:
    """Columns in another order, beside those in their own."""
    back = b.node("Gather", x, b.ints(5, 4, 3, 2, 1, 0), axis=1)
    return b.node("Concat", x, back, axis=1)


def test_a_right_cut_is_accepted() -> None:
    """Without a change there is nothing to say."""
    found = vectors(reversed_order, 2 * C)
    assert verdict(found, removing(found, w0=[1, 4]), no_change) == []


@pytest.mark.parametrize("indices", [[3, 2, 0, 1], [3, 2, 1, 1]], ids=["swapped", "wrong"])
def test_an_order_is_seen(indices: list[int]) -> None:
    """Channels that change places, or stand in for others, are found by position."""
    found = vectors(reversed_order, 2 * C)

    def change(proto: ModelProto) -> None:
        set_constant(proto, node_of(proto, "Gather"), 1, np.array(indices))

    assert verdict(found, removing(found, w0=[1, 4]), change)


def test_a_concat_in_another_order_is_seen() -> None:
    """Both orders have the same shapes."""
    found = vectors(reversed_order, 2 * C)

    def change(proto: ModelProto) -> None:
        inputs = node_of(proto, "Concat").input
        inputs[:] = list(reversed(inputs))

    assert verdict(found, removing(found, w0=[1]), change)


def test_a_vector_of_length_one_is_seen() -> None:
    """It would be broadcast to all channels, without a word."""
    found = vectors(lambda b, x: b.node("Mul", x, b.weight(C)))

    def change(proto: ModelProto) -> None:
        set_constant(proto, node_of(proto, "Mul"), 1, np.ones(1, np.float32))

    assert verdict(found, removing(found, w0=[1, 4]), change)


def test_channels_that_leak_into_the_batch_are_seen() -> None:
    """A Reshape to (-1, rows, size) with the old size takes the rest from the batch."""
    def rows(b: Builder, x: str) -> str:
        x = b.node("Relu", b.node("Reshape", x, b.ints(-1, 2, 3)))
        return b.node("ReduceSum", b.node("Mul", x, b.weight(2, 1)), b.ints(2), keepdims=0)

    found = vectors(rows, 2)
    dim = next(d for d in found.dims.free if d.rows == 2)
    removed = np.zeros(found.dims.count, np.bool_)
    removed[[p[0] for p in dim.parts]] = True

    def change(proto: ModelProto) -> None:
        set_constant(proto, node_of(proto, "Reshape"), 1, np.array([-1, 2, 1]))

    assert verdict(found, removed, no_change) == []
    assert any("joins other axes" in v.what for v in verdict(found, removed, change))
    assert any("its shape changed" in v.what for v in verdict(found, removed, change))


def halves(b: Builder, x: str) -> str:
    """Two ranges of columns: a function of the first, and the second as it is."""
    parts = [b.node("Slice", x, b.ints(s), b.ints(e), b.ints(1)) for s, e in ((0, 3), (3, 6))]
    return b.node("Concat", b.node("Exp", parts[0]), parts[1], axis=1)


@pytest.mark.parametrize("ends", [(3, 6), (1, 6)], ids=["too late", "too early"])
def test_bounds_of_a_slice_are_seen(ends: tuple[int, int]) -> None:
    """The first range takes from the second, or leaves it more; together they fit."""
    found = vectors(halves)
    removed = np.zeros(found.dims.count, np.bool_)
    removed[next(d.channels[0] for d in found.dims.free if d.size == 3)] = True
    assert verdict(found, removed, no_change) == []

    def change(proto: ModelProto) -> None:
        set_constant(proto, node_of(proto, "Slice"), 2, np.array([ends[0]]))
        set_constant(proto, node_of(proto, "Slice", 1), 1, np.array([ends[0]]))
        set_constant(proto, node_of(proto, "Slice", 1), 2, np.array([ends[1]]))

    assert any("holds other channels" in v.what for v in verdict(found, removed, change))


def test_an_uneven_split_is_seen() -> None:
    """`num_outputs` gives the first part more than its channels."""
    def split(b: Builder, x: str) -> str:
        first = b.node("Split", x, axis=1, num_outputs=2, outputs=2)
        return b.node("Concat", b.node("Exp", first), f"{first}_1", axis=1)

    found = vectors(split)
    removed = np.zeros(found.dims.count, np.bool_)
    removed[next(d.channels[0] for d in found.dims.free if d.size == 3)] = True

    def change(proto: ModelProto) -> None:
        node = node_of(proto, "Split")
        del node.input[1:]
        node.attribute.append(helper.make_attribute("num_outputs", 2))

    assert verdict(found, removed, no_change) == []
    assert any("holds other channels" in v.what for v in verdict(found, removed, change))


def test_rows_of_the_wrong_parent_are_seen() -> None:
    """Heads in another order than the matrices they are multiplied by."""
    b = Builder(0)
    x = b.node("Reshape", b.node("MatMul", "x", b.weight(3, C)), b.ints(-1, 3, 2))
    x = b.node("Gather", b.node("Transpose", x, perm=[1, 0, 2]), b.ints(0, 1, 2), axis=0)
    x = b.node("MatMul", x, b.weight(3, 2, 4))
    x = b.node("Reshape", b.node("Transpose", x, perm=[1, 0, 2]), b.ints(-1, 12))
    x = b.node("MatMul", x, b.weight(12, 3))
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3]}))

    def change(proto: ModelProto) -> None:
        set_constant(proto, node_of(proto, "Gather"), 1, np.array([0, 2, 1]))

    removed = np.zeros(found.dims.count, np.bool_)
    assert verdict(found, removed, no_change) == []
    assert any("rows differ" in v.what or "positions differ" in v.what
               for v in verdict(found, removed, change))  # fmt: skip


def test_a_second_order_is_found_where_values_meet() -> None:
    """What gates a flat axis whose order changed is made in that order, or the cut refused."""
    found = vectors(reversed_order, 2 * C)
    kept = Kept(found.dims, found.shapes[0], np.ones(len(found.dims.of), np.bool_))
    slot = next(s for s, x in found.dims.ties.sources.items() if x.initializer == "w0")
    ids = found.dims.ties.sources[slot].fields[1].ids.ravel()
    kept.follow(ids[::-1].copy(), ids)
    [take] = kept.wanted[slot]
    assert take.axis == 1
    assert np.array_equal(take.kept, np.arange(C)[::-1])
    kept.follow(ids, ids + 1000)  # other channels: no order makes them equal
    assert list(kept.wanted) == [slot]
