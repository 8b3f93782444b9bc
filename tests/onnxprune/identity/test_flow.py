"""The flow's words: what is tied, held, read; and what the check says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxprune.cutting.proof import Kept
from onnxprune.identity.fields import Field, along
from onnxprune.identity.flow import Flow, walk
from onnxprune.model.graph import Model, Node
from onnxprune.rules import load_rules
from onnxprune.shape.sizes import choose
from tests.builder import Builder
from tests.oracle import flow_of

C = 6


def started(checked: bool = False) -> Flow:
    """A flow that stands at the first node of product > Relu > product."""
    b = Builder(0)
    x = b.node("Relu", b.node("MatMul", "x", b.weight(3, C)))
    x = b.node("MatMul", x, b.weight(C, 3))
    found = flow_of(b.model({"x": ["n", 3]}, {x: ["n", 3]}))
    alive = np.ones(len(found.dims.of), np.bool_)
    kept = Kept(found.dims, deepcopy(found.shapes[0]), alive) if checked else None
    flow = Flow(found.model, *found.shapes, kept)
    flow.node = found.model.nodes[0]
    return flow


def test_each_use_of_a_weight_is_a_source() -> None:
    """Asked again it is the same; axes of length 1 carry nothing."""
    flow = started()
    first = flow.fields(1)
    assert [f.axes for f in first] == [(0,), (1,)]
    assert flow.fields(1) is first
    assert flow.fields(0) == ()  # an input has none of its own
    assert [f.axes for f in flow.plain((1, 4, 1, 2))] == [(1,), (3,)]


def test_ties_are_collected_flat() -> None:
    """Broadcasting says what meets; the same array says nothing."""
    flow = started()
    ids = flow.fresh(3)
    flow.equal(ids, ids)
    flow.equal(ids[:, None], flow.fresh(2)[None])
    flow.link(ids[:1], flow.fresh(2))
    assert [p[0].tolist() for p in flow.ties.pairs] == [[0, 0, 1, 1, 2, 2]]
    assert [p[0].tolist() for p in flow.ties.links] == [[0, 0]]


def test_a_field_made_constant() -> None:
    """All identities along an axis become one; of a single axis nothing is left."""
    flow = started()
    joint = Field(flow.fresh(6).reshape(2, 3), (0, 1), 1)
    slim = flow.tie_along(joint, [1])
    assert slim is not None
    assert (slim.axes, slim.thin, slim.ids.shape) == ((0,), 0, (2, 1))
    assert flow.tie_along(along(flow.fresh(3), 0, 1), [0]) is None
    assert len(flow.ties.pairs) == 2
    kept = flow.whole([joint, along(flow.fresh(2), 0, 2)], [0], "because")
    assert [k.axes for k in kept] == [(1,)]
    assert [p.reason for p in flow.ties.pins] == ["because"]


@pytest.mark.parametrize("word", ["equal", "link"])
def test_the_check_compares_positions(word: str) -> None:
    """Other channels, or shapes that do not broadcast, are violations that name the node."""
    flow = started(checked=True)
    say = getattr(flow, word)
    ids = flow.fields(1)[1].ids
    say(ids, ids.copy())
    assert flow.violations == []
    say(ids, ids[:, ::-1])
    say(ids, ids[:, :4])
    assert [v.where for v in flow.violations] == [flow.where()] * 2
    assert "(1, 6) and (1, 4)" in flow.violations[1].what


def test_the_check_collects_nothing() -> None:
    """Pins, parts and joints belong to the discovery."""
    flow = started(checked=True)
    joint = Field(np.arange(6).reshape(2, 3), (0, 1), 1)
    flow.pin([joint], "because")
    flow.approximate([joint], "because")
    flow.joint(joint)
    flow.part(joint.ids)
    flow.sever(joint, [1])
    ties = flow.ties
    found = (ties.pins, ties.approximate, ties.joints, ties.parts, ties.steps)
    assert not any(found)


def test_lengths_are_checked_where_values_are_put() -> None:
    """Identities of another length than the tensor's axis are a violation."""
    flow = started(checked=True)
    flow.put(0, [along(np.arange(4), 1, 2), None])
    assert "has shape (2, 6), its identities (1, 4)" in flow.violations[0].what
    flow.put(5, [along(np.arange(4), 1, 2)])  # an output that the node does not have
    assert len(flow.violations) == 2  # its channels are others, too


def test_a_reshape_into_the_same_shape_moves_nothing() -> None:
    """Not even new fields are made."""
    flow = started()
    one = along(flow.fresh(C), 1, 2)
    [same] = flow.reshape("key", [one], [((2, C), (2, C)), ((3, C), (3, C))])
    assert same is one


def test_rows_that_are_woven_end_together() -> None:
    """Where a range of a flat axis ends, each row laid into it has an end."""
    flow = started()
    joint = Field(flow.fresh(C).reshape(1, 3, 2), (1, 2), 1)
    pairs = [((2, 3, 2), (2, C)), ((3, 3, 2), (3, C))]
    [flat] = flow.reshape("key", [joint], pairs)
    assert flat is not None
    flow.sever(flat, [3])
    [rows] = flow.ties.steps
    assert [r.tolist() for r in rows] == [[0, 2], [1]]
    flow.sever(flat, [0])
    flow.sever(Field(flat.ids[:, ::-1], (1,), 1), [3])  # another order than they were laid in
    assert len(flow.ties.steps) == 1


Add = Callable[[Builder, str], str]


def followed(nodes: Add, *, shape: Sequence[int | str] = ("n", 3)) -> tuple[Flow, Model]:
    """Product > something > product, walked by the shipped rules."""
    b = Builder(0)
    x = nodes(b, b.node("MatMul", "x", b.weight(3, C)))
    y = b.node("MatMul", x, b.weight(C, 3))
    model = Model(b.model({"x": list(shape)}, {y: ["a", 3]}))
    _, first, second, _ = choose(model)
    flow = Flow(model, first, second)
    walk(flow, load_rules().flow_rule)
    return flow, model


def test_an_operator_without_a_rule_holds_what_it_reads() -> None:
    """Nobody guesses that it is elementwise; the reason names it."""
    flow, _ = followed(lambda b, x: b.node("Mystery", x, domain="unheard.of"))
    assert flow.ties.unknown
    assert any("no rule for the operator Mystery" in p.reason for p in flow.ties.pins)


def test_a_shape_out_of_the_data_holds_what_goes_in() -> None:
    """What NonZero finds has a length that nobody knows."""
    flow, _ = followed(lambda b, x: b.node("Compress", x, b.node("Greater", b.node(
        "ReduceSum", "x", b.ints(1), keepdims=0), b.add(0.0)), axis=0))  # fmt: skip
    assert any("known only when it runs" in p.reason for p in flow.ties.pins)


def test_what_a_body_reads_is_held() -> None:
    """The border of an If is as far as channels are followed."""
    def branch(name: str, x: str) -> helper.GraphProto:  # type: ignore[name-defined]
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", C])
        return helper.make_graph([helper.make_node("Relu", [x], [name])], name, [], [info])

    def choice(b: Builder, x: str) -> str:
        total = b.node("ReduceSum", "x", keepdims=0)
        more = b.node("Greater", total, b.add(0.0))
        return b.node("If", more, then_branch=branch("t", x), else_branch=branch("e", x))

    flow, _ = followed(choice)
    assert any("used inside an If, Loop or Scan" in p.reason for p in flow.ties.pins)


def test_constants_are_values_unless_a_caller_may_replace_them() -> None:
    """An operand's value is known from arithmetic or from the file."""
    flow = started()
    assert flow.value(1) is not None
    assert flow.value(0) is None
    assert flow.is_weight(1)
    info = helper.make_tensor_value_info("w0", TensorProto.FLOAT, [3, C])
    flow.model.proto.graph.input.append(info)
    again = Flow(Model(flow.model.proto), flow.first, flow.second)
    again.node = flow.node
    assert again.value(1) is None
    assert not again.is_weight(1)


def test_a_dimension_that_was_longer_still_spans() -> None:
    """After a cut an axis of length 1 is not what it never was: an axis to broadcast."""
    flow = started(checked=True)
    name = flow.node.outputs[0]
    flow.first.shape[name] = (2, 1)
    assert flow.spans(name, 1)
    flow.first.shape["new"] = (2, 1)
    assert not flow.spans("new", 1)
    assert isinstance(flow.node, Node)
